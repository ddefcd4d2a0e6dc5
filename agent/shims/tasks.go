package shims

import (
	"context"
	"errors"
	"fmt"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// call calls the shim of a container that has one here; next is for those that Next may
// have.
func call[R any](ctx context.Context, s *Shims, id string, here func(taskAPI.TTRPCTaskService) (R, error), next func() (R, error)) (R, error) {
	x := s.lock(id)
	tasks, err := x.find(ctx)
	client := x.client
	x.unlock()
	var none R
	switch {
	case err != nil:
		return none, status.Error(codes.Unavailable, err.Error())
	case tasks == nil && s.o.Asks(id):
		return next()
	case tasks == nil:
		return none, status.Error(codes.NotFound, fmt.Sprintf("%s has no shim", short(id)))
	}
	r, err := here(tasks)
	if errors.Is(err, ttrpc.ErrClosed) {
		s.lost(id, client)
		return none, status.Error(codes.Unavailable, fmt.Sprintf("the shim of %s ended", short(id)))
	}
	return r, err
}

// Create implements taskspb.TasksClient: containers are begun with Begin.
func (s *Shims) Create(ctx context.Context, in *taskspb.CreateTaskRequest, opts ...grpc.CallOption) (*taskspb.CreateTaskResponse, error) {
	return s.o.Next.Create(ctx, in, opts...)
}

// Start implements taskspb.TasksClient.
func (s *Shims) Start(ctx context.Context, in *taskspb.StartRequest, opts ...grpc.CallOption) (*taskspb.StartResponse, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*taskspb.StartResponse, error) {
		r, err := t.Start(ctx, &taskAPI.StartRequest{ID: in.ContainerID, ExecID: in.ExecID})
		return &taskspb.StartResponse{Pid: r.GetPid()}, err
	}, func() (*taskspb.StartResponse, error) { return s.o.Next.Start(ctx, in, opts...) })
}

// Delete implements taskspb.TasksClient. The shim ends with it.
func (s *Shims) Delete(ctx context.Context, in *taskspb.DeleteTaskRequest, opts ...grpc.CallOption) (*taskspb.DeleteResponse, error) {
	here, deleted := false, true
	r, err := call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*taskspb.DeleteResponse, error) {
		here = true
		r, err := t.Delete(ctx, &taskAPI.DeleteRequest{ID: in.ContainerID})
		if errdefs.IsNotFound(errgrpc.ToNative(err)) { // an earlier call deleted it, or did not get to create it
			deleted, err = false, nil
		}
		return &taskspb.DeleteResponse{ID: in.ContainerID, Pid: r.GetPid(), ExitStatus: r.GetExitStatus(), ExitedAt: r.GetExitedAt()}, err
	}, func() (*taskspb.DeleteResponse, error) { return s.o.Next.Delete(ctx, in, opts...) })
	if !here || err != nil {
		return r, err
	}
	x := s.lock(in.ContainerID)
	defer x.unlock()
	return r, x.finish(ctx, deleted)
}

// DeleteProcess implements taskspb.TasksClient.
func (s *Shims) DeleteProcess(ctx context.Context, in *taskspb.DeleteProcessRequest, opts ...grpc.CallOption) (*taskspb.DeleteResponse, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*taskspb.DeleteResponse, error) {
		r, err := t.Delete(ctx, &taskAPI.DeleteRequest{ID: in.ContainerID, ExecID: in.ExecID})
		return &taskspb.DeleteResponse{ID: in.ExecID, Pid: r.GetPid(), ExitStatus: r.GetExitStatus(), ExitedAt: r.GetExitedAt()}, err
	}, func() (*taskspb.DeleteResponse, error) { return s.o.Next.DeleteProcess(ctx, in, opts...) })
}

