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
	"sync/atomic"
	"time"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/failpoint"
)

// keepExecs is how long an exec can be inspected after its end, as in docker.
const keepExecs = 5 * time.Minute

// execution is a process beside a task's own. It is known only to the agent that created
// it, and forgotten with the attempt, or keepExecs after its end.
type execution struct {
	id, taskID string
	o          container.ExecCreateRequest
	ended      atomic.Int64 // Unix nanoseconds; 0: it may be running

	mu      sync.Mutex // guards the fields below
	started bool
	p       *process // nil: not started, or in vain
	pid     int
	code    *int
}

// ExecCreate implements task.Streams.
func (e *Engine) ExecCreate(ctx context.Context, id, execID string, o container.ExecCreateRequest) error {
	if err := e.mustRun(ctx, id); err != nil {
		return err
	}
	if len(o.Cmd) == 0 {
		return task.Refuse("no exec command specified")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, x := range e.execs {
		if x.expired() {
			delete(e.execs, k)
		}
	}
	if e.execs[execID] == nil {
		e.execs[execID] = &execution{id: execID, taskID: id, o: o}
		e.o.Event(id, "exec_create: "+strings.Join(o.Cmd, " "), map[string]string{"execID": execID})
	}
	return nil
}

func (e *Engine) mustRun(_ context.Context, id string) error {
	a, err := e.readAttempt(id)
	if err != nil {
		return err
	}
	x, err := e.readExit(id, a.life())
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
	if x == nil || x.expired() || id != "" && x.taskID != id {
		return nil, fmt.Errorf("exec %s: %w", short(execID), task.ErrNotFound)
	}
	return x, nil
}

func (x *execution) expired() bool {
	at := x.ended.Load()
	return at > 0 && time.Since(time.Unix(0, at)) > keepExecs
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

// ExecStart implements task.Streams.
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
	own, err := e.process(ctx, x.taskID)
	if err != nil {
		return nil, err
	}
	if own == nil {
		return nil, fmt.Errorf("exec in %s: %w", short(x.taskID), task.ErrNotRunning)
	}
	ps, err := e.processSpec(ctx, int(own.Pid), x, width, height)
	if err != nil {
		return nil, err
	}
	sock := e.o.execSocket(execID)
	url := shimapi.ExecIO{Socket: sock, Attach: attach, Stdin: attach && x.o.AttachStdin, TTY: x.o.Tty}.URL()
	if x.o.Privileged {
		if err := os.WriteFile(e.o.privilegedFile(x.taskID), nil, 0o600); err != nil {
			return nil, fmt.Errorf("exec in %s: %w", short(x.taskID), err)
		}
	}
	defer func() { _ = os.Remove(sock) }() // connected to by then, or in vain
	failpoint.Here("engine.exec.before")
	// A client that leaves meanwhile must not leave an exec that nobody starts or deletes.
	_, err = e.tasks.Exec(context.WithoutCancel(ctx), &taskspb.ExecProcessRequest{ContainerID: x.taskID, ExecID: execID, Terminal: x.o.Tty, Stdout: url, Spec: ps})
	if err != nil {
		return nil, startError("exec", x.o.Cmd[0], errgrpc.ToNative(err))
	}
	p := process{e.tasks, x.taskID, execID}
	x.started = true
	st, err := e.run(ctx, x, p, sock, attach)
	if err != nil {
		code := 126
		var se *task.StartError
		if errors.As(err, &se) && se.Code > 125 {
			code = se.Code
		}
		x.code = &code
		x.ended.Store(time.Now().UnixNano())
		if derr := p.delete(context.WithoutCancel(ctx), true); derr != nil && !notFound(derr) {
			err = errors.Join(err, derr)
		}
		return nil, err
	}
	return st, nil
}

// run starts p with its streams connected. It must be called with x.mu held.
func (e *Engine) run(ctx context.Context, x *execution, p process, sock string, attach bool) (task.Stream, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", sock)
	if err != nil {
		return nil, fmt.Errorf("connecting to the streams of exec %s: %w", short(x.id), err)
	}
	failpoint.Here("engine.execstart.before")
	pid, err := p.start(context.WithoutCancel(ctx)) // else nobody knows whether it runs
	if err != nil {
		_ = c.Close()
		return nil, startError("exec", x.o.Cmd[0], errgrpc.ToNative(err))
	}
	failpoint.Here("engine.execstart.after")
	x.p, x.pid = &p, int(pid)
	e.o.Event(x.taskID, "exec_start: "+strings.Join(x.o.Cmd, " "), map[string]string{"execID": x.id})
	r, w := io.Pipe()
	e.wg.Go(func() { e.accompany(x, p, c, w) })
	if !attach {
		_ = r.Close()
		return nil, nil
	}
	return &execStream{PipeReader: r, c: c.(*net.UnixConn)}, nil
}

// accompany relays what an exec's shim sends until it ends, and then deletes the exec.
func (e *Engine) accompany(x *execution, p process, c net.Conn, to *io.PipeWriter) {
	stop := context.AfterFunc(e.life, func() { _, _ = c.Close(), to.Close() })
	defer stop()
	exit, err := handOn(c, to)
	if err != nil { // the shim is from an earlier build, or was killed
		exit = e.execExit(p)
	}
	if e.life.Err() != nil {
		return
	}
	code := int(exit.Code)
	x.mu.Lock()
	x.code = &code
	x.mu.Unlock()
	x.ended.Store(time.Now().UnixNano())
	e.o.Event(x.taskID, "exec_die", map[string]string{"execID": x.id, "exitCode": strconv.Itoa(code)})
	if b, err := exitFrame(exit); err == nil {
		_, _ = to.Write(b) // a client that left gets nothing
	}
	_, _ = c.Close(), to.Close()
	e.retry(func() error { return p.delete(e.ctx(e.life), false) })
}

// handOn relays frames up to the one with the exit. A reader that left does not block
// the process: its output is still read.
func handOn(from io.Reader, to io.Writer) (*dv1.Exit, error) {
	for fr := bulk.NewFrameReader(from); ; {
		kind, b, err := fr.Next()
		if err != nil {
			return nil, err
		}
		if kind == bulk.FrameExit {
			x := &dv1.Exit{}
			return x, protojson.Unmarshal(b, x)
		}
		_ = bulk.WriteFrame(to, kind, b)
	}
}

// execExit asks the shim for an exec's exit: it keeps it until the exec is deleted.
func (e *Engine) execExit(p process) *dv1.Exit {
	x := &dv1.Exit{Code: lostCode, At: time.Now().UnixNano()}
	e.retry(func() error {
		ended, err := p.wait(e.ctx(e.life))
		if err == nil {
			x.Code, x.At = int32(ended.ExitStatus), ended.ExitedAt.AsTime().UnixNano()
		}
		return err
	})
	return x
}

// retry calls f until it succeeds, the process is gone, or the engine is closed.
func (e *Engine) retry(f func() error) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		if err := f(); err == nil || notFound(err) {
			return
		}
		select {
		case <-time.After(wait):
		case <-e.life.Done():
			return
		}
	}
}

