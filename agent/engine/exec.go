package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// execution is a process beside a task's own. It is known to the agent that made
// it, and forgotten with the attempt.
type execution struct {
	id, taskID string
	o          container.ExecCreateRequest
	done       chan struct{} // closed when its end is known

	mu      sync.Mutex // guards the fields below
	started bool
	p       client.Process
	pid     int
	code    *int
}

// ExecCreate implements task.Engine.
func (e *Engine) ExecCreate(ctx context.Context, id, execID string, o container.ExecCreateRequest) error {
	if err := e.mustRun(ctx, id); err != nil {
		return err
	}
	if len(o.Cmd) == 0 {
		return refused("no exec command specified")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.execs[execID] == nil {
		e.execs[execID] = &execution{id: execID, taskID: id, o: o, done: make(chan struct{})}
		e.o.Event(id, "exec_create: "+strings.Join(o.Cmd, " "), map[string]string{"execID": execID})
	}
	return nil
}

func (e *Engine) mustRun(_ context.Context, id string) error {
	a, err := e.readAttempt(id)
	if err != nil {
		return err
	}
	x, err := e.readExit(id, a.Number)
	if err != nil {
		return err
	}
	if a.Number == 0 || x != nil {
		return fmt.Errorf("%s: %w", short(id), task.ErrNotRunning)
	}
	return nil
}

func (e *Engine) execution(id, execID string) (*execution, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.execs[execID]
	if x == nil || id != "" && x.taskID != id {
		return nil, fmt.Errorf("exec %s: %w", short(execID), task.ErrNotFound)
	}
	return x, nil
}

func (e *Engine) forgetExecs(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, x := range e.execs {
		if x.taskID == id {
			delete(e.execs, k)
		}
	}
}

// ExecStart implements task.Engine.
func (e *Engine) ExecStart(ctx context.Context, id, execID string, attach bool, width, height uint32) (task.Stream, error) {
	x, err := e.execution(id, execID)
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.started {
		return nil, fmt.Errorf("exec %s was started before: %w", short(execID), task.ErrNotRunning)
	}
	ctx = e.ctx(ctx)
	ctr, err := e.c.LoadContainer(ctx, x.taskID)
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", short(x.taskID), task.ErrNotFound)
	}
	t, err := ctr.Task(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", short(x.taskID), task.ErrNotRunning)
	}
	ps, err := e.processSpec(ctx, ctr, t, x, width, height)
	if err != nil {
		return nil, err
	}
	sock := e.o.execSocket(execID)
	url := shimapi.ExecIO{Socket: sock, Attach: attach, Stdin: attach && x.o.AttachStdin, TTY: x.o.Tty}.URL()
	p, err := t.Exec(ctx, execID, ps, func(string) (cio.IO, error) { return stdio{url: url, tty: x.o.Tty}, nil })
	if err != nil {
		return nil, startError("exec", x.o.Cmd[0], err)
	}
	x.started = true
	st, err := e.run(ctx, x, p, sock, attach)
	if err != nil {
		code := 126
		var se *task.StartError
		if errors.As(err, &se) && se.Code > 125 {
			code = se.Code
		}
		x.code = &code
		close(x.done)
		_, derr := p.Delete(context.WithoutCancel(ctx), client.WithProcessKill)
		if derr != nil && !notFound(derr) {
			err = errors.Join(err, derr)
		}
		return nil, err
	}
	return st, nil
}

// run starts p with its streams connected. Called with x.mu held.
func (e *Engine) run(ctx context.Context, x *execution, p client.Process, sock string, attach bool) (task.Stream, error) {
	defer func() { _ = os.Remove(sock) }()
	var c net.Conn
	if attach {
		var err error
		if c, err = net.Dial("unix", sock); err != nil {
			return nil, fmt.Errorf("connecting to the streams of exec %s: %w", short(x.id), err)
		}
	}
	wctx := context.WithoutCancel(ctx)
	ended, err := p.Wait(wctx)
	if err == nil {
		err = p.Start(ctx)
	}
	if err != nil {
		if c != nil {
			_ = c.Close()
		}
		return nil, startError("exec", x.o.Cmd[0], err)
	}
	x.p, x.pid = p, int(p.Pid())
	go func() {
		s := <-ended
		code := int(s.ExitCode())
		_, _ = p.Delete(wctx)
		x.mu.Lock()
		x.code = &code
		x.mu.Unlock()
		close(x.done)
		e.o.Event(x.taskID, "exec_die", map[string]string{"execID": x.id, "exitCode": strconv.Itoa(code)})
	}()
	e.o.Event(x.taskID, "exec_start: "+strings.Join(x.o.Cmd, " "), map[string]string{"execID": x.id})
	if c == nil {
		return nil, nil
	}
	return &execStream{Conn: c, x: x}, nil
}