// Get implements taskspb.TasksClient. It does not wait for a shim that hangs.
func (s *Shims) Get(ctx context.Context, in *taskspb.GetRequest, opts ...grpc.CallOption) (*taskspb.GetResponse, error) {
	get := func() (*taskspb.GetResponse, error) {
		ctx, cancel := context.WithTimeout(ctx, stateWithin)
		defer cancel()
		return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*taskspb.GetResponse, error) {
			p, err := state(ctx, t, in.ContainerID, in.ExecID)
			return &taskspb.GetResponse{Process: p}, err
		}, func() (*taskspb.GetResponse, error) { return s.o.Next.Get(ctx, in, opts...) })
	}
	r, err := get()
	if status.Code(err) == codes.Unavailable && ctx.Err() == nil { // it was ending, and is gone now
		r, err = get()
	}
	return r, err
}

func state(ctx context.Context, t taskAPI.TTRPCTaskService, id, exec string) (*tasktypes.Process, error) {
	r, err := t.State(ctx, &taskAPI.StateRequest{ID: id, ExecID: exec})
	if err != nil {
		return nil, err
	}
	p := &tasktypes.Process{ID: r.ID, ContainerID: id, Pid: r.Pid, Status: r.Status, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal,
		ExitStatus: r.ExitStatus, ExitedAt: r.ExitedAt}
	if p.ExitedAt == nil {
		p.ExitedAt = &timestamppb.Timestamp{}
	}
	return p, nil
}

// List implements taskspb.TasksClient. A shim that does not answer is listed with an
// unknown state.
func (s *Shims) List(ctx context.Context, in *taskspb.ListTasksRequest, opts ...grpc.CallOption) (*taskspb.ListTasksResponse, error) {
	all, err := s.o.Next.List(ctx, in, opts...)
	if err != nil {
		return nil, err
	}
	ids, err := s.ids()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	found := make([]*tasktypes.Process, len(ids))
	var asking errgroup.Group
	asking.SetLimit(listAtOnce)
	for i, id := range ids {
		asking.Go(func() error {
			r, err := s.Get(ctx, &taskspb.GetRequest{ContainerID: id})
			switch {
			case err == nil:
				found[i] = r.Process
			case !errdefs.IsNotFound(errgrpc.ToNative(err)):
				found[i] = &tasktypes.Process{ID: id, ContainerID: id, Status: tasktypes.Status_UNKNOWN}
			}
			return nil
		})
	}
	_ = asking.Wait()
	for _, p := range found {
		if p != nil {
			all.Tasks = append(all.Tasks, p)
		}
	}
	return all, ctx.Err()
}

const (
	listAtOnce  = 32              // shims that a list asks
	stateWithin = 2 * time.Second // for the answer of one
)

// Kill implements taskspb.TasksClient.
func (s *Shims) Kill(ctx context.Context, in *taskspb.KillRequest, opts ...grpc.CallOption) (*emptypb.Empty, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*emptypb.Empty, error) {
		return t.Kill(ctx, &taskAPI.KillRequest{ID: in.ContainerID, ExecID: in.ExecID, Signal: in.Signal, All: in.All})
	}, func() (*emptypb.Empty, error) { return s.o.Next.Kill(ctx, in, opts...) })
}

// Exec implements taskspb.TasksClient.
func (s *Shims) Exec(ctx context.Context, in *taskspb.ExecProcessRequest, opts ...grpc.CallOption) (*emptypb.Empty, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*emptypb.Empty, error) {
		return t.Exec(ctx, &taskAPI.ExecProcessRequest{ID: in.ContainerID, ExecID: in.ExecID, Terminal: in.Terminal, Stdin: in.Stdin, Stdout: in.Stdout, Stderr: in.Stderr, Spec: in.Spec})
	}, func() (*emptypb.Empty, error) { return s.o.Next.Exec(ctx, in, opts...) })
}

// ResizePty implements taskspb.TasksClient.
func (s *Shims) ResizePty(ctx context.Context, in *taskspb.ResizePtyRequest, opts ...grpc.CallOption) (*emptypb.Empty, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*emptypb.Empty, error) {
		return t.ResizePty(ctx, &taskAPI.ResizePtyRequest{ID: in.ContainerID, ExecID: in.ExecID, Width: in.Width, Height: in.Height})
	}, func() (*emptypb.Empty, error) { return s.o.Next.ResizePty(ctx, in, opts...) })
}

