package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A container that has a mounted volume can put a link to the host where a copy is made.
func TestALinkInThePlaceOfACopy(t *testing.T) {
	s := open(t)
	v := volumeOf("memory", "type", "tmpfs", "device", "tmpfs", "o", "size=20m")
	ok(t, s.Use(t.Context(), "keeps it", v))
	image, outside := t.TempDir(), t.TempDir()
	write(t, image+"/file", "image")
	over, raced := make(chan struct{}), make(chan int)
	go func() {
		links := 0
		for {
			select {
			case <-over:
				raced <- links
				return
			default:
				if os.Symlink(outside, filepath.Join(s.Path(v.ID), inside+s.o.Node+part)) == nil {
					links++
				}
			}
		}
	}()
	for range 200 {
		_ = s.Seed(t.Context(), "one", v, "", from(image))
		if got := in(t, outside); got != "" {
			t.Fatalf("%q came out of the volume", got)
		}
		_ = os.Remove(s.Path(v.ID) + "/file")
	}
	close(over)
	if <-raced == 0 {
		t.Error("there was no race")
	}
}

// looking is a context that is looked at between the steps of a copy or removal.
type looking struct {
	context.Context
	look func() error
}

func (l looking) Err() error {
	if err := l.look(); err != nil {
		return err
	}
	return l.Context.Err()
}

// Whatever a container makes of a copy while it is made, it stays in the volume.
func TestACopyThatIsChangedWhileItIsMade(t *testing.T) {
	image, outside := t.TempDir(), t.TempDir()
	write(t, image+"/a/b/1", "image")
	write(t, image+"/c/1", "image")
	ok(t, errors.Join(os.Chmod(image+"/a/b", 0o777), os.Link(image+"/a/b/1", image+"/c/2"), os.Symlink("x", image+"/c/soft")))
	before := listing(t, outside)
	for what, change := range map[string]func(copied string) error{
		"a directory is a link now":       func(at string) error { return os.Rename(at+"/a", at+"/gone") },
		"what it is in is a link now":     func(at string) error { return os.Rename(at, at+".gone") },
		"a file is a link already":        func(at string) error { return os.Symlink(outside+"/new", at+"/a/b/1") },
		"a directory is a link already":   func(at string) error { return os.Symlink(outside, at+"/c") },
		"a link is one to the host":       func(at string) error { return errors.Join(os.Mkdir(at+"/c", 0o755), os.Symlink(outside, at+"/c/soft")) },
		"a directory went with all in it": func(at string) error { return os.RemoveAll(at + "/a") },
	} {
		dir := t.TempDir()
		changed := false
		ctx := looking{t.Context(), func() error {
			if _, err := os.Stat(dir + "/copy/a/b"); err != nil || changed {
				return nil
			}
			changed = true
			if err := change(dir + "/copy"); err != nil {
				return err
			}
			for _, gone := range []string{"/copy/a/b", "/copy/a", "/copy"} {
				_ = os.Symlink(outside, dir+gone) // where there is nothing now
			}
			return nil
		}}
		in, err := openDir(unix.AT_FDCWD, dir)
		ok(t, err)
		_ = copyDir(ctx, image, fdOf(in), "copy")
		ok(t, remove(t.Context(), fdOf(in), "copy"))
		ok(t, in.Close())
		if got := listing(t, outside); got != before || !changed {
			t.Errorf("%s (%v): outside is\n%s\nwas\n%s", what, changed, got, before)
		}
	}
}

// nest makes directories in one another, deeper than a path can name.
func nest(t *testing.T, dir string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	ok(t, err)
	for range depth {
		ok(t, unix.Mkdirat(fd, "d", 0o700))
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
		ok(t, errors.Join(err, unix.Close(fd)))
		fd = next
	}
	ok(t, unix.Close(fd))
}

