package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"

	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/failpoint"
	"github.com/drover/drover/pkg/life"
)

// Wait implements task.Runtime. The exit file is authoritative; a task whose shim is gone
// is looked at as well, for shims that were killed before they wrote one.
func (e *Engine) Wait(ctx context.Context, id string, l life.Life) (*dv1.Exit, error) {
	ch, stop, err := e.follow.listen(e.o.dir(id))
	if err != nil {
		if _, serr := e.readSpec(id); serr != nil {
			return nil, serr
		}
		return nil, err
	}
	defer stop()
	for {
		var late <-chan time.Time // while it has a shim of the agent's, that one's end is reported
		if x, err := e.readExit(id, l); x != nil || err != nil {
			return x, err
		}
		a, err := e.readAttempt(id)
		if err != nil {
			return nil, err
		}
		if l.Before(a.life()) {
			return nil, fmt.Errorf("attempt %s of %s: %w", l, short(id), task.ErrNotFound)
		}
		if a.life() == l && !e.tasks.Has(id) {
			if x := e.settleWhenDead(ctx, id, a); x != nil {
				return x, nil
			}
			late = time.After(lookAgain)
		}
		select {
		case <-ch:
		case <-late:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// lookAgain is the pause between looks at a task without a shim of the agent's: containerd
// started one, or an exit could not be recorded yet.
const lookAgain = 2 * time.Second

// settleWhenDead returns the exit of a process that has stopped although its shim has
// not recorded an exit; nil if it may still run.
func (e *Engine) settleWhenDead(ctx context.Context, id string, a attempt) *dv1.Exit {
	p, err := e.process(e.ctx(ctx), id)
	if err != nil || p != nil && p.Status != tasktypes.Status_STOPPED {
		return nil // containerd may be restarting
	}
	x, err := e.settle(ctx, id, a, p)
	if err != nil && ctx.Err() == nil {
		e.o.Log.Error("an exit can't be recorded", "task", short(id), "err", err)
	}
	return x
}

// recordWithin is how long after the end of its process a shim may take to write the
// record: it waits for the last output first.
const recordWithin = 5 * time.Second

// settle returns the exit of a life that has ended; p is its stopped process, nil if its
// shim is gone. nil: the process never began.
func (e *Engine) settle(ctx context.Context, id string, a attempt, p *tasktypes.Process) (*dv1.Exit, error) {
	if x, err := e.readExit(id, a.life()); x != nil || err != nil {
		return x, err
	}
	began, err := e.mayHaveBegun(id, a)
	if err != nil || !began {
		return nil, err
	}
	if p != nil {
		return e.stopped(ctx, id, a, p)
	}
	x := shimapi.Exit{Attempt: a.Number, Restarts: a.Restarts, Code: killedCode, At: time.Now(), Started: a.At}
	if a.Boot != e.boot {
		x.Code = lostCode
	}
	if x.LogEnd, err = logs.End(e.o.logDir(id)); err != nil {
		return nil, err
	}
	failpoint.Here("engine.settle.before")
	if err := shimapi.WriteExit(e.o.recordFile(id, a), x); err != nil {
		return nil, err
	}
	return e.readExit(id, a.life())
}

// stopped returns the exit of a process whose shim is alive, and so has to record it. If
// the shim can't for too long (a full disk), the exit that it reports is used.
func (e *Engine) stopped(ctx context.Context, id string, a attempt, p *tasktypes.Process) (*dv1.Exit, error) {
	ch, stop, err := e.follow.listen(e.o.dir(id))
	if err != nil {
		return nil, err
	}
	defer stop()
	late := time.NewTimer(e.recordWithin)
	defer late.Stop()
	for {
		if x, err := e.readExit(id, a.life()); x != nil || err != nil {
			return x, err
		}
		select {
		case <-ch:
		case <-late.C:
			end, err := logs.End(e.o.logDir(id))
			return &dv1.Exit{Attempt: a.Number, Restarts: a.Restarts, Code: int32(p.ExitStatus), At: p.ExitedAt.AsTime().UnixNano(), Started: a.At.UnixNano(), LogEnd: end}, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// mayHaveBegun reports whether the process of a try may have run.
func (e *Engine) mayHaveBegun(id string, a attempt) (bool, error) {
	if a.Boot != e.boot {
		return true, nil // begunFile need not have survived
	}
	_, err := os.Stat(e.begunFile(id, a))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// unrecorded reports whether the exit of a stopped process has yet to be recorded.
func (e *Engine) unrecorded(id string) bool {
	a, err := e.readAttempt(id)
	if err != nil || a.Number == 0 {
		return false
	}
	if began, err := e.mayHaveBegun(id, a); err != nil || !began {
		return false
	}
	x, err := e.readExit(id, a.life())
	return x == nil && err == nil
}
