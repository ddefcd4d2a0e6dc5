package engine

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/sys/signal"

	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/agent/shims"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/failpoint"
	"github.com/drover/drover/pkg/life"
)

// Exit codes of attempts whose end nobody observed, as in docker.
const (
	killedCode = 137 // its shim was killed
	lostCode   = 255 // its host went down
)

// Start implements task.Runtime.
func (e *Engine) Start(ctx context.Context, id string, l life.Life, w *task.Wiring) (task.Attempt, error) {
	if w == nil {
		w = &task.Wiring{}
	}
	ctx = e.ctx(ctx)
	s, err := e.readSpec(id)
	if err != nil {
		return task.Attempt{}, err
	}
	a, err := e.readAttempt(id)
	if err != nil {
		return task.Attempt{}, err
	}
	if l.Before(a.life()) {
		return task.Attempt{}, fmt.Errorf("attempt %s of %s: a later one was started: %w", l, short(id), task.ErrNotFound)
	}
	if a.life() == l {
		f, err := e.found(ctx, s, a, nil)
		if err != nil {
			return task.Attempt{}, err
		}
		if f.Attempt.Life == l && (f.Running || f.Attempt.Exit != nil) {
			return f.Attempt, nil
		}
		if f, err = e.startAgain(ctx, s, a); err != nil {
			return task.Attempt{}, err
		}
		if f.Attempt.Life == l {
			return f.Attempt, nil
		}
		if err := e.forgetTry(id, a); err != nil { // it never began
			return task.Attempt{}, fmt.Errorf("starting %s: %w", short(id), err)
		}
	}
	release := task.Timing{Name: "release", Start: time.Now()}
	if a.Number > 0 || e.tasks.Has(id) { // remains of an earlier life, or of a try of this one
		if err := e.clear(ctx, id); err != nil {
			return task.Attempt{}, err
		}
		if err := e.o.Network.Renew(ctx, id, e.mayConfigureNetwork(s.Spec)); err != nil {
			return task.Attempt{}, err
		}
	}
	release.End = time.Now()
	out, err := e.begin(ctx, s, a, l, w)
	if err == nil && a.Number > 0 {
		out.Timings = append(out.Timings, release)
	}
	return out, err
}

// startAgain finishes what a try had reached before its agent died. The shim may be
// about to start the process: it does so only once, and killing it now would mean
// running it twice. What it finds is then authoritative; if there was nothing to start,
// it finds nothing.
func (e *Engine) startAgain(ctx context.Context, s prepared, a attempt) (task.Found, error) {
	began, err := e.mayHaveBegun(s.ID, a)
	if err != nil || !began {
		return task.Found{}, err
	}
	p, err := e.process(ctx, s.ID)
	if err != nil || p == nil || p.Status != tasktypes.Status_CREATED {
		return task.Found{}, err
	}
	if _, err := e.tasks.Start(ctx, &taskspb.StartRequest{ContainerID: s.ID}); err != nil {
		e.o.Log.Debug("an interrupted start can't be resumed", "task", short(s.ID), "err", err)
	}
	f, err := e.found(ctx, s, a, nil)
	if err != nil || !f.Running && f.Attempt.Exit == nil {
		return task.Found{}, err
	}
	return f, nil
}

