package filters

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/drover/drover/pkg/testenv"
)

func key(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

// What was kept is returned as it was, and for its own key only.
func TestWhatIsKept(t *testing.T) {
	testenv.Root(t)
	s := store{filepath.Join(t.TempDir(), "a", "seccomp")}
	if b := s.get(key("a")); b != nil {
		t.Errorf("an empty store has %q", b)
	}
	for _, k := range []string{"a", "b"} {
		if err := s.put(key(k), []byte("program "+k)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.put(key("b"), []byte("program c")); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{"a": "program a", "b": "program c", "c": ""} {
		if b := s.get(key(k)); string(b) != want {
			t.Errorf("%s: %q, want %q", k, b, want)
		}
	}
	if i, err := os.Stat(s.dir); err != nil || i.Mode().Perm() != 0o700 {
		t.Errorf("its directory has mode %v (%v)", i.Mode(), err)
	}
}

// A filter decides what a container may do: nothing is taken that somebody else may have
// written, that is damaged, or that is another one's.
func TestWhatIsNotTrusted(t *testing.T) {
	testenv.Root(t)
	for name, spoil := range map[string]func(dir, file string) error{
		"a byte changed": func(_, file string) error {
			b, err := os.ReadFile(file)
			if err == nil {
				b[len(b)-1] ^= 1
				err = os.WriteFile(file, b, 0o600)
			}
			return err
		},
		"cut off":                     func(_, file string) error { return os.Truncate(file, 40) },
		"shorter than its sum":        func(_, file string) error { return os.Truncate(file, 7) },
		"empty":                       func(_, file string) error { return os.Truncate(file, 0) },
		"far too long":                func(_, file string) error { return os.Truncate(file, maxSize+1) },
		"another owner":               func(_, file string) error { return os.Chown(file, 1, 0) },
		"written by a group":          func(_, file string) error { return os.Chmod(file, 0o620) },
		"written by all":              func(_, file string) error { return os.Chmod(file, 0o602) },
		"the directory's owner":       func(dir, _ string) error { return os.Chown(dir, 1, 0) },
		"the directory open to all":   func(dir, _ string) error { return os.Chmod(dir, 0o777) },
		"the directory open to group": func(dir, _ string) error { return os.Chmod(dir, 0o770) },
		"another key's file": func(dir, file string) error {
			s := store{dir}
			if err := s.put(key("other"), []byte("other")); err != nil {
				return err
			}
			return os.Rename(s.file(key("other")), file)
		},
		"a link": func(_, file string) error {
			if err := os.Rename(file, file+".moved"); err != nil {
				return err
			}
			return os.Symlink(file+".moved", file)
		},
		"a link to the directory": func(dir, _ string) error {
			if err := os.Rename(dir, dir+".moved"); err != nil {
				return err
			}
			return os.Symlink(dir+".moved", dir)
		},
		"a directory": func(_, file string) error { _ = os.Remove(file); return os.Mkdir(file, 0o700) },
	} {
		s := store{filepath.Join(t.TempDir(), "seccomp")}
		if err := s.put(key("a"), []byte("program")); err != nil {
			t.Fatal(err)
		}
		if b := s.get(key("a")); string(b) != "program" {
			t.Fatalf("%s: %q before", name, b)
		}
		if err := spoil(s.dir, s.file(key("a"))); err != nil {
			t.Fatal(err)
		}
		if b := s.get(key("a")); b != nil {
			t.Errorf("%s: got %q", name, b)
		}
	}
}

// It does not grow without bound, nor lose what is in use, nor is half a file ever read.
func TestManyAtOnce(t *testing.T) {
	testenv.Root(t)
	s := store{filepath.Join(t.TempDir(), "seccomp")}
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for i := range 40 {
				k := fmt.Sprint(w%4, " ", i)
				want := bytes.Repeat([]byte(k), 1000)
				if err := s.put(key(k), want); err != nil {
					t.Error(err)
				}
				if b := s.get(key(k)); b != nil && !bytes.Equal(b, want) {
					t.Errorf("%s: %d bytes of something else", k, len(b))
				}
			}
		})
	}
	all.Wait()
	if err := s.put(key("last"), []byte("last")); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(s.dir)
	if err != nil || len(left) > maxKept {
		t.Errorf("%d files (%v)", len(left), err)
	}
	if b := s.get(key("last")); string(b) != "last" {
		t.Errorf("the newest one is %q", b)
	}
}
