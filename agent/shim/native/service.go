//go:build cgo

package native

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	eventstypes "github.com/containerd/containerd/api/events"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/opencontainers/runc/libcontainer"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Service implements containerd's task service. Safe for concurrent use.
type Service struct {
	o       Options
	orphans *orphans
	events  chan any

	stop      chan struct{} // closed on shutdown
	forwarded chan struct{} // closed when all events up to then were published

	mu sync.Mutex // guards the fields below
	c  *container
	on bool // a container is being created
}

var _ taskAPI.TTRPCTaskService = (*Service)(nil)

// New returns a service without a container. It reaps the children of this process from
// then on, as a shim does that is the subreaper of its container's processes: nothing
// else here may wait for any child but its own.
func New(ctx context.Context, o Options) (*Service, error) {
	// Inits inherit it from the library; they do one thing after the other.
	if err := os.Setenv("GOMAXPROCS", "1"); err != nil {
		return nil, fmt.Errorf("preparing inits: %w", err)
	}
	warm()
	s := &Service{o: o, events: make(chan any, 128), stop: make(chan struct{}), forwarded: make(chan struct{}), orphans: newOrphans()}
	go s.orphans.run(o.Shutdown.Done())
	go s.forward(context.WithoutCancel(ctx))
	o.Shutdown.RegisterCallback(func(ctx context.Context) error { // this process ends after it
		close(s.stop)
		select {
		case <-s.forwarded:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if address, err := shim.ReadAddress("address"); err == nil {
		o.Shutdown.RegisterCallback(func(context.Context) error { return shim.RemoveSocket(address) })
	}
	return s, nil
}

// warm has encoding/json compile what reads a spec, and what writes the library's state,
// which a spare does before it has a container.
func warm() {
	_ = json.Unmarshal([]byte("{}"), &specs.Spec{})
	_, _ = json.Marshal(&libcontainer.State{})
}

// forward publishes events in order, up to a shutdown, which waits for the last ones: an
// exit is recorded when it is published.
func (s *Service) forward(ctx context.Context) {
	defer close(s.forwarded)
	defer func() { _ = s.o.Publisher.Close() }()
	publish := func(e any) {
		if err := s.o.Publisher.Publish(ctx, runtime.GetTopic(e), e); err != nil {
			log.G(ctx).WithError(err).Error("an event can't be published")
		}
	}
	for {
		select {
		case e := <-s.events:
			publish(e)
		case <-s.stop:
			for {
				select {
				case e := <-s.events:
					publish(e)
				default:
					return
				}
			}
		}
	}
}

func (s *Service) send(e any) {
	select {
	case s.events <- e:
	case <-s.o.Shutdown.Done():
	}
}

// container returns the container with an id.
func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil || s.c.id != id {
		return nil, errgrpc.ToGRPCf(errdefs.ErrNotFound, "container not created")
	}
	return s.c, nil
}

// process returns a container and one of its processes; the one with execID "" is its
// first.
func (s *Service) process(id, execID string) (*container, *process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	if execID == "" {
		return c, c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[execID]
	if p == nil {
		return nil, nil, errgrpc.ToGRPCf(errdefs.ErrNotFound, "process does not exist %s", execID)
	}
	return c, p, nil
}

// Create implements the task service.
func (s *Service) Create(ctx context.Context, r *taskAPI.CreateTaskRequest) (_ *taskAPI.CreateTaskResponse, err error) {
	s.mu.Lock()
	taken := s.on || s.c != nil
	s.on = true
	s.mu.Unlock()
	if taken {
		return nil, errgrpc.ToGRPCf(errdefs.ErrAlreadyExists, "this shim has a container already")
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.on = false
	}()
	if r.Checkpoint != "" {
		return nil, errgrpc.ToGRPCf(errdefs.ErrNotImplemented, "restoring a container is not supported")
	}
	c, err := s.create(ctx, r)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	s.mu.Lock()
	s.c = c
	s.mu.Unlock()
	s.send(&eventstypes.TaskCreate{
		ContainerID: r.ID, Bundle: r.Bundle, Rootfs: r.Rootfs, Pid: uint32(c.init.pid()),
		IO: &eventstypes.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	go s.watchMemory(c) // until its cgroup is removed
	go s.watchInit(c)   // until it has ended, which a deletion waits for
	return &taskAPI.CreateTaskResponse{Pid: uint32(c.init.pid())}, nil
}

// Start implements the task service.
func (s *Service) Start(_ context.Context, r *taskAPI.StartRequest) (*taskAPI.StartResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	// An exit is published only after the start, so it waits for this.
	p.starting.Lock()
	defer p.starting.Unlock()
	if r.ExecID != "" {
		err = s.startExec(c, p)
	} else {
		err = c.start()
	}
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if r.ExecID != "" {
		s.send(&eventstypes.TaskExecStarted{ContainerID: c.id, ExecID: r.ExecID, Pid: uint32(p.pid())})
	} else {
		s.send(&eventstypes.TaskStart{ContainerID: c.id, Pid: uint32(p.pid())})
	}
	return &taskAPI.StartResponse{Pid: uint32(p.pid())}, nil
}

// Exec implements the task service: the process is only registered.
func (s *Service) Exec(_ context.Context, r *taskAPI.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	p, err := newExec(r)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if err := c.register(p); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	s.send(&eventstypes.TaskExecAdded{ContainerID: c.id, ExecID: r.ExecID})
	return &emptypb.Empty{}, nil
}

// Delete implements the task service.
func (s *Service) Delete(ctx context.Context, r *taskAPI.DeleteRequest) (*taskAPI.DeleteResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.ExecID != "" {
		err = c.deleteExec(p)
	} else {
		err = s.delete(ctx, c)
	}
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	st := p.state()
	if r.ExecID == "" {
		s.mu.Lock()
		s.c = nil
		s.mu.Unlock()
		s.send(&eventstypes.TaskDelete{ContainerID: c.id, Pid: uint32(p.pid()), ExitStatus: st.code, ExitedAt: protobuf.ToTimestamp(st.at)})
	}
	return &taskAPI.DeleteResponse{Pid: uint32(p.pid()), ExitStatus: st.code, ExitedAt: protobuf.ToTimestamp(st.at)}, nil
}

// Wait implements the task service.
func (s *Service) Wait(ctx context.Context, r *taskAPI.WaitRequest) (*taskAPI.WaitResponse, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		return nil, errgrpc.ToGRPC(ctx.Err())
	}
	st := p.state()
	return &taskAPI.WaitResponse{ExitStatus: st.code, ExitedAt: protobuf.ToTimestamp(st.at)}, nil
}

// Checkpoint implements the task service.
func (s *Service) Checkpoint(context.Context, *taskAPI.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, errgrpc.ToGRPCf(errdefs.ErrNotImplemented, "checkpointing a container is not supported")
}

// Connect implements the task service.
func (s *Service) Connect(_ context.Context, r *taskAPI.ConnectRequest) (*taskAPI.ConnectResponse, error) {
	out := &taskAPI.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, err := s.container(r.ID); err == nil {
		out.TaskPid = uint32(c.init.pid())
	}
	return out, nil
}

// Shutdown implements the task service. A shim with a container stays.
func (s *Service) Shutdown(context.Context, *taskAPI.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil && !s.on {
		s.o.Shutdown.Shutdown()
	}
	return &emptypb.Empty{}, nil
}
