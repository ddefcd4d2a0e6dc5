package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

func (f *fifos) stdout() (io.ReadCloser, error) {
	return os.OpenFile(filepath.Join(f.dir, "stdout"), os.O_RDONLY, 0)
}

func (f *fifos) stderr() (io.ReadCloser, error) {
	return os.OpenFile(filepath.Join(f.dir, "stderr"), os.O_RDONLY, 0)
}

func (f *fifos) stdin() (io.WriteCloser, error) {
	return os.OpenFile(filepath.Join(f.dir, "stdin"), os.O_WRONLY, 0)
}

// release also removes the fifos, so that whoever comes later does not wait either.
func (f *fifos) release() {
	for _, p := range f.all() {
		fd, err := syscall.Open(p, syscall.O_RDWR|syscall.O_NONBLOCK, 0)
		_ = os.Remove(p)
		if err == nil {
			_ = syscall.Close(fd)
		}
	}
}
