// Package shim is drover's shim: a task service which itself reads the container's output
// into a log, takes stdin over a socket, and durably records an exit before it reports
// it. It outlives agent and containerd, which start and call it. The container is run by
// agent/shim/native in this process or, where another OCI runtime was asked for, by
// containerd's own task service with that.
package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/drover/drover/agent/shim/native"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/failpoint"
)

// outputWithin bounds how long an exit waits for the last output: processes that left
// the container's namespace may hold its pipes open for ever.
const outputWithin = 3 * time.Second

// maxBehind bounds, in bytes, what an exec may still have in its pipes and in flight
// when it ends: two pipes of at most 1 MiB each, which take turns.
const maxBehind = 4 << 20

// Pauses between attempts to record an exit.
const (
	minPause = 50 * time.Millisecond
	maxPause = 5 * time.Second
)

// service wraps a task service.
type service struct {
	taskAPI.TTRPCTaskService
	name string // of the runtime, in timings
	ends func(dir string, input, tty bool) (ends, error)

	mu    sync.Mutex // guards the fields below
	tasks map[string]*taskIO
	execs map[string]*execIO // by task id / exec id
}

// New returns the task service of the shim whose bundle is the current directory.
func New(ctx context.Context, p shim.Publisher, sd shutdown.Service) (taskAPI.TTRPCTaskService, error) {
	s := &service{tasks: map[string]*taskIO{}, execs: map[string]*execIO{}}
	watched := &publisher{Publisher: p, s: s}
	c, err := shimapi.ReadChoice(".")
	if err != nil {
		return nil, err
	}
	if c.Native() {
		s.name = "container"
		s.ends = func(_ string, input, tty bool) (ends, error) { return newPipes(input, tty) }
		s.TTRPCTaskService, err = native.New(ctx, native.Options{Publisher: watched, Shutdown: sd, Stdio: s.stdio, Filters: c.Filters})
	} else {
		s.name = "runc"
		s.ends = func(dir string, input, tty bool) (ends, error) { return newFifos(dir, input, tty) }
		s.TTRPCTaskService, err = task.NewTaskService(ctx, watched, sd)
	}
	if err != nil {
		return nil, err
	}
	s.TTRPCTaskService = newCollecting(s.TTRPCTaskService)
	return s, followLifeline(ctx, s.TTRPCTaskService, sd)
}

// stdio returns what a process inherits.
func (s *service) stdio(id, exec string) (native.Stdio, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var e ends
	if t := s.tasks[id]; t != nil && exec == "" {
		e = t.ends
	} else if x := s.execs[id+"/"+exec]; x != nil {
		e = x.ends
	}
	p, ok := e.(*pipes)
	if !ok {
		return native.Stdio{}, fmt.Errorf("the streams of %s %s are not this shim's", id, exec)
	}
	return p.process, nil
}

// RegisterTTRPC registers the service with containerd's shim server.
func (s *service) RegisterTTRPC(srv *ttrpc.Server) error {
	taskAPI.RegisterTTRPCTaskService(srv, s)
	return nil
}

func (s *service) Create(ctx context.Context, r *taskAPI.CreateTaskRequest) (*taskAPI.CreateTaskResponse, error) {
	addr, ours, err := shimapi.ParseStdio(r.Stdout)
	if err != nil {
		return nil, err
	}
	if !ours {
		return s.TTRPCTaskService.Create(ctx, r)
	}
	e, err := s.ends(filepath.Join(r.Bundle, "drover"), addr.Stdin, addr.TTY)
	if err != nil {
		return nil, fmt.Errorf("preparing the streams of %s: %w", r.ID, err)
	}
	t, err := newTaskIO(addr, r.Bundle, e, func() { s.closeStdin(r.ID, "") })
	if err != nil {
		e.release()
		return nil, fmt.Errorf("preparing the streams of %s: %w", r.ID, err)
	}
	s.mu.Lock()
	s.tasks[r.ID] = t
	s.mu.Unlock()
	r.Stdin, r.Stdout, r.Stderr = t.paths()
	began := time.Now()
	failpoint.Here("shim.create.before")
	resp, err := s.TTRPCTaskService.Create(ctx, r)
	failpoint.Here("shim.create.after")
	t.note(s.name+" create", began)
	if err != nil {
		s.mu.Lock()
		delete(s.tasks, r.ID)
		s.mu.Unlock()
		t.close()
		return nil, err
	}
	close(t.made)
	return resp, nil
}

func (s *service) Start(ctx context.Context, r *taskAPI.StartRequest) (*taskAPI.StartResponse, error) {
	s.mu.Lock()
	t, e := s.tasks[r.ID], s.execs[r.ID+"/"+r.ExecID]
	s.mu.Unlock()
	began := time.Now()
	if r.ExecID == "" && t != nil {
		t.started(began)
	}
	// If containerd dies meanwhile, it must stay known whether the process began.
	failpoint.Here("shim.start.before")
	resp, err := s.TTRPCTaskService.Start(context.WithoutCancel(ctx), r)
	failpoint.Here("shim.start.after")
	switch {
	case r.ExecID == "" && t != nil:
		t.note(s.name+" start", began)
		t.writeTimings(ctx)
	case e != nil && err != nil:
		e.close()
	case e != nil:
		close(e.begun)
	}
	return resp, err
}

