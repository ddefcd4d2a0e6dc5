package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// ends are the shim's ends of a process's streams.
type ends interface {
	// stdout, stderr and stdin return the shim's end, and may block until the process has
	// its own. stderr is part of stdout on a terminal.
	stdout() (io.ReadCloser, error)
	stderr() (io.ReadCloser, error)
	stdin() (io.WriteCloser, error)
	// paths are what containerd's task service is told: "" for a stream that does not
	// exist, or that is no file.
	paths() (in, out, err string)
	// release unblocks whoever waits for an end that will never come. It may be called
	// more than once.
	release()
}

// fifos are named pipes in a directory, which containerd's task service opens, and copies
// to and from what the runtime gets.
type fifos struct {
	dir        string
	input, tty bool

	mu       sync.Mutex // guards released, and that nobody opens after it
	released bool
	opening  sync.WaitGroup // those who open a fifo now
}

func newFifos(dir string, input, tty bool) (*fifos, error) {
	f := &fifos{dir: dir, input: input, tty: tty}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, err
	}
	for _, p := range f.all() {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if err := syscall.Mkfifo(p, 0o600); err != nil {
			return nil, fmt.Errorf("making fifo %s: %w", p, err)
		}
	}
	return f, nil
}

func (f *fifos) paths() (in, out, err string) {
	if f.input {
		in = filepath.Join(f.dir, "stdin")
	}
	if !f.tty {
		err = filepath.Join(f.dir, "stderr")
	}
	return in, filepath.Join(f.dir, "stdout"), err
}

func (f *fifos) all() (paths []string) {
	in, out, errp := f.paths()
	for _, p := range []string{in, out, errp} {
		if p != "" {
			paths = append(paths, p)
		}
	}
	return paths
}

func (f *fifos) stdout() (io.ReadCloser, error) { return f.open("stdout", os.O_RDONLY) }
func (f *fifos) stderr() (io.ReadCloser, error) { return f.open("stderr", os.O_RDONLY) }
func (f *fifos) stdin() (io.WriteCloser, error) { return f.open("stdin", os.O_WRONLY) }

// open blocks until the other end is opened too, or the fifos are released.
func (f *fifos) open(name string, flag int) (*os.File, error) {
	f.mu.Lock()
	if f.released {
		f.mu.Unlock()
		return nil, os.ErrClosed
	}
	f.opening.Add(1)
	f.mu.Unlock()
	defer f.opening.Done()
	return os.OpenFile(filepath.Join(f.dir, name), flag, 0)
}

// release also removes the fifos. It keeps both ends of each open until nobody is opening
// one: whoever has found its name, and does not wait yet, would wait for ever.
func (f *fifos) release() {
	f.mu.Lock()
	again := f.released
	f.released = true
	f.mu.Unlock()
	if again {
		return
	}
	held := true
	for _, p := range f.all() {
		fd, err := syscall.Open(p, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		_ = os.Remove(p)
		if err == nil {
			defer func() { _ = syscall.Close(fd) }()
		}
		held = held && err == nil
	}
	if held { // else who waits is not let go, and not waited for
		f.opening.Wait()
	}
}