// begin begins life l of a task; before is the one that was its newest. Nothing that an
// agent or a host that dies in between leaves is taken for a life that has begun: that
// takes the attempt, durable, and in the same boot the file that is written next to last.
func (e *Engine) begin(ctx context.Context, s prepared, before attempt, l life.Life, w *task.Wiring) (out task.Attempt, err error) {
	end, err := logs.End(e.o.logDir(s.ID))
	if err != nil {
		return out, err
	}
	last, err := e.exitBefore(s.ID, l)
	if err != nil {
		return out, err
	}
	runtime, err := e.runtimeOptions(s.Create.HostConfig)
	if err != nil {
		return out, err
	}
	a := attempt{Number: l.Attempt, Restarts: l.Restarts, Try: rand.Text(), LogStart: end, At: time.Now(), Boot: e.boot, Own: true}
	var timings []task.Timing
	timed := func(name string, began time.Time) {
		timings = append(timings, task.Timing{Name: name, Start: began, End: time.Now()})
	}
	undo := true
	defer func() {
		if err != nil && undo {
			err = errors.Join(err, e.undoStart(context.WithoutCancel(ctx), s.ID, a, before))
		}
	}()
	made, sandbox, staged, err := e.assemble(ctx, s, a, w, runtime, timed)
	if err != nil {
		return out, err
	}
	failpoint.Here("engine.create.before")
	if err := e.placeAttempt(s.ID, a, staged); err != nil {
		return out, err
	}
	began := time.Now()
	var synced sync.WaitGroup
	var unsynced error
	synced.Go(func() { unsynced = durable.SyncDir(e.o.dir(s.ID)) })
	err = e.create(ctx, s, a, runtime, made)
	synced.Wait()
	if err != nil {
		return out, startError("create", made.command, err)
	}
	if unsynced != nil {
		return out, fmt.Errorf("starting %s: %w", short(s.ID), unsynced)
	}
	if len(s.Mounts) > 0 { // the container has what it mounts
		if err := e.o.Volumes.Unpin(s.ID); err != nil {
			e.o.Log.Warn("a start left mounts behind", "task", short(s.ID), "err", err)
		}
	}
	timed("shim create", began)
	failpoint.Here("engine.create.after")
	began = time.Now()
	if err := os.WriteFile(e.begunFile(s.ID, a), nil, 0o600); err != nil {
		return out, fmt.Errorf("starting %s: %w", short(s.ID), err)
	}
	failpoint.Here("engine.start.before")
	started, err := e.tasks.Start(ctx, &taskspb.StartRequest{ContainerID: s.ID})
	if err != nil {
		err = startError("start", made.command, errgrpc.ToNative(err))
		// Unless the runtime refused explicitly, the process may run: the next call of Start
		// finds out.
		undo = errors.As(err, new(*task.StartError))
		return out, err
	}
	failpoint.Here("engine.start.after")
	timed("shim start", began)
	out = task.Attempt{Life: l, Before: last, Pid: int(started.Pid), Started: began, StopSignal: e.stopSignal(ctx, s), Timings: timings}
	place(&out, sandbox)
	if more, err := shimapi.ReadTimings(e.o.recordFile(s.ID, a)); err == nil {
		for _, m := range more {
			out.Timings = append(out.Timings, task.Timing(m))
		}
	}
	return out, nil
}

// assemble does at the same time what an attempt's container needs before it is created:
// its record, which is staged, its shim, its plan and its network.
func (e *Engine) assemble(ctx context.Context, s prepared, a attempt, w *task.Wiring, runtime *options.Options, timed func(string, time.Time)) (m made, sandbox *network.Sandbox, staged durable.Staged, err error) {
	var (
		meanwhile                    sync.WaitGroup
		refusal, without, unrecorded error
	)
	meanwhile.Go(func() { staged, unrecorded = e.stageAttempt(s.ID, a) })
	meanwhile.Go(func() { without = e.tasks.Launch(s.ID, shimapi.ChoiceOf(runtime)) })
	meanwhile.Go(func() { m, refusal = e.replan(ctx, s) })
	began := time.Now()
	sandbox, err = e.connect(ctx, s.Spec, w)
	timed("network", began)
	meanwhile.Wait()
	if err = cmp.Or(refusal, err, without, unrecorded); err != nil && unrecorded == nil {
		staged.Discard()
	}
	return m, sandbox, staged, err
}

// create has the shim create the process of a try.
func (e *Engine) create(ctx context.Context, s prepared, a attempt, runtime *options.Options, m made) error {
	encoded, err := typeurl.MarshalAnyToProto(runtime)
	if err != nil {
		return fmt.Errorf("encoding the options of a runtime: %w", err)
	}
	c := shims.Container{ID: s.ID, Spec: m.spec, Stdout: e.stdio(s.Spec, a), Terminal: s.Create.Config != nil && s.Create.Tty, Options: encoded}
	for _, r := range m.root {
		c.Rootfs = append(c.Rootfs, &types.Mount{Type: r.Type, Source: r.Source, Target: r.Target, Options: r.Options})
	}
	_, err = e.tasks.Begin(ctx, c)
	return errgrpc.ToNative(err)
}

