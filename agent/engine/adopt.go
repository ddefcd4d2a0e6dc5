package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/life"
)

// process returns a task's process, nil if it has none.
func (e *Engine) process(ctx context.Context, id string) (*tasktypes.Process, error) {
	r, err := e.tasks.Get(ctx, &taskspb.GetRequest{ContainerID: id})
	if err != nil {
		if notFound(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("asking for the process of %s: %w", short(id), err)
	}
	return r.Process, nil
}

// throughContainerd reports whether containerd may have a task's process: an agent of an
// earlier build started it. All others are not asked for there.
func (e *Engine) throughContainerd(id string) bool {
	a, err := e.readAttempt(id)
	return err != nil || a.Number > 0 && !a.Own
}

func notFound(err error) bool {
	return errdefs.IsNotFound(err) || strings.Contains(err.Error(), "NotFound") || strings.Contains(err.Error(), "not found")
}

// found is a task as it is now. p is its process, looked up if nil. A task that is
// returned with an error has neither ended nor is it known to be running.
func (e *Engine) found(ctx context.Context, s prepared, a attempt, p *tasktypes.Process) (task.Found, error) {
	f := task.Found{Spec: s.Spec, Attempt: task.Attempt{Life: a.life(), StopSignal: e.stopSignal(ctx, s)}}
	if a.Number == 0 {
		return f, nil
	}
	place(&f.Attempt, e.o.Network.Get(s.ID))
	f.Attempt.Started = a.At
	x, err := e.readExit(s.ID, a.life())
	if err == nil {
		f.Attempt.Before, err = e.exitBefore(s.ID, a.life())
	}
	if err != nil {
		return f, err
	}
	if x == nil {
		began, err := e.mayHaveBegun(s.ID, a)
		if err != nil {
			return f, err
		}
		if !began {
			return e.neverBegan(f)
		}
		if p == nil {
			if p, err = e.process(ctx, s.ID); err != nil {
				return f, err
			}
		}
		if p != nil && p.Status == tasktypes.Status_UNKNOWN {
			return f, fmt.Errorf("asking for the process of %s: its shim reports no state", short(s.ID))
		}
		if p == nil || p.Status == tasktypes.Status_STOPPED {
			if x, err = e.settle(ctx, s.ID, a, p); err != nil {
				return f, err
			}
		}
	}
	if x != nil {
		f.Attempt.Exit = x
		if x.Started > 0 {
			f.Attempt.Started = time.Unix(0, x.Started)
		}
		return f, nil
	}
	if p == nil || p.Status == tasktypes.Status_STOPPED || p.Status == tasktypes.Status_CREATED {
		return e.neverBegan(f)
	}
	e.o.Volumes.Using(s.ID, volumesOf(s.Spec))
	f.Running, f.Paused, f.Attempt.Pid = true, p.Status == tasktypes.Status_PAUSED, int(p.Pid)
	return f, nil
}

// neverBegan resets a found task to what it was before its last start, which was
// interrupted before any process ran.
func (e *Engine) neverBegan(f task.Found) (task.Found, error) {
	x, err := e.endedBefore(f.Spec.ID, f.Attempt.Life)
	if err != nil {
		return f, err
	}
	f.Attempt = task.Attempt{StopSignal: f.Attempt.StopSignal}
	if x != nil {
		f.Attempt.Life, f.Attempt.Exit, f.Attempt.Started = life.Of(x), x, time.Unix(0, x.Started)
	}
	return f, nil
}

// List implements task.Runtime. A task whose container is gone from containerd is not
// listed. A problem with one task does not keep others from being listed: one whose
// state can't be determined is waited on; one whose files are damaged is left out, and
// is found again once it is prepared and started.
func (e *Engine) List(ctx context.Context) ([]task.Found, error) {
	ctx = e.ctx(ctx)
	dirs, err := os.ReadDir(e.o.tasks())
	if err != nil {
		return nil, fmt.Errorf("listing tasks: %w", err)
	}
	r, err := e.tasks.List(ctx, &taskspb.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("listing tasks: %w", err)
	}
	running := map[string]*tasktypes.Process{}
	for _, p := range r.Tasks {
		running[p.ID] = p
	}
	var out []task.Found
	for _, d := range dirs {
		s, err := e.readSpec(d.Name())
		if errors.Is(err, task.ErrNotFound) {
			continue
		}
		var a attempt
		if err == nil {
			a, err = e.readAttempt(s.ID)
		}
		if err != nil {
			e.o.Log.Error("a task's files are damaged", "task", short(d.Name()), "err", err)
			continue
		}
		f, err := e.found(ctx, s, a, running[s.ID])
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			e.o.Log.Error("whether a task runs can't be determined", "task", short(s.ID), "err", err)
		}
		out = append(out, f)
	}
	if err := e.o.Volumes.Settle(ctx); err != nil {
		e.o.Log.Warn("what nobody uses is still mounted on volumes", "err", err)
	}
	return out, nil
}