// processSpec is the container's own process with what the exec changes.
func (e *Engine) processSpec(ctx context.Context, ctr client.Container, t client.Task, x *execution, width, height uint32) (*specs.Process, error) {
	spec, err := ctr.Spec(ctx)
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", short(x.taskID), err)
	}
	p := *spec.Process
	p.Args, p.Terminal = x.o.Cmd, x.o.Tty
	p.Env = mergeEnv(p.Env, x.o.Env)
	if x.o.Tty {
		p.Env = mergeEnv([]string{"TERM=xterm"}, p.Env)
	}
	if x.o.WorkingDir != "" {
		p.Cwd = x.o.WorkingDir
	}
	if x.o.ConsoleSize != nil && width == 0 {
		height, width = uint32(x.o.ConsoleSize[0]), uint32(x.o.ConsoleSize[1])
	}
	p.ConsoleSize = nil
	if x.o.Tty && width > 0 && height > 0 {
		p.ConsoleSize = &specs.Box{Width: uint(width), Height: uint(height)}
	}
	u, err := userIn(int(t.Pid()), x.o.User) // for none, too: it says whether processes can start
	if err != nil {
		return nil, err
	}
	if x.o.User != "" {
		p.User = u
	}
	if x.o.Privileged {
		b, _ := json.Marshal(allCapabilities())
		p.Capabilities = &specs.LinuxCapabilities{}
		_ = json.Unmarshal([]byte(fmt.Sprintf(`{"bounding":%s,"effective":%s,"permitted":%s}`, b, b, b)), p.Capabilities)
	}
	return &p, nil
}

// execStream is an exec's socket; behind its end comes the exit.
type execStream struct {
	net.Conn
	x    *execution
	tail []byte
	over bool
}

func (s *execStream) Read(p []byte) (int, error) {
	if !s.over {
		n, err := s.Conn.Read(p)
		if n > 0 || err == nil {
			return n, nil
		}
		if !errors.Is(err, io.EOF) {
			return 0, err
		}
		select { // the process may live on with its output closed
		case <-s.x.done:
		case <-time.After(2 * time.Second):
			return 0, io.EOF
		}
		s.over = true
		s.x.mu.Lock()
		code := s.x.code
		s.x.mu.Unlock()
		if code != nil {
			if s.tail, err = exitFrame(&dv1.Exit{Code: int32(*code), At: time.Now().UnixNano()}); err != nil {
				return 0, err
			}
		}
	}
	if len(s.tail) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.tail)
	s.tail = s.tail[n:]
	return n, nil
}

func (s *execStream) Write(p []byte) (int, error) { return writeInput(s.Conn, p) }

func (s *execStream) CloseWrite() error {
	_, err := s.Conn.Write(make([]byte, 4))
	return err
}

// ExecResize implements task.Engine.
func (e *Engine) ExecResize(ctx context.Context, id, execID string, width, height uint32) error {
	x, err := e.execution(id, execID)
	if err != nil {
		return err
	}
	x.mu.Lock()
	p, ended := x.p, x.code != nil
	x.mu.Unlock()
	if p == nil || ended {
		return fmt.Errorf("exec %s: %w", short(execID), task.ErrNotRunning)
	}
	if err := p.Resize(e.ctx(ctx), width, height); err != nil {
		return fmt.Errorf("resizing the terminal of exec %s: %w", short(execID), err)
	}
	return nil
}

// ExecInspect implements task.Engine.
func (e *Engine) ExecInspect(_ context.Context, id, execID string) (task.ExecState, error) {
	x, err := e.execution(id, execID)
	if err != nil {
		return task.ExecState{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return task.ExecState{ID: x.id, TaskID: x.taskID, Running: x.started && x.code == nil, ExitCode: x.code, Pid: x.pid, Options: x.o}, nil
}