// processSpec is the container's own process with the changes that the exec asks for.
func (e *Engine) processSpec(ctx context.Context, pid int, x *execution, width, height uint32) (*anypb.Any, error) {
	own, err := e.runningSpec(ctx, x.taskID)
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", short(x.taskID), err)
	}
	if own.Process == nil {
		return nil, fmt.Errorf("exec in %s: its spec has no process", short(x.taskID))
	}
	p := *own.Process
	p.Args, p.Terminal = x.o.Cmd, x.o.Tty
	p.Env = spec.MergeEnv(p.Env, x.o.Env)
	if x.o.Tty {
		p.Env = spec.MergeEnv([]string{"TERM=xterm"}, p.Env)
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
	u, err := userIn(pid, x.o.User) // even without a user: it checks that processes can be started
	if err != nil {
		return nil, err
	}
	if x.o.User != "" {
		p.User = u
	}
	if x.o.Privileged {
		p.Capabilities = spec.AllCapabilities()
	}
	return typeurl.MarshalAnyToProto(&p)
}

// runningSpec is the spec of a container's current attempt.
func (e *Engine) runningSpec(ctx context.Context, id string) (*specs.Spec, error) {
	b, err := e.tasks.Spec(id)
	if errors.Is(err, os.ErrNotExist) { // started through containerd, by an earlier agent
		c, err := e.c.ContainerService().Get(ctx, id)
		if err != nil {
			return nil, err
		}
		b = c.Spec.GetValue()
	} else if err != nil {
		return nil, err
	}
	s := &specs.Spec{}
	return s, json.Unmarshal(b, s)
}

// execStream is an exec's frames and its input.
type execStream struct {
	*io.PipeReader
	c *net.UnixConn
}

func (s *execStream) Write(p []byte) (int, error) { return writeInput(s.c, p) }

func (s *execStream) CloseWrite() error {
	_, err := s.c.Write(make([]byte, 4))
	return err
}

// Close ends the input, even during a blocked write. The exit still arrives.
func (s *execStream) Close() error {
	_, _ = s.c.SetWriteDeadline(time.Unix(1, 0)), s.c.CloseWrite() // may be closed already
	return s.PipeReader.Close()
}

// ExecResize implements task.Streams.
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
	if err := p.resize(e.ctx(ctx), width, height); err != nil {
		return fmt.Errorf("resizing the terminal of exec %s: %w", short(execID), err)
	}
	return nil
}

// ExecInspect implements task.Streams.
func (e *Engine) ExecInspect(_ context.Context, id, execID string) (task.ExecState, error) {
	x, err := e.execution(id, execID)
	if err != nil {
		return task.ExecState{}, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return task.ExecState{ID: x.id, TaskID: x.taskID, Running: x.started && x.code == nil, ExitCode: x.code, Pid: x.pid, Options: x.o}, nil
}