// Directories that are nested without end cost neither memory nor descriptors.
func TestAVolumeThatIsNestedDeep(t *testing.T) {
	s := open(t)
	v := volumeOf("data")
	ok(t, s.Use(t.Context(), "one", v))
	var limit unix.Rlimit
	ok(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	few := unix.Rlimit{Cur: maxNested + 200, Max: limit.Max}
	ok(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	defer func() { ok(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	nest(t, s.Path(v.ID), 10_000)
	if _, err := s.Size(t.Context(), v.ID); err == nil || !strings.Contains(err.Error(), "nested deeper than") {
		t.Errorf("its size: %v", err)
	}
	ok(t, s.Remove(t.Context(), v.ID))
	if got := in(t, s.o.Dir); got != "" {
		t.Errorf("%q are left", got)
	}
}

// A container that makes files as fast as they are removed keeps nobody for ever.
func TestARemovalIsGivenUp(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/copy/0", "x")
	in, err := openDir(unix.AT_FDCWD, dir)
	ok(t, err)
	defer func() { _ = in.Close() }()
	rounds, enough := 0, errors.New("enough")
	err = remove(looking{t.Context(), func() error {
		if rounds++; rounds == 10 {
			return enough
		}
		return os.WriteFile(dir+"/copy/more", nil, 0o600)
	}}, fdOf(in), "copy")
	if !errors.Is(err, enough) {
		t.Errorf("%v", err)
	}
}

// The size of a volume is that of its own files, whatever leads out of it.
func TestTheSizeOfAHostileVolume(t *testing.T) {
	s := open(t)
	v := volumeOf("data")
	ok(t, s.Use(t.Context(), "one", v))
	base, outside := s.Path(v.ID), t.TempDir()
	write(t, outside+"/big", strings.Repeat("x", 1000))
	ok(t, errors.Join(os.Mkdir(base+"/mount", 0o755), unix.Mount(outside, base+"/mount", "", unix.MS_BIND, ""), os.Mkdir(base+"/p", 0o755), os.Symlink("/", base+"/link")))
	over, swapped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(swapped)
		for {
			select {
			case <-over:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, base+"/p", unix.AT_FDCWD, base+"/link", unix.RENAME_EXCHANGE)
			}
		}
	}()
	for range 500 {
		n, err := s.Size(t.Context(), v.ID)
		if err != nil || n > 2 { // one or two times the link, as it is swapped
			t.Errorf("%d bytes, %v", n, err)
			break
		}
	}
	close(over)
	<-swapped
}

// The kernel lists mounts by paths without links.
func TestAFolderThatIsReachedByALink(t *testing.T) {
	s := open(t, func(o *Options) {
		real := filepath.Dir(o.Dir) + "/real"
		if err := errors.Join(os.Mkdir(real, 0o755), os.Symlink(real, filepath.Dir(o.Dir)+"/link")); err != nil {
			t.Fatal(err)
		}
		o.Dir = filepath.Dir(o.Dir) + "/link/volumes"
		mounts := 0
		o.Mount = func(ctx context.Context, m Mounting) error {
			if mounts++; mounts > 1 {
				t.Error("it is mounted again")
			}
			return mount8(ctx, m)
		}
	})
	v := tmpfs("memory")
	ok(t, s.Use(t.Context(), "one", v))
	ok(t, s.Use(t.Context(), "two", v))
	s, err := Open(s.o)
	ok(t, err)
	if ok(t, s.Settle(t.Context())); isMounted(t, s, v) {
		t.Error("a dead agent's mount, which nobody uses, stays")
	}
	data := volumeOf("data")
	ok(t, s.Use(t.Context(), "one", data))
	ok(t, os.Mkdir(s.Path(data.ID)+"/disk", 0o755))
	ok(t, unix.Mount("tmpfs", s.Path(data.ID)+"/disk", "tmpfs", 0, ""))
	if err := s.Remove(t.Context(), data.ID); err == nil || !strings.Contains(err.Error(), "something is mounted") {
		t.Errorf("%v", err)
	}
}