// begunFile marks that a try's process may have run. It need not survive a power cut:
// the boot id in the attempt covers those.
func (e *Engine) begunFile(id string, a attempt) string {
	if a.Try == "" { // written by an agent that did not distinguish tries
		return filepath.Join(e.o.dir(id), fmt.Sprintf("begun.%d", a.Number))
	}
	return e.o.recordFile(id, a) + ".begun"
}

// mayConfigureNetwork reports whether something that ran in a container could change its
// network namespace. With no more than docker's defaults it can't.
func (e *Engine) mayConfigureNetwork(s task.Spec) bool {
	if h := s.Create.HostConfig; h != nil && (h.Privileged || len(h.CapAdd) > 0 || len(h.SecurityOpt) > 0) {
		return true
	}
	_, err := os.Stat(e.o.privilegedFile(s.ID))
	return !errors.Is(err, os.ErrNotExist)
}

// stdio tells a task's shim what to do with its streams; none of them are in this
// process.
func (e *Engine) stdio(s task.Spec, a attempt) string {
	x := shimapi.Stdio{LogDir: e.o.logDir(s.ID), ExitFile: e.o.recordFile(s.ID, a), Life: a.life()}
	if c := s.Create.Config; c != nil {
		x.TTY, x.Stdin, x.StdinOnce = c.Tty, c.OpenStdin, c.StdinOnce && !c.Tty
	}
	if x.Stdin {
		x.Socket = e.o.stdinSocket(s.ID)
	}
	return x.URL()
}

// undoStart releases what a refused start acquired, so that nothing is half-made. A
// process that may still exist keeps its network and its attempt.
func (e *Engine) undoStart(ctx context.Context, id string, a, before attempt) error {
	if err := e.deleteTask(ctx, id); err != nil {
		return err
	}
	failpoint.Here("engine.undo.before")
	err := errors.Join(e.forgetTry(id, a), e.disconnect(ctx, id), e.unuseVolumes(ctx, id))
	if before.life().Before(a.life()) {
		err = errors.Join(err, e.writeAttempt(id, before))
	}
	return err
}

// deleteTask kills and deletes a container's process, if there is one.
func (e *Engine) deleteTask(ctx context.Context, id string) error {
	p, err := e.process(ctx, id)
	if err != nil {
		return err
	}
	if p != nil && p.Status != tasktypes.Status_STOPPED {
		if err := (process{e.tasks, id, ""}).kill(ctx); err != nil {
			return fmt.Errorf("killing the process of %s: %w", short(id), err)
		}
	}
	return e.deleteShim(ctx, id)
}

// deleteShim deletes a process that has ended, or finishes an interrupted deletion, such
// as by the death of an agent: the shim has lost the process, so it is not found, but
// the shim is there until another deletion.
func (e *Engine) deleteShim(ctx context.Context, id string) error {
	failpoint.Here("engine.delete.before")
	_, err := e.tasks.Delete(ctx, &taskspb.DeleteTaskRequest{ContainerID: id})
	failpoint.Here("engine.delete.after")
	if err != nil && !notFound(err) {
		return fmt.Errorf("deleting the process of %s: %w", short(id), err)
	}
	return nil
}

// stopSignal returns the image's stop signal, "" if it names none.
func (e *Engine) stopSignal(ctx context.Context, s prepared) string {
	if s.ImageConfig != nil {
		return s.ImageConfig.StopSignal
	}
	if i, err := e.o.Images.Image(ctx, s.Digest); err == nil {
		return i.Config.Config.StopSignal
	}
	return ""
}