func (s *service) Exec(ctx context.Context, r *taskAPI.ExecProcessRequest) (*emptypb.Empty, error) {
	addr, ours, err := shimapi.ParseExecIO(r.Stdout)
	if err != nil {
		return nil, err
	}
	if !ours {
		return s.TTRPCTaskService.Exec(ctx, r)
	}
	s.mu.Lock()
	t := s.tasks[r.ID]
	s.mu.Unlock()
	if t == nil {
		return nil, fmt.Errorf("exec in %s: this shim does not hold its streams", r.ID)
	}
	x, err := s.ends(filepath.Join(t.bundle, "exec-"+r.ExecID), addr.Stdin, addr.TTY)
	if err != nil {
		return nil, fmt.Errorf("preparing the streams of exec %s: %w", r.ExecID, err)
	}
	e, err := newExecIO(addr, x, func() { s.closeStdin(r.ID, r.ExecID) })
	if err != nil {
		x.release()
		return nil, fmt.Errorf("preparing the streams of exec %s: %w", r.ExecID, err)
	}
	s.mu.Lock()
	s.execs[r.ID+"/"+r.ExecID] = e
	s.mu.Unlock()
	r.Stdin, r.Stdout, r.Stderr = e.paths()
	resp, err := s.TTRPCTaskService.Exec(ctx, r)
	if err != nil { // nobody deletes it
		s.mu.Lock()
		delete(s.execs, r.ID+"/"+r.ExecID)
		s.mu.Unlock()
		e.close()
	}
	return resp, err
}

func (s *service) Delete(ctx context.Context, r *taskAPI.DeleteRequest) (*taskAPI.DeleteResponse, error) {
	failpoint.Here("shim.delete.before")
	resp, err := s.TTRPCTaskService.Delete(ctx, r)
	failpoint.Here("shim.delete.after")
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	t, e := s.tasks[r.ID], s.execs[r.ID+"/"+r.ExecID]
	delete(s.execs, r.ID+"/"+r.ExecID)
	if r.ExecID == "" {
		delete(s.tasks, r.ID)
	}
	s.mu.Unlock()
	switch {
	case r.ExecID != "" && e != nil:
		e.close()
	case r.ExecID == "" && t != nil:
		t.close()
		// With this, Stop need not run `runc delete` again.
		if b, err := json.Marshal(deleted{Pid: resp.Pid, Status: resp.ExitStatus, At: resp.ExitedAt.AsTime()}); err == nil {
			if err := durable.WriteFile(filepath.Join(t.bundle, deletedFile), b, 0o600); err != nil {
				log.G(ctx).WithError(err).Warn("the deletion can't be recorded")
			}
		}
	}
	return resp, nil
}

func (s *service) closeStdin(id, exec string) {
	//nolint:forbidigo // the socket's client triggers it, not a caller of the service
	_, _ = s.CloseIO(context.Background(), &taskAPI.CloseIORequest{ID: id, ExecID: exec, Stdin: true})
}

// ended writes a task's exit record before the exit is published, and reports an exec's
// exit to its client.
func (s *service) ended(ctx context.Context, e *eventstypes.TaskExit) {
	s.mu.Lock()
	t, x := s.tasks[e.ContainerID], s.execs[e.ContainerID+"/"+e.ID]
	s.mu.Unlock()
	if e.ID != e.ContainerID {
		if x != nil {
			x.ended(shimapi.ExecExit{Code: int32(e.ExitStatus), At: e.ExitedAt.AsTime().UnixNano()})
		}
		return
	}
	if t == nil || !t.hasBegun() {
		return
	}
	t.waitOutput(outputWithin)
	// A full disk is waited out: only this process knows the exit.
	for wait := minPause; ; wait = min(2*wait, maxPause) {
		failpoint.Here("shim.exit.before")
		err := t.writeExit(int32(e.ExitStatus), e.ExitedAt.AsTime())
		if err == nil {
			return
		}
		log.G(ctx).WithError(err).Error("the exit can't be recorded")
		select {
		case <-time.After(wait):
		case <-t.gone:
			return
		}
	}
}

// publisher intercepts events before they are published.
type publisher struct {
	shim.Publisher
	s *service
}

func (p *publisher) Publish(ctx context.Context, topic string, e events.Event) error {
	switch e := e.(type) {
	case *eventstypes.TaskExit:
		p.s.ended(ctx, e)
		failpoint.Here("shim.exit.after")
	case *eventstypes.TaskOOM:
		p.s.mu.Lock()
		if t := p.s.tasks[e.ContainerID]; t != nil {
			t.oom.Store(true)
		}
		p.s.mu.Unlock()
	}
	if os.Getenv(containerdEnv) == "" { // the agent started this shim, and reads what it records
		return nil
	}
	return p.Publisher.Publish(ctx, topic, e)
}

// containerdEnv is the address at which containerd takes the events of shims that it
// started.
const containerdEnv = "TTRPC_ADDRESS"

// Configure configures the shim whose bundle is the current directory. One that the agent
// started logs to its standard error: only containerd reads the pipe that it would open
// instead.
func Configure(c *shim.Config) {
	c.NoSetupLogger = os.Getenv(containerdEnv) == ""
	c.NoReaper = !Reaps()
}
