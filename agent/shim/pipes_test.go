package shim

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// blocks reports whether a descriptor blocks, without changing that.
func blocks(t *testing.T, f *os.File) (is bool) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		is = err == nil && flags&unix.O_NONBLOCK == 0
	}); err != nil {
		t.Fatal(err)
	}
	return is
}

// A process gets pipes that block, and the shim's ends can be closed under a reader.
func TestPipesOfAProcess(t *testing.T) {
	p, err := newPipes(true, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.release()
	for name, f := range map[string]*os.File{"stdin": p.process.Stdin, "stdout": p.process.Stdout, "stderr": p.process.Stderr} {
		if !blocks(t, f) {
			t.Errorf("the process's %s does not block", name)
		}
	}
	for name, f := range map[string]*os.File{"stdin": p.in, "stdout": p.out, "stderr": p.err} {
		if blocks(t, f) {
			t.Errorf("the shim's %s blocks", name)
		}
	}
	in, err := p.stdin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("typed")); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(p.process.Stdin); err != nil || string(b) != "typed" {
		t.Errorf("the process read %q (%v)", b, err)
	}
	for what, open := range map[string]func() (io.ReadCloser, error){"stdout": p.stdout, "stderr": p.stderr} {
		r, err := open()
		if err != nil {
			t.Fatal(err)
		}
		w := map[string]*os.File{"stdout": p.process.Stdout, "stderr": p.process.Stderr}[what]
		if _, err := w.WriteString(what); err != nil {
			t.Fatal(err)
		}
		_ = w.Close()
		if b, err := io.ReadAll(r); err != nil || string(b) != what {
			t.Errorf("%s: %q (%v)", what, b, err)
		}
	}
}

// Without input, a process gets none of the shim's.
func TestPipesWithoutInput(t *testing.T) {
	p, err := newPipes(false, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.release()
	if p.process.Stdin != nil || p.in != nil {
		t.Error("there is an input")
	}
}

// A process that never comes leaves nobody who waits for it, however often they are told.
func TestPipesThatAreReleased(t *testing.T) {
	for _, tty := range []bool{false, true} {
		p, err := newPipes(true, tty)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{}, 2)
		go func() { drain(p.stdout, func([]byte) {}); ended <- struct{}{} }()
		go func() {
			if f, err := p.stdin(); err == nil {
				for err == nil {
					_, err = f.Write(make([]byte, 1<<16))
				}
			}
			ended <- struct{}{}
		}()
		p.release()
		p.release()
		for range 2 {
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Fatalf("with a terminal %v, somebody waits", tty)
			}
		}
	}
}

// A terminal's master is all of its streams; one that comes too late is closed.
func TestPipesOfATerminal(t *testing.T) {
	p, err := newPipes(true, true)
	if err != nil {
		t.Fatal(err)
	}
	master, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	go p.process.Terminal(master)
	out, err := p.stdout()
	if err != nil || out != io.ReadCloser(master) {
		t.Errorf("stdout is %v (%v)", out, err)
	}
	if in, err := p.stdin(); err != nil || in != io.WriteCloser(master) {
		t.Errorf("stdin is %v (%v)", in, err)
	}
	late, err := newPipes(false, true)
	if err != nil {
		t.Fatal(err)
	}
	late.release()
	late.process.Terminal(master)
	if _, err := master.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a late terminal is open: %v", err)
	}
}
