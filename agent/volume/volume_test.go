package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/testenv"
)

// volumeOf is a volume with an id of its own for each name.
func volumeOf(name string, options ...string) task.Volume {
	v := task.Volume{ID: fmt.Sprintf("%064x", []byte(name)), Name: name}
	for i := 0; i < len(options); i += 2 {
		if v.Options == nil {
			v.Options = map[string]string{}
		}
		v.Options[options[i]] = options[i+1]
	}
	return v
}

func tmpfs(name string) task.Volume {
	return volumeOf(name, "type", "tmpfs", "device", "tmpfs", "o", "size=1m,mode=755")
}

func open(t *testing.T, change ...func(*Options)) *Store {
	t.Helper()
	testenv.Root(t)
	dir := t.TempDir()
	o := Options{Dir: filepath.Join(dir, "volumes"), RunDir: filepath.Join(dir, "run"), Node: "n1", Statfs: roomy}
	for _, f := range change {
		f(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		all, _ := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		for i := len(all) - 1; i >= 0; i-- {
			_ = unix.Unmount(all[i].Mountpoint, unix.MNT_DETACH)
		}
	})
	return s
}

// roomy is a disk that is half full, whatever the tests' own is.
func roomy(_ int, st *unix.Statfs_t) error {
	*st = unix.Statfs_t{Bsize: 4096, Blocks: 1 << 30, Bavail: 1 << 29, Files: 1 << 30, Ffree: 1 << 29}
	return nil
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func isMounted(t *testing.T, s *Store, v task.Volume) bool {
	t.Helper()
	is, err := mountinfo.Mounted(s.Path(v.ID))
	ok(t, err)
	return is
}

func write(t *testing.T, path, text string) {
	t.Helper()
	ok(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)))
}

func TestADirectoryThatOnlyRootEnters(t *testing.T) {
	s := open(t)
	v := volumeOf("data")
	ok(t, s.Use(t.Context(), "one", v))
	for path, want := range map[string]os.FileMode{s.o.Dir: 0o700, s.o.RunDir: 0o700, s.dir(v.ID): 0o700, s.Path(v.ID): 0o755} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s is %v, %v", path, fi.Mode(), err)
		}
	}
	if err := s.Use(t.Context(), "one", task.Volume{ID: "../../etc", Name: "x"}); err == nil {
		t.Error("an id is a path")
	}
}

func TestAVolumeIsMountedWhileItIsUsed(t *testing.T) {
	s := open(t)
	v := tmpfs("memory")
	ok(t, s.Hold("one", []task.Volume{v}))
	ok(t, s.Use(t.Context(), "one", v))
	ok(t, s.Use(t.Context(), "one", v))
	ok(t, s.Use(t.Context(), "two", v))
	if !isMounted(t, s, v) {
		t.Fatal("it is not mounted")
	}
	write(t, s.Path(v.ID)+"/x", "x")
	names, err := s.Unuse(t.Context(), "one")
	if ok(t, err); !isMounted(t, s, v) || len(names) != 1 || names[0] != "memory" {
		t.Errorf("another one uses it; %v was left", names)
	}
	// The next agent is told who runs.
	s, err = Open(s.o)
	ok(t, err)
	s.Using("two", []task.Volume{v})
	if ok(t, s.Settle(t.Context())); !isMounted(t, s, v) {
		t.Error("an agent's start took it away")
	}
	if _, err := s.Unuse(t.Context(), "nobody"); err != nil || !isMounted(t, s, v) {
		t.Errorf("who does not use it, took it away: %v", err)
	}
	if _, err := s.Unuse(t.Context(), "two"); err != nil || isMounted(t, s, v) {
		t.Errorf("nobody uses it and it is mounted, %v", err)
	}
	ok(t, s.Use(t.Context(), "three", v))
	s, err = Open(s.o)
	ok(t, err)
	if ok(t, s.Settle(t.Context())); isMounted(t, s, v) {
		t.Error("a dead agent's mount, which nobody uses, stays")
	}
}