// Signal implements task.Runtime.
func (e *Engine) Signal(ctx context.Context, id, name string) error {
	ctx = e.ctx(ctx)
	sig, err := parseSignal(name)
	if err != nil {
		return err
	}
	a, err := e.readAttempt(id)
	if err != nil {
		return err
	}
	x, err := e.readExit(id, a.life())
	if err != nil {
		return err
	}
	if x != nil || a.Number == 0 {
		return fmt.Errorf("%s: %w", short(id), task.ErrNotRunning)
	}
	s, err := e.readSpec(id)
	if err != nil {
		return err
	}
	// Without a pid namespace, nothing dies along with the first process.
	all := sig == syscall.SIGKILL && s.Create.HostConfig != nil && s.Create.HostConfig.PidMode.IsHost()
	failpoint.Here("engine.signal.before")
	_, err = e.tasks.Kill(ctx, &taskspb.KillRequest{ContainerID: id, Signal: uint32(sig), All: all})
	failpoint.Here("engine.signal.after")
	if err != nil {
		if notFound(err) || alreadyEnded(err) {
			return fmt.Errorf("%s: %w", short(id), task.ErrNotRunning)
		}
		return fmt.Errorf("sending %s to %s: %w", name, short(id), err)
	}
	e.o.Event(id, "kill", map[string]string{"signal": strconv.Itoa(int(sig))})
	return nil
}

func parseSignal(name string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n), nil
	}
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return 0, task.Refuse("%v", err)
	}
	return sig, nil
}

// Release implements task.Runtime.
func (e *Engine) Release(ctx context.Context, id string) error {
	if err := e.clear(e.ctx(ctx), id); err != nil {
		return err
	}
	return e.disconnect(ctx, id)
}

// clear removes what the last life of a task holds, except for its network. A shim that
// has yet to record an exit is kept until it has: nobody else knows that exit.
func (e *Engine) clear(ctx context.Context, id string) error {
	r, err := e.process(ctx, id)
	if err != nil {
		return err
	}
	if r != nil && r.Status == tasktypes.Status_STOPPED && e.unrecorded(id) {
		return fmt.Errorf("releasing %s: its shim has not recorded its exit yet", short(id))
	}
	return e.endLife(ctx, id, r)
}

// endLife ends a task's process, its shim, and its use of volumes; r is the process, nil if
// there is none.
func (e *Engine) endLife(ctx context.Context, id string, r *tasktypes.Process) error {
	e.forgetExecs(id)
	end := e.deleteTask
	if r == nil {
		end = e.deleteShim
	}
	if err := end(ctx, id); err != nil {
		return err
	}
	if err := os.Remove(e.o.stdinSocket(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("releasing %s: %w", short(id), err)
	}
	return e.unuseVolumes(ctx, id)
}

// Remove implements task.Runtime.
func (e *Engine) Remove(ctx context.Context, id string) error {
	ctx = e.ctx(ctx)
	r, err := e.process(ctx, id)
	if err != nil {
		return err
	}
	if err := e.endLife(ctx, id, r); err != nil {
		return err
	}
	if err := e.disconnect(ctx, id); err != nil {
		return err
	}
	e.copies.stop(id)
	failpoint.Here("engine.remove.before")
	// Only what earlier agents prepared has a record in containerd.
	if err := e.c.ContainerService().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("removing %s: %w", short(id), err)
	}
	if err := e.c.SnapshotService(images.Snapshotter).Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("removing the files of %s: %w", short(id), err)
	}
	failpoint.Here("engine.remove.after")
	if err := os.RemoveAll(e.o.dir(id)); err != nil {
		return fmt.Errorf("removing %s: %w", short(id), err)
	}
	e.o.Volumes.Drop(id)
	return nil
}

// Resize implements task.Streams.
func (e *Engine) Resize(ctx context.Context, id string, width, height uint32) error {
	_, err := e.tasks.ResizePty(e.ctx(ctx), &taskspb.ResizePtyRequest{ContainerID: id, Width: width, Height: height})
	if err != nil {
		if notFound(err) {
			if _, err := e.readSpec(id); err != nil {
				return err
			}
			return fmt.Errorf("%s: %w", short(id), task.ErrNotRunning)
		}
		return fmt.Errorf("resizing the terminal of %s: %w", short(id), err)
	}
	return nil
}
