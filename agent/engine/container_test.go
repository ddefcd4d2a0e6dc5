package engine_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/mountinfo"

	"github.com/drover/drover/agent/task"
	testimages "github.com/drover/drover/deploy/images"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/life"
)

// layered pulls busybox with one more layer of these files into w's engine.
func (w *world) layered(e *node, tag string, files ...tar.Header) (ref, digest string) {
	w.t.Helper()
	fatal := func(err error) {
		if err != nil {
			w.t.Helper()
			w.t.Fatal(err)
		}
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range files {
		body := h.PAXRecords["body"]
		h.PAXRecords, h.Size, h.Mode = nil, int64(len(body)), 0o644
		fatal(tw.WriteHeader(&h))
		_, err := tw.Write([]byte(body))
		fatal(err)
	}
	fatal(tw.Close())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	fatal(err)
	var img v1.Image
	img, err = testimages.Busybox(w.t.Context())
	fatal(err)
	img, err = mutate.AppendLayers(img, layer)
	fatal(err)
	host, _, _ := strings.Cut(w.ref, "/")
	r, err := name.ParseReference(host + "/" + tag)
	fatal(err)
	fatal(remote.Write(r, img))
	h, err := img.Digest()
	fatal(err)
	_, err = e.images.Pull(w.t.Context(), r.String(), h.String(), nil, func(task.Progress) {})
	fatal(err)
	return r.String(), h.String()
}

// text is a regular file for layered.
func text(name, body string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, PAXRecords: map[string]string{"body": body}}
}

// made prepares a container, removed with the test.
func (w *world) made(ctx context.Context, e *node, ref, digest string, change func(*container.CreateRequest), cmd ...string) (string, error) {
	w.t.Helper()
	var raw [32]byte
	for i := range raw {
		raw[i] = byte(rand.Uint32())
	}
	id := hex.EncodeToString(raw[:])
	c := container.CreateRequest{Config: &container.Config{Image: ref, Cmd: cmd}, HostConfig: &container.HostConfig{}}
	if change != nil {
		change(&c)
	}
	w.t.Cleanup(func() {
		_ = e.Signal(context.Background(), id, "SIGKILL")
		if err := e.Remove(context.Background(), id); err != nil && !errors.Is(err, task.ErrNotFound) {
			w.t.Errorf("cleaning up: %v", err)
		}
	})
	return id, e.Prepare(ctx, task.Spec{ID: id, Name: "t" + id[:8], Image: ref, Digest: digest, SpecHash: "spec", Create: c})
}

// said runs a container to its end and returns its output.
func (w *world) said(e *node, ref, digest string, change func(*container.CreateRequest), cmd ...string) (string, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	id, err := w.made(ctx, e, ref, digest, change, cmd...)
	if err != nil {
		return "", err
	}
	if _, err := e.Start(ctx, id, life.First(1), nil); err != nil {
		return "", err
	}
	if _, err := e.Wait(ctx, id, life.First(1)); err != nil {
		return "", err
	}
	return w.output(ctx, e, id)
}

func (w *world) output(ctx context.Context, e *node, id string) (string, error) {
	st, err := e.Logs(ctx, id, task.LogOptions{Stdout: true, Stderr: true, Tail: -1})
	if err != nil {
		return "", err
	}
	defer st.Close()
	return frames(st)
}

func frames(r io.Reader) (string, error) {
	var out strings.Builder
	for fr := bulk.NewFrameReader(r); ; {
		kind, p, err := fr.Next()
		if errors.Is(err, io.EOF) || kind == bulk.FrameExit {
			return out.String(), nil
		}
		if err != nil {
			return out.String(), err
		}
		if kind != bulk.FramePos {
			out.Write(p)
		}
	}
}