func TestABindOfTheHost(t *testing.T) {
	s := open(t)
	srv := t.TempDir()
	write(t, srv+"/x", "x")
	v := volumeOf("path", "type", "none", "device", srv, "o", "bind")
	ok(t, s.Use(t.Context(), "one", v))
	if b, err := os.ReadFile(s.Path(v.ID) + "/x"); string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	_, err := s.Unuse(t.Context(), "one")
	ok(t, err)
	ok(t, s.Remove(t.Context(), v.ID))
	if _, err := os.Stat(srv + "/x"); err != nil {
		t.Errorf("what is the host's went with the volume: %v", err)
	}
}

func TestAMountThatFailsLeavesNothing(t *testing.T) {
	silent := func(ctx context.Context, m Mounting) error {
		if err := unix.Mount("tmpfs", m.Dir, "tmpfs", 0, ""); err != nil { // made, although nobody hears of it
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	s := open(t, func(o *Options) { o.MountWithin, o.Mount = 50*time.Millisecond, silent })
	v := volumeOf("share", "type", "nfs", "device", ":/srv", "o", "addr=127.0.0.1,password=secret")
	err := s.Use(t.Context(), "one", v)
	if err == nil || err.Error() != "failed to mount local volume share (nfs :/srv): no answer within 50ms" {
		t.Errorf("%v", err)
	}
	if isMounted(t, s, v) {
		t.Error("it is half mounted")
	}
	s.o.Mount = func(_ context.Context, m Mounting) error { return fmt.Errorf("no %s with %s", m.Type, m.Options) }
	if err := s.Use(t.Context(), "one", v); err == nil || strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "password=********") {
		t.Errorf("%v", err)
	}
	ok(t, s.Remove(t.Context(), v.ID))
}

func TestMount8(t *testing.T) {
	s := open(t)
	v := volumeOf("odd", "type", "nosuchfs", "device", "x")
	if err := s.Use(t.Context(), "one", v); err == nil || !strings.Contains(err.Error(), "nosuchfs") || isMounted(t, s, v) {
		t.Errorf("%v", err)
	}
	// A mount that waits ends in time.
	bin := t.TempDir()
	ok(t, os.WriteFile(bin+"/mount", []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	s.o.MountWithin = 100 * time.Millisecond
	if err := s.Use(t.Context(), "one", v); err == nil || !strings.Contains(err.Error(), "no answer within 100ms") {
		t.Errorf("%v", err)
	}
	s.o.MountWithin = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := s.Use(ctx, "one", v); err == nil {
		t.Error("an agent that ends waits for it")
	}
}

func TestNamesOfServersBecomeAddresses(t *testing.T) {
	for _, c := range []struct{ kind, device, o, wantDevice, want string }{
		{"nfs", ":/srv", "addr=localhost,rw", ":/srv", "addr=127.0.0.1,rw|addr=::1,rw"},
		{"nfs", ":/srv", "addr=10.0.0.9", ":/srv", "addr=10.0.0.9"},
		{"nfs", "nas:/srv", "vers=4", "nas:/srv", "vers=4"},
		{"cifs", "//10.0.0.9/share", "username=u", "//10.0.0.9/share", "username=u"},
		{"cifs", "//localhost/a%20b", "", "//127.0.0.1/a b|//::1/a b", ""},
		{"none", "/srv", "bind,addr=localhost", "/srv", "bind,addr=localhost"},
	} {
		m, err := resolved(t.Context(), map[string]string{"type": c.kind, "device": c.device, "o": c.o})
		if err != nil || !oneOf(m.Device, c.wantDevice) || !oneOf(m.Options, c.want) {
			t.Errorf("%+v: %+v, %v", c, m, err)
		}
	}
}

func oneOf(s, choices string) bool {
	for c := range strings.SplitSeq(choices, "|") {
		if s == c {
			return true
		}
	}
	return false
}

func TestAVolumeIsRemovedOnceNoTaskHasIt(t *testing.T) {
	s := open(t)
	v, other := volumeOf("data"), volumeOf("other")
	ok(t, s.Hold("one", []task.Volume{v, other}))
	ok(t, s.Hold("two", []task.Volume{v}))
	ok(t, s.Use(t.Context(), "one", v))
	write(t, s.Path(v.ID)+"/a/b/c", "x")
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Remove(short, v.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v, while tasks have it", err)
	}
	done := make(chan error)
	go func() { done <- s.Remove(t.Context(), v.ID) }()
	s.Drop("two")
	select {
	case err := <-done:
		t.Fatalf("%v, while a task has it", err)
	case <-time.After(50 * time.Millisecond):
	}
	s.Drop("one")
	ok(t, <-done)
	if _, err := os.Stat(s.dir(v.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
	ok(t, s.Remove(t.Context(), v.ID)) // repeated
	// A task that was about to be prepared makes no new one of it.
	if err := errors.Join(s.Hold("late", []task.Volume{v})); !errors.Is(err, ErrRemoved) {
		t.Errorf("%v", err)
	}
	if err := s.Use(t.Context(), "late", v); !errors.Is(err, ErrRemoved) {
		t.Errorf("%v", err)
	}
	if err := s.Remove(t.Context(), "../volumes"); err == nil {
		t.Error("an id is a path")
	}
}

// A node has anonymous volumes without end, one after the other.
func TestVolumesThatNobodyHasAreForgotten(t *testing.T) {
	s := open(t)
	for i := range 50 {
		v := volumeOf(fmt.Sprint("v", i))
		by := fmt.Sprint("t", i)
		ok(t, s.Hold(by, []task.Volume{v}))
		ok(t, s.Use(t.Context(), by, v))
		_, err := s.Unuse(t.Context(), by)
		ok(t, err)
		s.Drop(by)
		if i%2 == 0 {
			ok(t, s.Remove(t.Context(), v.ID))
		}
	}
	over, cancel := context.WithCancel(t.Context())
	v := volumeOf("taken")
	_, give, err := s.take(t.Context(), v.ID)
	ok(t, err)
	if cancel(); s.Use(over, "late", v) == nil {
		t.Error("two have the turn")
	}
	give()
	if len(s.vols) != 0 {
		t.Errorf("%d volumes are known that nobody has", len(s.vols))
	}
	if err := s.Use(t.Context(), "late", volumeOf("v0")); !errors.Is(err, ErrRemoved) {
		t.Errorf("%v", err)
	}
}

func TestNothingThatIsMountedInAVolumeIsRemovedWithIt(t *testing.T) {
	s := open(t)
	v := volumeOf("data")
	ok(t, s.Use(t.Context(), "one", v))
	disk := t.TempDir()
	write(t, disk+"/x", "x")
	in := s.Path(v.ID) + "/disk"
	ok(t, os.Mkdir(in, 0o755))
	ok(t, unix.Mount(disk, in, "", unix.MS_BIND, ""))
	if err := s.Remove(t.Context(), v.ID); err == nil || !strings.Contains(err.Error(), "something is mounted at "+in) {
		t.Errorf("%v", err)
	}
	ok(t, unix.Unmount(in, 0))
	ok(t, s.Remove(t.Context(), v.ID))
	if _, err := os.Stat(disk + "/x"); err != nil {
		t.Error(err)
	}
}

func TestSize(t *testing.T) {
	s := open(t)
	v := volumeOf("data")
	size := func() int64 {
		n, err := s.Size(t.Context(), v.ID)
		ok(t, err)
		return n
	}
	if n := size(); n != 0 {
		t.Errorf("one that is not there has %d bytes", n)
	}
	ok(t, s.Use(t.Context(), "one", v))
	write(t, s.Path(v.ID)+"/a", "12345")
	write(t, s.Path(v.ID)+"/d/b", "123")
	ok(t, os.Link(s.Path(v.ID)+"/a", s.Path(v.ID)+"/d/hard"))
	ok(t, os.Symlink("/etc/passwd", s.Path(v.ID)+"/soft"))
	if n := size(); n != 5+3+int64(len("/etc/passwd")) {
		t.Errorf("%d bytes", n)
	}
}
