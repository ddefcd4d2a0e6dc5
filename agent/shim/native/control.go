//go:build cgo

package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	eventstypes "github.com/containerd/containerd/api/events"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runc/libcontainer"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
)

// State implements the task service.
func (s *Service) State(_ context.Context, r *taskAPI.StateRequest) (*taskAPI.StateResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	st, id := p.state(), p.id
	if id == "" {
		id = c.id
	}
	out := &taskAPI.StateResponse{ID: id, Bundle: c.bundle, Pid: uint32(p.pid()), Status: st.status,
		Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, Terminal: p.terminal, ExitStatus: st.code, ExitedAt: protobuf.ToTimestamp(st.at)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused && st.status == task.Status_RUNNING {
		out.Status = task.Status_PAUSED
	}
	return out, nil
}

// Pause implements the task service.
func (s *Service) Pause(_ context.Context, r *taskAPI.PauseRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	if c.init.state().status == task.Status_CREATED {
		return nil, errors.New("cannot pause task in created state")
	}
	c.freeze.Lock()
	defer c.freeze.Unlock()
	if err := c.lc.Pause(); err != nil {
		return nil, errgrpc.ToGRPC(failed("pause", err))
	}
	c.setPaused(true)
	s.send(&eventstypes.TaskPaused{ContainerID: c.id})
	return &emptypb.Empty{}, nil
}

// Resume implements the task service.
func (s *Service) Resume(_ context.Context, r *taskAPI.ResumeRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	c.freeze.Lock()
	defer c.freeze.Unlock()
	if err := c.lc.Resume(); err != nil {
		return nil, errgrpc.ToGRPC(failed("resume", err))
	}
	c.setPaused(false)
	s.send(&eventstypes.TaskResumed{ContainerID: c.id})
	return &emptypb.Empty{}, nil
}

func (c *container) setPaused(to bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = to
}

// Kill implements the task service. All counts for containers whose pid namespace is not
// their own; in others the kernel kills all processes along with the first.
func (s *Service) Kill(_ context.Context, r *taskAPI.KillRequest) (*emptypb.Empty, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	sig := unix.Signal(r.Signal)
	switch {
	case p.pid() == 0:
		err = fmt.Errorf("process not created: %w", errdefs.ErrFailedPrecondition)
	case p.state().status == task.Status_STOPPED:
		err = fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	case r.ExecID != "":
		err = p.signal(sig)
	case r.All && c.shared:
		err = c.signalAll(sig)
	default:
		err = c.signal(sig)
	}
	if err != nil {
		return nil, errgrpc.ToGRPC(killError(err))
	}
	return &emptypb.Empty{}, nil
}

// signal signals the first process. The library would have it wait for an exec that is
// starting; only what it knows about frozen cgroups is needed from it.
func (c *container) signal(sig unix.Signal) error {
	c.mu.Lock()
	paused := c.paused
	c.mu.Unlock()
	if paused && sig == unix.SIGKILL {
		return c.lc.Signal(sig)
	}
	return c.init.signal(sig)
}

func (c *container) signalAll(sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return c.lc.Signal(sig)
	}
	pids, err := c.lc.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return err
		}
	}
	return nil
}

func killError(err error) error {
	if errors.Is(err, libcontainer.ErrNotRunning) || errors.Is(err, unix.ESRCH) || errors.Is(err, errFinished) {
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	return err
}

// Pids implements the task service.
func (s *Service) Pids(_ context.Context, r *taskAPI.PidsRequest) (*taskAPI.PidsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	pids, err := c.lc.Processes()
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	execs := map[int]string{}
	c.mu.Lock()
	for id, p := range c.execs {
		execs[p.pid()] = id
	}
	c.mu.Unlock()
	out := &taskAPI.PidsResponse{}
	for _, pid := range pids {
		info := &task.ProcessInfo{Pid: uint32(pid)}
		if id := execs[pid]; id != "" {
			if info.Info, err = typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: id}); err != nil {
				return nil, fmt.Errorf("describing process %d: %w", pid, err)
			}
		}
		out.Processes = append(out.Processes, info)
	}
	return out, nil
}

// CloseIO implements the task service. It does nothing: the only writer of a process's
// input is the service's user.
func (s *Service) CloseIO(context.Context, *taskAPI.CloseIORequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// ResizePty implements the task service.
func (s *Service) ResizePty(_ context.Context, r *taskAPI.ResizePtyRequest) (*emptypb.Empty, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if err := p.resize(r.Width, r.Height); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &emptypb.Empty{}, nil
}

// Stats implements the task service, with the metrics of containerd's own shim.
func (s *Service) Stats(_ context.Context, r *taskAPI.StatsRequest) (*taskAPI.StatsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	stats, err := metrics(c.init.pid())
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("reading the cgroup: %w", err))
	}
	data, err := typeurl.MarshalAnyToProto(stats)
	if err != nil {
		return nil, fmt.Errorf("encoding metrics: %w", err)
	}
	return &taskAPI.StatsResponse{Stats: data}, nil
}

func metrics(pid int) (any, error) {
	if cgroups.Mode() == cgroups.Unified {
		path, err := cgroup2.PidGroupPath(pid)
		if err != nil {
			return nil, err
		}
		m, err := cgroup2.Load(path)
		if err != nil {
			return nil, err
		}
		return m.Stat()
	}
	cg, err := cgroup1.Load(cgroup1.PidPath(pid))
	if err != nil {
		return nil, err
	}
	return cg.Stat(cgroup1.IgnoreNotExist)
}

// Update implements the task service.
func (s *Service) Update(_ context.Context, r *taskAPI.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	var res specs.LinuxResources
	if err := json.Unmarshal(r.Resources.GetValue(), &res); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("reading resources: %w", err))
	}
	c.freeze.Lock() // the library starts no exec meanwhile
	defer c.freeze.Unlock()
	config := c.lc.Config()
	group := *config.Cgroups
	changed := *group.Resources
	update(&changed, &res)
	changed.SkipDevices = true // devices stay as they are
	group.Resources, config.Cgroups = &changed, &group
	err = c.lc.Set(config)
	changed.SkipDevices = false // else no process can be started any more
	if err != nil {
		return nil, errgrpc.ToGRPC(failed("update", err))
	}
	return &emptypb.Empty{}, nil
}
