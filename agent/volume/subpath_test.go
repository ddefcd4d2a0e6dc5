package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestAPartOfAVolume(t *testing.T) {
	s := open(t)
	v := volumeOf("data")
	ok(t, s.Use(t.Context(), "one", v))
	base := s.Path(v.ID)
	write(t, base+"/dir/file", "file")
	outside := t.TempDir()
	write(t, outside+"/secret", "secret")
	ok(t, errors.Join(os.Symlink("dir", base+"/soft"), os.Symlink(outside, base+"/out"), os.Symlink("../../..", base+"/up"), os.Symlink("/proc/self/root", base+"/magic"),
		os.Symlink("loop", base+"/loop")))
	for i, c := range []struct{ subpath, file, words string }{
		{"dir", "file", ""},
		{"dir/file", "", ""},
		{"soft", "file", ""},
		{"soft/file", "", ""},
		{"dir/../dir", "file", ""},
		{".", "dir/file", ""},
		{"out", "", "escapes the base directory"},
		{"out/secret", "", "escapes the base directory"},
		{"up", "", "escapes the base directory"},
		{"magic/etc", "", "escapes the base directory"},
		{"../" + v.ID, "", "escapes the base directory"},
		{"missing", "", "cannot access path " + base + "/missing: no such file or directory"},
		{"dir/file/x", "", "not a directory"},
		{"loop", "", "too many levels of symbolic links"},
	} {
		at, err := s.Pin("one", i, v, c.subpath)
		if c.words != "" {
			if err == nil || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: %v, want %q", c.subpath, err, c.words)
			}
			continue
		}
		ok(t, err)
		if b, err := os.ReadFile(filepath.Join(at, c.file)); string(b) != "file" {
			t.Errorf("%s: %q, %v", c.subpath, b, err)
		}
	}
	pinned := func() int {
		all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.o.RunDir))
		ok(t, err)
		return len(all)
	}
	if n := pinned(); n != 6 {
		t.Errorf("%d parts are mounted", n)
	}
	// A dead agent's are unmounted by the next one, and nothing in them is removed.
	_, err := Open(s.o)
	if ok(t, err); pinned() != 0 {
		t.Errorf("%d parts are mounted", pinned())
	}
	if b, err := os.ReadFile(base + "/dir/file"); string(b) != "file" {
		t.Errorf("%q, %v", b, err)
	}
	ok(t, s.Unpin("one"))
	ok(t, s.Unpin("nobody"))
}

// A container that swaps a directory and a symbolic link to the host never has a start be
// given what is outside.
func TestAPartOfAVolumeThatIsSwappedMeanwhile(t *testing.T) {
	s := open(t)
	v := volumeOf("data")
	ok(t, s.Use(t.Context(), "one", v))
	base, outside := s.Path(v.ID), t.TempDir()
	write(t, base+"/dir/sub/who", "inside")
	write(t, outside+"/sub/who", "outside")
	ok(t, os.Symlink(outside, base+"/link"))
	over := make(chan struct{})
	swapped := make(chan struct{})
	go func() {
		defer close(swapped)
		for {
			select {
			case <-over:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, base+"/dir", unix.AT_FDCWD, base+"/link", unix.RENAME_EXCHANGE)
			}
		}
	}()
	inside, refusals := 0, 0
	for i := range 2000 {
		at, err := s.Pin("one", i%4, v, "dir/sub")
		if err != nil {
			refusals++
			continue
		}
		b, err := os.ReadFile(at + "/who")
		if string(b) != "inside" {
			t.Fatalf("a container is given %q, %v", b, err)
		}
		inside++
		ok(t, s.Unpin("one"))
	}
	close(over)
	<-swapped
	if inside == 0 || refusals == 0 {
		t.Errorf("%d times inside, %d refusals: there was no race", inside, refusals)
	}
}
