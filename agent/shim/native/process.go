//go:build cgo

package native

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/log"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/utils"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// process is the first process of a container, or an exec.
type process struct {
	id       string // of an exec, "" for the first process
	spec     *specs.Process
	stdin    string // addresses as requested, which State reports
	stdout   string
	stderr   string
	terminal bool

	starting sync.Mutex // held during Start, up to its event

	exited chan struct{} // closed when it has ended, or never began

	mu  sync.Mutex // guards the fields below
	st  state
	lp  *libcontainer.Process // nil until it was created
	at  int                   // its pid, 0 until it was created
	tty *os.File              // nil without a terminal
}

// state is a process's state: created, running or stopped.
type state struct {
	status task.Status
	code   uint32
	at     time.Time // when it ended
}

func newExec(r *taskAPI.ExecProcessRequest) (*process, error) {
	p := &process{id: r.ExecID, spec: &specs.Process{}, stdin: r.Stdin, stdout: r.Stdout, stderr: r.Stderr, terminal: r.Terminal,
		exited: make(chan struct{}), st: state{status: task.Status_CREATED}}
	if err := json.Unmarshal(r.Spec.GetValue(), p.spec); err != nil {
		return nil, fmt.Errorf("reading the spec of an exec: %w", err)
	}
	return p, nil
}

func (p *process) state() state {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.st
}

func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at
}

// errFinished reports a process that has ended and was reaped.
var errFinished = os.ErrProcessDone

func (p *process) signal(sig unix.Signal) error {
	p.mu.Lock()
	lp := p.lp
	p.mu.Unlock()
	return lp.Signal(sig)
}

func (p *process) set(s task.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.st.status != task.Status_STOPPED {
		p.st.status = s
	}
}

// stopped records the end of the process.
func (p *process) stopped(code uint32, at time.Time) {
	p.mu.Lock()
	p.st = state{status: task.Status_STOPPED, code: code, at: at}
	p.mu.Unlock()
	close(p.exited)
}

// create creates the process with its streams. The first process of a container then
// waits for libcontainer's Exec, an exec runs.
func (p *process) create(c *libcontainer.Container, o *orphans, io Stdio) error {
	defer io.close()
	lp, err := newProcess(p.spec)
	if err != nil {
		return err
	}
	lp.Init = p.id == ""
	var console *os.File
	if io.Terminal != nil {
		var child *os.File
		if console, child, err = utils.NewSockPair("console"); err != nil {
			return fmt.Errorf("creating a terminal: %w", err)
		}
		defer func() { _, _ = console.Close(), child.Close() }()
		lp.ConsoleSocket = child
	} else {
		io.give(lp)
	}
	started := o.starting()
	err = c.Start(lp)
	pid := 0
	if err == nil {
		pid, err = lp.Pid()
	}
	started(pid)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.lp, p.at = lp, pid
	p.mu.Unlock()
	if console == nil {
		return nil
	}
	master, err := receive(console)
	if err != nil {
		return fmt.Errorf("receiving the terminal: %w", err)
	}
	p.mu.Lock()
	p.tty = master
	p.mu.Unlock()
	io.Terminal(master)
	return nil
}

// wait blocks until the process has ended, and reaps it.
func (p *process) wait(o *orphans) (code uint32, at time.Time) {
	p.mu.Lock()
	lp, pid := p.lp, p.at
	p.mu.Unlock()
	st, err := lp.Wait()
	at = time.Now()
	o.waited(pid)
	if st == nil { // only another reaper in this process can cause that
		log.L.WithError(err).Error("an exit was lost")
		return 128 + uint32(unix.SIGKILL), at
	}
	if ws := st.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + uint32(ws.Signal()), at
	}
	return uint32(st.ExitCode()), at
}

// resize sets the size of the process's terminal; without one it does nothing.
func (p *process) resize(width, height uint32) error {
	p.mu.Lock()
	tty := p.tty
	p.mu.Unlock()
	if tty == nil {
		return nil
	}
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	size := &unix.Winsize{Col: uint16(width), Row: uint16(height)}
	if cerr := raw.Control(func(fd uintptr) { err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) }); cerr != nil {
		return nil //nolint:nilerr // the terminal is closed, since its process has ended
	}
	return err
}

// receive reads a terminal's master off a socket.
func receive(socket *os.File) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	name := make([]byte, 4096)
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("expected one control message, got %d (%w)", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("expected one descriptor, got %d (%w)", len(fds), err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that closing ends a read
		_ = unix.Close(fds[0])
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}

// give hands the streams to a process.
func (s Stdio) give(p *libcontainer.Process) {
	if s.Stdin != nil {
		p.Stdin = s.Stdin
	}
	if s.Stdout != nil {
		p.Stdout = s.Stdout
	}
	if s.Stderr != nil {
		p.Stderr = s.Stderr
	}
}

func (s Stdio) close() {
	for _, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}