// An image whose /etc/passwd is a FIFO blocks neither its start nor anything after it.
func TestAFIFOForUsersHoldsNothingUp(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	ref, digest := w.layered(e, "fifo:1", tar.Header{Name: "etc/passwd", Typeflag: tar.TypeFifo}, text("etc/group", "web:x:7:\n"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	within := func(what string, f func() error) error {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- f() }()
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			t.Fatalf("%s hangs", what)
			return nil
		}
	}
	for _, user := range []string{"", "12:web", "nobody"} {
		err := within("a start", func() error {
			_, err := w.made(ctx, e, ref, digest, func(c *container.CreateRequest) { c.User = user }, "true")
			return err
		})
		var se *task.StartError
		if !errors.As(err, &se) || se.Code != 125 || !strings.Contains(se.Message, "its /etc/passwd is a FIFO") {
			t.Errorf("as %q: %v", user, err)
		}
	}
	// A container can create one itself.
	ref, digest = w.layered(e, "users:1", text("etc/passwd", "web:x:12:7::/:/bin/sh\n"), text("etc/group", "web:x:7:\n"))
	id, err := w.made(ctx, e, ref, digest, nil, "sleep", "300")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(ctx, id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	run := func(exec, user string, cmd ...string) (out string, err error) {
		err = within("an exec", func() error {
			if err := e.ExecCreate(ctx, id, exec, container.ExecCreateRequest{Cmd: cmd, User: user, AttachStdout: true}); err != nil {
				return err
			}
			st, err := e.ExecStart(ctx, id, exec, true, 0, 0)
			if err != nil {
				return err
			}
			defer st.Close()
			out, err = frames(st)
			return err
		})
		return out, err
	}
	if out, err := run(strings.Repeat("a", 64), "web", "id"); err != nil || !strings.Contains(out, "uid=12(web) gid=7(web)") {
		t.Errorf("exec as web: %q, %v", out, err)
	}
	if out, err := run(strings.Repeat("b", 64), "", "sh", "-c", "rm /etc/passwd; mkfifo /etc/passwd"); err != nil || out != "" {
		t.Fatalf("making a FIFO: %q, %v", out, err)
	}
	for i, user := range []string{"web", ""} {
		if _, err := run(strings.Repeat(string(rune('c'+i)), 64), user, "id"); err == nil || !strings.Contains(err.Error(), "its /etc/passwd is a FIFO") {
			t.Errorf("exec as %q: %v", user, err)
		}
	}
}

// Nor does a FIFO that a container left for its next attempt.
func TestAFIFOOfTheLastAttemptIsRefused(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	if _, err := e.images.Pull(t.Context(), w.ref, w.dgst, nil, func(task.Progress) {}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	id, err := w.made(ctx, e, w.ref, w.dgst, nil, "sh", "-c", "mkdir -p /etc; rm -f /etc/passwd; mkfifo /etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(ctx, id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Wait(ctx, id, life.First(1)); err != nil {
		t.Fatal(err)
	}
	_, err = e.Start(ctx, id, life.First(2), nil)
	var se *task.StartError
	if !errors.As(err, &se) || se.Code != 125 || !strings.Contains(se.Message, "its /etc/passwd is a FIFO") {
		t.Errorf("the second attempt: %v", err)
	}
}

// What a spec requests, as seen in the kernel.
func TestContainersAreAsDockersAre(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	ref, digest := w.layered(e, "groups:1", text("etc/passwd", "root:x:0:0::/:/bin/sh\n"), text("etc/group", "root:x:0:\nwheel:x:10:root\n"))
	host := t.TempDir()
	for _, m := range []struct {
		at    string
		flags uintptr
	}{{"ro/below", 0}, {"shared", syscall.MS_SHARED}} {
		at := filepath.Join(host, m.at)
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(at, syscall.MNT_DETACH) })
		if m.flags != 0 {
			if err := syscall.Mount("", at, "", m.flags, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	shm, err := os.CreateTemp("/dev/shm", "drover-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(shm.Name()) })
	ipc, err := os.Readlink("/proc/self/ns/ipc")
	if err != nil {
		t.Fatal(err)
	}
	const noFolders = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`
	for what, c := range map[string]struct {
		change func(*container.CreateRequest)
		script string
		want   string
	}{
		"a low port as nobody": {func(c *container.CreateRequest) { c.User = "1000" }, "httpd -p 127.0.0.1:80 && echo bound", "bound\n"},
		"who may ping":         {nil, "cat /proc/sys/net/ipv4/ping_group_range", "0\t2147483647\n"},
		"a domain name":        {func(c *container.CreateRequest) { c.Domainname = "example.org" }, "cat /proc/sys/kernel/domainname", "example.org\n"},
		"root's groups":        {nil, "id -G", "0 10\n"},
		"the user's TERM":      {func(c *container.CreateRequest) { c.Tty, c.Env = true, []string{"TERM=vt100"} }, "echo $TERM", "vt100\r\n"},
		"the user's seccomp":   {func(c *container.CreateRequest) { c.HostConfig.SecurityOpt = []string{"seccomp=" + noFolders} }, "mkdir /x", "mkdir: can't create directory '/x': Operation not permitted\n"},
		"docker's seccomp":     {nil, "mkdir /x && grep Seccomp: /proc/self/status", "Seccomp:\t2\n"},
		"the host's IPC": {func(c *container.CreateRequest) { c.HostConfig.IpcMode = "host" },
			"readlink /proc/self/ns/ipc; ls " + shm.Name(), ipc + "\n" + shm.Name() + "\n"},
		"no IPC": {func(c *container.CreateRequest) { c.HostConfig.IpcMode = "none" }, "test -e /dev/shm || echo none", "none\n"},
		"an IPC namespace to share": {func(c *container.CreateRequest) { c.HostConfig.IpcMode = "shareable" },
			"test -d /dev/shm && test $(readlink /proc/self/ns/ipc) != " + ipc + " && echo its own", "its own\n"},
		"a soft limit of memory": {func(c *container.CreateRequest) { c.HostConfig.MemoryReservation = 8 << 20 },
			"cd /sys/fs/cgroup; cat memory/memory.soft_limit_in_bytes || cat memory.low", "8388608\n"},
		"a rule for devices": {func(c *container.CreateRequest) { c.HostConfig.DeviceCgroupRules = []string{"c 7:* rw"} },
			"cd /sys/fs/cgroup; ! test -e devices || grep -q 'c 7:[*] rw' devices/devices.list && echo allowed", "allowed\n"},
		"a device of a privileged container": {func(c *container.CreateRequest) {
			c.HostConfig.Privileged, c.HostConfig.Devices = true, []container.DeviceMapping{{PathOnHost: "/dev/null", PathInContainer: "/dev/nil"}}
		}, "echo lost > /dev/nil && echo written", "written\n"},
		"read-only below, too": {func(c *container.CreateRequest) { c.HostConfig.Binds = []string{host + "/ro:/mnt:ro,cached"} },
			"touch /mnt/below/x", "touch: /mnt/below/x: Read-only file system\n"},
		"a mount shared with the host": {func(c *container.CreateRequest) {
			c.HostConfig.Binds = []string{host + "/shared:/mnt:rshared"}
			c.HostConfig.CapAdd, c.HostConfig.SecurityOpt = []string{"SYS_ADMIN"}, []string{"seccomp=unconfined", "apparmor=unconfined"}
		}, "mkdir /mnt/in && mount -t tmpfs in /mnt/in && touch /mnt/in/file && echo mounted", "mounted\n"},
	} {
		if got, err := w.said(e, ref, digest, c.change, "sh", "-c", c.script); err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", what, got, err, c.want)
		}
	}
	if _, err := os.Stat(host + "/shared/in/file"); err != nil {
		t.Errorf("a mount that a container made below a shared one: %v", err)
	}
	_, err = w.said(e, ref, digest, func(c *container.CreateRequest) { c.HostConfig.Binds = []string{t.TempDir() + ":/mnt:rshared"} }, "true")
	if private := privateRoot(t); private && (err == nil || !strings.Contains(err.Error(), "but it is not a shared mount")) {
		t.Errorf("sharing what isn't shared: %v", err)
	}
}

// privateRoot reports whether the mount that tests have their folders on is private.
func privateRoot(t *testing.T) bool {
	t.Helper()
	all, err := mountinfo.GetMounts(mountinfo.ParentsFilter(t.TempDir()))
	if err != nil || len(all) == 0 {
		t.Fatalf("looking at the mounts: %v", err)
	}
	return !strings.Contains(all[len(all)-1].Optional, "shared:")
}
