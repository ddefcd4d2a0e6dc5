package shim

import (
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/shim/native"
)

// pipes are streams whose other ends a process inherits from the shim. With a terminal,
// its master is the shim's end of all of them.
type pipes struct {
	in, out, err *os.File // the shim's ends; nil: none
	process      native.Stdio

	got  chan struct{} // closed when master is set
	gone chan struct{} // closed by release
	once sync.Once

	mu     sync.Mutex // guards the fields below
	master *os.File
	left   bool // released
}

func newPipes(input, tty bool) (*pipes, error) {
	p := &pipes{got: make(chan struct{}), gone: make(chan struct{})}
	if tty {
		p.process.Terminal = p.take
		return p, nil
	}
	var err error
	if p.out, p.process.Stdout, err = pipe(false); err == nil {
		p.err, p.process.Stderr, err = pipe(false)
	}
	if err == nil && input {
		p.process.Stdin, p.in, err = pipe(true)
	}
	if err != nil {
		p.release()
		return nil, err
	}
	return p, nil
}

// pipe returns a pipe whose process end, the reading one with input, blocks as processes
// expect it, while the other one does not, so that closing it ends a read or a write.
func pipe(input bool) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	own := fds[0]
	if input {
		own = fds[1]
	}
	if err := unix.SetNonblock(own, true); err != nil {
		_, _ = unix.Close(fds[0]), unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), "|0"), os.NewFile(uintptr(fds[1]), "|1"), nil
}

// take gets the terminal's master, when the process has been created.
func (p *pipes) take(master *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left {
		_ = master.Close()
		return
	}
	p.master = master
	close(p.got)
}

func (p *pipes) stdout() (io.ReadCloser, error) {
	if p.process.Terminal == nil {
		return p.out, nil
	}
	return p.terminal()
}

func (p *pipes) stderr() (io.ReadCloser, error) { return p.err, nil }

// stdin returns the terminal where there is one: closing it hangs up.
func (p *pipes) stdin() (io.WriteCloser, error) {
	if p.process.Terminal == nil {
		return p.in, nil
	}
	return p.terminal()
}

func (p *pipes) terminal() (*os.File, error) {
	select {
	case <-p.got:
		return p.master, nil
	case <-p.gone:
		return nil, os.ErrClosed
	}
}

func (*pipes) paths() (in, out, err string) { return "", "", "" }

// release also closes what no process has taken, so that reading ends.
func (p *pipes) release() {
	p.once.Do(func() {
		p.mu.Lock()
		p.left = true
		p.mu.Unlock()
		close(p.gone)
		for _, f := range []*os.File{p.process.Stdin, p.process.Stdout, p.process.Stderr, p.in} {
			if f != nil {
				_ = f.Close()
			}
		}
	})
}
