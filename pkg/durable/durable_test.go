package durable

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
)

// TestMain is also another process that locks, or writes until it is killed.
func TestMain(m *testing.M) {
	switch dir := os.Getenv("DURABLE_DIR"); os.Getenv("DURABLE_DO") {
	case "lock":
		if _, err := Lock(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("locked")
		select {}
	case "write":
		for i := byte(0); ; i++ {
			if err := WriteFile(filepath.Join(dir, "f"), bytes.Repeat([]byte{i}, 64<<10), 0o600); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println("written")
		}
	}
	os.Exit(m.Run())
}

// other starts this binary as another process, and returns it once it has said its
// first line.
func other(t *testing.T, do, dir string) (c *exec.Cmd, said string) {
	t.Helper()
	c = exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "DURABLE_DO="+do, "DURABLE_DIR="+dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return c, strings.TrimSpace(line)
}

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		out = append(out, e.Name())
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The mode is the caller's from the beginning of the file's life under its name, whatever
// the umask and whatever was there before.
func TestAFileHasItsContentAndMode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for i, mode := range []os.FileMode{0o600, 0o644, 0o755, 0o666, 0o400, 0o600} {
		data := strings.Repeat("x", i)
		if err := WriteFile(path, []byte(data), mode); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != mode || read(t, path) != data {
			t.Errorf("%v, %q: %v, %v", mode, data, st.Mode(), err)
		}
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("it left %v", got)
	}
}

// A link that others hold to the old file, and readers that have it open, keep the old
// content: a file is replaced, never written to.
func TestAFileIsReplacedNotWrittenTo(t *testing.T) {
	dir := t.TempDir()
	path, link, symlink := filepath.Join(dir, "f"), filepath.Join(dir, "link"), filepath.Join(dir, "symlink")
	if err := errors.Join(WriteFile(path, []byte("old"), 0o600), os.Link(path, link), os.Symlink(link, symlink)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(WriteFile(path, []byte("new"), 0o600), WriteFile(symlink, []byte("newer"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if read(t, path) != "new" || read(t, link) != "old" || read(t, symlink) != "newer" {
		t.Errorf("%q, linked %q, symlinked %q", read(t, path), read(t, link), read(t, symlink))
	}
}

// A disk that takes part of a file only, or no name for it, leaves the old file and
// nothing else.
func TestAFailureLeavesTheOldFile(t *testing.T) {
	signal.Ignore(syscall.SIGXFSZ)
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	limited := was
	limited.Cur = 1024
	for name, c := range map[string]struct {
		prepare func(t *testing.T, path string)
		full    bool
		err     error
	}{
		"the disk is full": {full: true, err: syscall.EFBIG},
		"a directory is there": {prepare: func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
				t.Fatal(err)
			}
		}, err: fs.ErrExist},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "f")
			if err := WriteFile(path, []byte("old"), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.prepare != nil {
				c.prepare(t, path)
			}
			if c.full {
				if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limited); err != nil {
					t.Fatal(err)
				}
			}
			err := WriteFile(path, make([]byte, 4096), 0o600)
			if c.full {
				if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
					t.Fatal(err)
				}
			}
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v, want %v", err, c.err)
			}
			if got := names(t, dir); len(got) != 1 || c.prepare == nil && read(t, path) != "old" {
				t.Errorf("it left %v", got)
			}
		})
	}
	gone := filepath.Join(t.TempDir(), "no", "f")
	if err := WriteFile(gone, nil, 0o600); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), gone) {
		t.Errorf("without its directory: %v", err)
	}
	if err := SyncDir(filepath.Dir(gone)); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), filepath.Dir(gone)) {
		t.Errorf("without its directory: %v", err)
	}
}

// A staged file changes nothing until it is placed, and one that is discarded or can't be
// placed leaves nothing.
func TestAStagedFileTakesItsPlaceLater(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := Stage(path, []byte("first"), 0o644)
	if err != nil || read(t, path) != "old" {
		t.Fatalf("%q, %v", read(t, path), err)
	}
	second, err := Stage(path, []byte("second"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Place(); err != nil || read(t, path) != "second" {
		t.Fatalf("%q, %v", read(t, path), err)
	}
	first.Discard()
	second.Discard() // it has its place
	if got := names(t, dir); len(got) != 1 || read(t, path) != "second" {
		t.Errorf("left are %v, with %q", got, read(t, path))
	}
	third, err := Stage(path, []byte("third"), 0o600)
	if err := errors.Join(err, os.Remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := third.Place(); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("a directory is in its place: %v", err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("it left %v", got)
	}
}

// Whoever reads while others write, and whatever moment a writer is killed at, there is
// one whole file.
func TestThereIsAlwaysOneWholeFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	whole := func(when string) {
		t.Helper()
		if b := read(t, path); len(b) != 64<<10 || strings.Count(b, b[:1]) != len(b) {
			t.Errorf("%s: %d bytes, not of one write", when, len(b))
		}
	}
	for range 5 {
		c, said := other(t, "write", dir)
		if said != "written" {
			t.Fatal(said)
		}
		for range 50 {
			whole("while it is written")
		}
		_ = c.Process.Kill()
		_ = c.Wait()
		whole("after the writer was killed")
	}
	var writers sync.WaitGroup
	for i := range byte(4) {
		writers.Go(func() {
			for range 10 {
				if err := WriteFile(path, bytes.Repeat([]byte{i}, 64<<10), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 50 {
		whole("while several write")
	}
	writers.Wait()
	whole("after several wrote")
}

// One process uses a directory, until it ends in any way.
func TestALockIsOneProcesss(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	c, said := other(t, "lock", dir)
	if said != "locked" {
		t.Fatal(said)
	}
	if unlock, err := Lock(dir); err == nil || err.Error() != "another process is using "+dir {
		t.Errorf("it is locked twice: %v, %v", unlock != nil, err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	unlock, err := Lock(dir)
	if err != nil {
		t.Fatalf("its holder was killed: %v", err)
	}
	if _, err := Lock(dir); err == nil {
		t.Error("one process locked it twice")
	}
	if _, said := other(t, "lock", dir); said != "another process is using "+dir {
		t.Errorf("another process: %s", said)
	}
	unlock()
	if _, said := other(t, "lock", dir); said != "locked" {
		t.Errorf("after it was unlocked: %s", said)
	}
}

// A child that outlives its parent, as containers' daemons do, doesn't hold its lock.
func TestALockIsNotInherited(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = other(t, "write", t.TempDir())
	unlock()
	again, err := Lock(dir)
	if err != nil {
		t.Fatalf("a child holds it: %v", err)
	}
	again()
}

func TestALockThatCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file is locked as a directory: %v", err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "lock"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); err == nil || !strings.Contains(err.Error(), "locking "+dir) {
		t.Errorf("a directory is its lock: %v", err)
	}
}

// A source that breaks off leaves the old file and nothing else.
func TestACopyIsWholeOrNotMade(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	big := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	if err := CopyFile(path, bytes.NewReader(big), 0o755); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("it broke off")
	if err := CopyFile(path, io.MultiReader(bytes.NewReader(big[:100_000]), iotest.ErrReader(broken)), 0o600); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o755 || read(t, path) != string(big) || len(names(t, dir)) != 1 {
		t.Errorf("%v, %v, %v", st, err, names(t, dir))
	}
}
