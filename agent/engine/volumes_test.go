package engine_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/mountinfo"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/life"
)

func volumeID(name string) string {
	return hex.EncodeToString([]byte(name + strings.Repeat(" ", 32-len(name))))
}

// mounted prepares a container with mounts, removed with the test.
func (w *world) mounted(ctx context.Context, e *node, ref, digest string, mounts []task.Mount, cmd ...string) (string, error) {
	w.t.Helper()
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	id := hex.EncodeToString(raw)
	w.t.Cleanup(func() {
		_ = e.Signal(context.Background(), id, "SIGKILL")
		if err := e.Remove(context.Background(), id); err != nil && !errors.Is(err, task.ErrNotFound) {
			w.t.Errorf("cleaning up: %v", err)
		}
	})
	c := container.CreateRequest{Config: &container.Config{Image: ref, Cmd: cmd}, HostConfig: &container.HostConfig{}}
	return id, e.Prepare(ctx, task.Spec{ID: id, Name: "t" + id[:8], Image: ref, Digest: digest, SpecHash: "spec", Create: c, Mounts: mounts})
}

// tells runs a container with mounts to its end and returns its output.
func (w *world) tells(e *node, ref, digest string, mounts []task.Mount, script string) (string, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	id, err := w.mounted(ctx, e, ref, digest, mounts, "sh", "-c", script)
	if err != nil {
		return "", err
	}
	if _, err := e.Start(ctx, id, life.First(1), nil); err != nil {
		return "", err
	}
	if _, err := e.Wait(ctx, id, life.First(1)); err != nil {
		return "", err
	}
	out, err := w.output(ctx, e, id)
	return out, errors.Join(err, e.Release(ctx, id))
}

func TestVolumesInContainers(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	ref, digest := w.layered(e, "vols:1", text("data/greeting", "from the image"), text("data/deep/file", "deep"))
	data := &task.Volume{ID: volumeID("data"), Name: "data"}
	host := t.TempDir()
	if err := os.WriteFile(host+"/x", []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	memory := &task.Volume{ID: volumeID("memory"), Name: "memory", Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=64k"}}
	bound := &task.Volume{ID: volumeID("bound"), Name: "bound", Options: map[string]string{"type": "none", "device": host, "o": "bind"}}
	parts := &task.Volume{ID: volumeID("parts"), Name: "parts"}
	empty := &task.Volume{ID: volumeID("empty"), Name: "empty"}
	for _, c := range []struct {
		what, script, want string
		mounts             []task.Mount
	}{
		{"seeded from the image", "cat /data/greeting; cat /data/deep/file; echo kept > /data/own", "from the imagedeep", []task.Mount{{Volume: data, Target: "/data"}}},
		{"kept for the next one", "cat /mnt/own; rm /mnt/greeting", "kept\n", []task.Mount{{Volume: data, Target: "/mnt"}}},
		{"not seeded again", "ls /data", "deep\nown\n", []task.Mount{{Volume: data, Target: "/data"}}},
		{"read-only", "(echo x > /data/y) 2>&1; echo end", "sh: can't create /data/y: Read-only file system\nend\n", []task.Mount{{Volume: data, Target: "/data", ReadOnly: true}}},
		{"not seeded with nocopy", "ls /data; echo end", "end\n", []task.Mount{{Volume: empty, Target: "/data", NoCopy: true}}},
		{"a part", "cat /part/file; echo more > /part/more", "deep", []task.Mount{{Volume: data, Target: "/part", Subpath: "deep"}}},
		{"a part that is a file", "cat /one", "more\n", []task.Mount{{Volume: data, Target: "/one", Subpath: "deep/more"}}},
		{"an empty part", "mkdir /p/new; touch /p/other", "", []task.Mount{{Volume: parts, Target: "/p"}}},
		{"an empty part is seeded", "cat /data/greeting /data/deep/file; echo more > /data/more", "from the imagedeep", []task.Mount{{Volume: parts, Target: "/data", Subpath: "new"}}},
		{"and nothing else of its volume", "ls /p /p/new", "/p:\nnew\nother\n\n/p/new:\ndeep\ngreeting\nmore\n", []task.Mount{{Volume: parts, Target: "/p"}}},
		{"twice", "echo a > /a/x; cat /b/x", "a\n", []task.Mount{{Volume: empty, Target: "/a"}, {Volume: empty, Target: "/b", ReadOnly: true}}},
		{"in memory", "df -P /m | tail -1 | cut -d' ' -f1; cat /proc/mounts | grep -c ' /m tmpfs'", "tmpfs\n1\n", []task.Mount{{Volume: memory, Target: "/m"}}},
		{"a bind of the host by its options", "cat /h/x", "of the host", []task.Mount{{Volume: bound, Target: "/h", NoCopy: true}}},
		{"a path that another container mounts", "cat /h/x; ls -d /new", "of the host/new\n", []task.Mount{{Source: host, Target: "/h", ReadOnly: true}, {Source: host + "/new", Target: "/new", CreateSource: true}}},
	} {
		got, err := w.tells(e, ref, digest, c.mounts, c.script)
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.what, got, err, c.want)
		}
	}
	var refusal *task.StartError
	for what, c := range map[string]struct {
		m     task.Mount
		words string
	}{
		"a part that is not there":           {task.Mount{Volume: data, Target: "/x", Subpath: "missing"}, "cannot access path"},
		"a filesystem that the kernel lacks": {task.Mount{Volume: &task.Volume{ID: volumeID("odd"), Name: "odd", Options: map[string]string{"type": "nosuchfs", "device": "x"}}, Target: "/x"}, "nosuchfs"},
		"a path that is not there":           {task.Mount{Source: host + "/missing", Target: "/x"}, "bind source path does not exist"},
	} {
		if _, err := w.tells(e, ref, digest, []task.Mount{c.m}, "true"); !errors.As(err, &refusal) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", what, err)
		}
	}
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(w.dir + "/volumes"))
	if err != nil || len(all) > 0 {
		t.Errorf("nobody uses them, and %d are mounted, %v", len(all), err)
	}
}

// What is mounted for a container stays while it runs, over its agent's death, and goes
// with its end.
func TestAVolumeStaysMountedForWhatRuns(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	memory := &task.Volume{ID: volumeID("memory"), Name: "memory", Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=64k"}}
	ctx := t.Context()
	ref, digest := w.layered(e, "mem:1", text("data/x", "x"))
	id, err := w.mounted(ctx, e, ref, digest, []task.Mount{{Volume: memory, Target: "/m", NoCopy: true}}, "sh", "-c", "echo here > /m/x; sleep 1000")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(ctx, id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	is := func() bool {
		mounted, err := mountinfo.Mounted(w.dir + "/volumes/" + memory.ID + "/_data")
		if err != nil {
			t.Fatal(err)
		}
		return mounted
	}
	if !is() {
		t.Fatal("it is not mounted")
	}
	again := w.open(t)
	if _, err := again.List(ctx); err != nil || !is() {
		t.Fatalf("the next agent unmounted it, %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if err := again.volumes.Remove(short, memory.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("it is removed while a container has it: %v", err)
	}
	if err := again.Signal(ctx, id, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Wait(ctx, id, life.First(1)); err != nil {
		t.Fatal(err)
	}
	if err := again.Release(ctx, id); err != nil || is() {
		t.Errorf("it is mounted after its container's end, %v", err)
	}
}