// CloseIO implements taskspb.TasksClient.
func (s *Shims) CloseIO(ctx context.Context, in *taskspb.CloseIORequest, opts ...grpc.CallOption) (*emptypb.Empty, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*emptypb.Empty, error) {
		return t.CloseIO(ctx, &taskAPI.CloseIORequest{ID: in.ContainerID, ExecID: in.ExecID, Stdin: in.Stdin})
	}, func() (*emptypb.Empty, error) { return s.o.Next.CloseIO(ctx, in, opts...) })
}

// Pause implements taskspb.TasksClient.
func (s *Shims) Pause(ctx context.Context, in *taskspb.PauseTaskRequest, opts ...grpc.CallOption) (*emptypb.Empty, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*emptypb.Empty, error) {
		return t.Pause(ctx, &taskAPI.PauseRequest{ID: in.ContainerID})
	}, func() (*emptypb.Empty, error) { return s.o.Next.Pause(ctx, in, opts...) })
}

// Resume implements taskspb.TasksClient.
func (s *Shims) Resume(ctx context.Context, in *taskspb.ResumeTaskRequest, opts ...grpc.CallOption) (*emptypb.Empty, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*emptypb.Empty, error) {
		return t.Resume(ctx, &taskAPI.ResumeRequest{ID: in.ContainerID})
	}, func() (*emptypb.Empty, error) { return s.o.Next.Resume(ctx, in, opts...) })
}

// ListPids implements taskspb.TasksClient.
func (s *Shims) ListPids(ctx context.Context, in *taskspb.ListPidsRequest, opts ...grpc.CallOption) (*taskspb.ListPidsResponse, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*taskspb.ListPidsResponse, error) {
		r, err := t.Pids(ctx, &taskAPI.PidsRequest{ID: in.ContainerID})
		return &taskspb.ListPidsResponse{Processes: r.GetProcesses()}, err
	}, func() (*taskspb.ListPidsResponse, error) { return s.o.Next.ListPids(ctx, in, opts...) })
}

// Checkpoint implements taskspb.TasksClient, only for what containerd started.
func (s *Shims) Checkpoint(ctx context.Context, in *taskspb.CheckpointTaskRequest, opts ...grpc.CallOption) (*taskspb.CheckpointTaskResponse, error) {
	return s.o.Next.Checkpoint(ctx, in, opts...)
}

// Update implements taskspb.TasksClient.
func (s *Shims) Update(ctx context.Context, in *taskspb.UpdateTaskRequest, opts ...grpc.CallOption) (*emptypb.Empty, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*emptypb.Empty, error) {
		return t.Update(ctx, &taskAPI.UpdateTaskRequest{ID: in.ContainerID, Resources: in.Resources, Annotations: in.Annotations})
	}, func() (*emptypb.Empty, error) { return s.o.Next.Update(ctx, in, opts...) })
}

// Metrics implements taskspb.TasksClient, only for what containerd started: the agent
// reads cgroups itself.
func (s *Shims) Metrics(ctx context.Context, in *taskspb.MetricsRequest, opts ...grpc.CallOption) (*taskspb.MetricsResponse, error) {
	return s.o.Next.Metrics(ctx, in, opts...)
}

// Wait implements taskspb.TasksClient.
func (s *Shims) Wait(ctx context.Context, in *taskspb.WaitRequest, opts ...grpc.CallOption) (*taskspb.WaitResponse, error) {
	return call(ctx, s, in.ContainerID, func(t taskAPI.TTRPCTaskService) (*taskspb.WaitResponse, error) {
		r, err := t.Wait(ctx, &taskAPI.WaitRequest{ID: in.ContainerID, ExecID: in.ExecID})
		return &taskspb.WaitResponse{ExitStatus: r.GetExitStatus(), ExitedAt: r.GetExitedAt()}, err
	}, func() (*taskspb.WaitResponse, error) { return s.o.Next.Wait(ctx, in, opts...) })
}
