package engine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"

	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Exit codes of attempts whose own end nobody saw: docker's.
const (
	killedCode = 137 // its shim was killed
	lostCode   = 255 // its host went down
)

// Prepare implements task.Engine.
func (e *Engine) Prepare(ctx context.Context, s task.Spec) error {
	ctx = e.ctx(ctx)
	img, err := e.image(ctx, s.Digest)
	if err != nil {
		return fmt.Errorf("preparing %s: %w", short(s.ID), err)
	}
	opts, err := e.ociSpec(s, &img.config)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(e.o.logDir(s.ID), 0o700); err != nil {
		return fmt.Errorf("preparing %s: %w", short(s.ID), err)
	}
	if err := e.writeFiles(s, ""); err != nil {
		return err
	}
	_, err = e.c.NewContainer(ctx, s.ID,
		client.WithSnapshotter(snapshotter), client.WithNewSnapshot(s.ID, img.Image),
		client.WithRuntime(e.o.ShimPath, &options.Options{Root: filepath.Join(e.o.RunDir, "runc")}),
		client.WithContainerLabels(map[string]string{labelCluster: e.o.ClusterID, labelTask: s.ID, labelName: s.Name, labelSpec: s.SpecHash}),
		client.WithNewSpec(opts...))
	if errdefs.IsAlreadyExists(err) {
		// A snapshot without container is what a crash between the two left.
		if _, lerr := e.c.LoadContainer(ctx, s.ID); errdefs.IsNotFound(lerr) {
			if rerr := e.c.SnapshotService(snapshotter).Remove(ctx, s.ID); rerr != nil && !errdefs.IsNotFound(rerr) {
				return fmt.Errorf("preparing %s: %w", short(s.ID), rerr)
			}
			return e.Prepare(ctx, s)
		}
		err = nil
	}
	if err != nil {
		return fmt.Errorf("preparing %s: %w", short(s.ID), err)
	}
	return e.writeSpec(s)
}

// stdio hands a task's streams to its shim; nothing of them is in this process.
type stdio struct {
	url string
	tty bool
}

func (s stdio) Config() cio.Config { return cio.Config{Stdout: s.url, Terminal: s.tty} }
func (stdio) Cancel()              {}
func (stdio) Wait()                {}
func (stdio) Close() error         { return nil }

// Start implements task.Engine.
func (e *Engine) Start(ctx context.Context, id string, n int32, ports []*dv1.Port) (task.Attempt, error) {
	ctx = e.ctx(ctx)
	s, err := e.readSpec(id)
	if err != nil {
		return task.Attempt{}, err
	}
	a, err := e.readAttempt(id)
	if err != nil {
		return task.Attempt{}, err
	}
	if a.Number > n {
		return task.Attempt{}, fmt.Errorf("attempt %d of %s: a later one was started: %w", n, short(id), task.ErrNotFound)
	}
	if a.Number == n {
		f, err := e.found(ctx, s, a, nil)
		if err != nil {
			return task.Attempt{}, err
		}
		if f.Attempt.Number == n && (f.Running || f.Attempt.Exit != nil) {
			return f.Attempt, nil
		}
		if f, err = e.startAgain(ctx, s, a); err != nil {
			return task.Attempt{}, err
		}
		if f.Attempt.Number == n {
			return f.Attempt, nil
		}
		if err := e.forgetTry(id, a); err != nil { // it never began
			return task.Attempt{}, fmt.Errorf("starting %s: %w", short(id), err)
		}
	}
	ctr, err := e.c.LoadContainer(ctx, id)
	if errdefs.IsNotFound(err) {
		return task.Attempt{}, fmt.Errorf("%s: %w", short(id), task.ErrNotFound)
	}
	if err != nil {
		return task.Attempt{}, fmt.Errorf("starting %s: %w", short(id), err)
	}
	if a.Number > 0 { // what an earlier, or this, attempt may have left
		if err := e.deleteTask(ctx, ctr); err != nil {
			return task.Attempt{}, err
		}
	}
	return e.startAttempt(ctx, s, ctr, a, n, ports)
}

// startAgain starts what a try had come to before its agent died. The shim may be
// about to start it: it does so once, and to kill it now would be to run it twice.
// What is found then counts; nothing, where there was nothing to start.
func (e *Engine) startAgain(ctx context.Context, s task.Spec, a attempt) (task.Found, error) {
	began, err := e.mayHaveBegun(s.ID, a)
	if err != nil || !began {
		return task.Found{}, err
	}
	p, err := e.process(ctx, s.ID)
	if err != nil || p == nil || p.Status != tasktypes.Status_CREATED {
		return task.Found{}, err
	}
	if _, err := e.c.TaskService().Start(ctx, &taskspb.StartRequest{ContainerID: s.ID}); err != nil {
		e.o.Log.Debug("a start that was cut short could not be taken up", "task", short(s.ID), "err", err)
	}
	f, err := e.found(ctx, s, a, nil)
	if err != nil || !f.Running && f.Attempt.Exit == nil {
		return task.Found{}, err
	}
	return f, nil
}

func (e *Engine) startAttempt(ctx context.Context, s task.Spec, ctr client.Container, before attempt, n int32, ports []*dv1.Port) (out task.Attempt, err error) {
	end, err := logs.End(e.o.logDir(s.ID))
	if err != nil {
		return out, err
	}
	a := attempt{Number: n, Try: rand.Text(), LogStart: end, At: time.Now(), Boot: e.boot}
	if err := e.writeAttempt(s.ID, a); err != nil {
		return out, err
	}
	var timings []task.Timing
	timed := func(name string, began time.Time) {
		timings = append(timings, task.Timing{Name: name, Start: began, End: time.Now()})
	}
	undo := true
	defer func() {
		if err != nil && undo {
			err = errors.Join(err, e.undoStart(context.WithoutCancel(ctx), ctr, a, before))
		}
	}()
	if err := loadProfile(e.facts()); err != nil {
		return out, fmt.Errorf("starting %s: %w", short(s.ID), err)
	}
	if before.Number > 0 { // Prepare looked at the image; this is what the last attempt made of it
		if err := e.startable(ctx, s.ID); err != nil {
			return out, err
		}
	}
	began := time.Now()
	net, err := e.connect(ctx, s, ports)
	if err != nil {
		return out, err
	}
	timed("network", began)
	began = time.Now()
	t, err := ctr.NewTask(ctx, func(string) (cio.IO, error) { return e.stdio(s, a), nil })
	if err != nil {
		return out, startError("create", command(ctx, ctr), err)
	}
	timed("containerd create", began)
	began = time.Now()
	if err := os.WriteFile(e.begunFile(s.ID, a), nil, 0o600); err != nil {
		return out, fmt.Errorf("starting %s: %w", short(s.ID), err)
	}
	if err := t.Start(ctx); err != nil {
		err = startError("start", command(ctx, ctr), err)
		// Where the runtime did not say that it refused, the process may run: the
		// next call of Start looks.
		undo = errors.As(err, new(*task.StartError))
		return out, err
	}
	timed("containerd start", began)
	out = task.Attempt{Number: n, Pid: int(t.Pid()), Started: began, StopSignal: e.stopSignal(ctx, s), Timings: timings}
	place(&out, net)
	if more, err := shimapi.ReadTimings(e.o.recordFile(s.ID, a)); err == nil {
		for _, m := range more {
			out.Timings = append(out.Timings, task.Timing(m))
		}
	}
	return out, nil
}

// begunFile says that a try's process may have run. It need not outlast a power
// cut: the boot id in the attempt speaks for those.
func (e *Engine) begunFile(id string, a attempt) string {
	if a.Try == "" { // of an agent that did not tell tries apart
		return filepath.Join(e.o.dir(id), fmt.Sprintf("begun.%d", a.Number))
	}
	return e.o.recordFile(id, a) + ".begun"
}

func (e *Engine) connect(ctx context.Context, s task.Spec, ports []*dv1.Port) (*network.Attachment, error) {
	if kindOf(&s.Create) != bridged {
		return nil, e.writeFiles(s, "")
	}
	net, err := e.o.Network.Attach(ctx, s.ID, ports)
	var pe *network.PortError
	if errors.As(err, &pe) {
		return nil, refused("driver failed programming external connectivity on endpoint %s (%s): %s", s.Name, short(s.ID), pe.Message)
	}
	if err != nil {
		return nil, err
	}
	return net, e.writeFiles(s, net.IP.String())
}

func (e *Engine) stdio(s task.Spec, a attempt) stdio {
	x := shimapi.Stdio{LogDir: e.o.logDir(s.ID), ExitFile: e.o.recordFile(s.ID, a), Attempt: a.Number}
	if c := s.Create.Config; c != nil {
		x.TTY, x.Stdin, x.StdinOnce = c.Tty, c.OpenStdin, c.StdinOnce && !c.Tty
	}
	if x.Stdin {
		x.Socket = e.o.stdinSocket(s.ID)
	}
	return stdio{url: x.URL(), tty: x.TTY}
}

// undoStart frees what a refused start took, so that nothing is half-made. A
// process that may still be there keeps its network and its attempt.
func (e *Engine) undoStart(ctx context.Context, ctr client.Container, a, before attempt) error {
	id := ctr.ID()
	if err := e.deleteTask(ctx, ctr); err != nil {
		return err
	}
	err := errors.Join(e.forgetTry(id, a), e.o.Network.Detach(ctx, id))
	if before.Number < a.Number {
		err = errors.Join(err, e.writeAttempt(id, before))
	}
	return err
}

// deleteTask kills and deletes a container's task, if there is one.
func (e *Engine) deleteTask(ctx context.Context, ctr client.Container) error {
	t, err := ctr.Task(ctx, nil)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("looking for the process of %s: %w", short(ctr.ID()), err)
	}
	if err == nil {
		_, err = t.Delete(ctx, client.WithProcessKill)
	}
	if errdefs.IsNotFound(err) {
		return e.deleteShim(ctx, ctr.ID())
	}
	if err != nil {
		return fmt.Errorf("deleting the process of %s: %w", short(ctr.ID()), err)
	}
	return nil
}

// deleteShim ends what a deletion left that was cut short, as by the death of an
// agent: the process is gone from its shim, and so not found, but containerd keeps
// the shim for another deletion, and makes no task beside it.
func (e *Engine) deleteShim(ctx context.Context, id string) error {
	_, err := e.c.TaskService().Delete(ctx, &taskspb.DeleteTaskRequest{ContainerID: id})
	if err != nil && !notFound(err) {
		return fmt.Errorf("deleting the shim of %s: %w", short(id), err)
	}
	return nil
}

// startError puts a refusal of the runtime into docker's words, with docker's exit
// codes. What else went wrong (containerd away, a layer lost) is not the user's,
// and is passed on as it is.
func startError(step, command string, err error) error {
	m := err.Error()
	_, why, ok := strings.Cut(m, "OCI runtime "+step+" failed: ")
	if !ok {
		return fmt.Errorf("%s of a task: %w", step, err)
	}
	has := func(s string) bool { return strings.Contains(m, s) }
	named := command != "" && has(command) // else it speaks of some other file, such as a mount
	code := 125
	switch {
	case named && (has("executable file not found") || has("no such file or directory")):
		code = 127
	case has("permission denied"), named && (has("is a directory") || has("exec format error")):
		code = 126
	case has("not a directory"):
		code = 127
		why += ": Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type"
	}
	why = "OCI runtime " + step + " failed: " + why
	if step == "exec" {
		return &task.StartError{Code: code, Message: why}
	}
	return &task.StartError{Code: code, Message: "failed to create task for container: failed to create shim task: " + why}
}

// command is what a container runs, "" where containerd does not say.
func command(ctx context.Context, ctr client.Container) string {
	if s, err := ctr.Spec(ctx); err == nil && s.Process != nil && len(s.Process.Args) > 0 {
		return s.Process.Args[0]
	}
	return ""
}

func (e *Engine) stopSignal(ctx context.Context, s task.Spec) string {
	if i, err := e.image(ctx, s.Digest); err == nil {
		return i.config.Config.StopSignal
	}
	return ""
}

// Wait implements task.Engine. The exit file is what counts; containerd is asked
// on the side, for shims that were killed before they wrote one.
func (e *Engine) Wait(ctx context.Context, id string, n int32) (*dv1.Exit, error) {
	ch, stop, err := e.follow.listen(e.o.dir(id))
	if err != nil {
		if _, serr := e.readSpec(id); serr != nil {
			return nil, serr
		}
		return nil, err
	}
	defer stop()
	late := time.NewTimer(2 * time.Second)
	defer late.Stop()
	for {
		if x, err := e.readExit(id, n); x != nil || err != nil {
			return x, err
		}
		a, err := e.readAttempt(id)
		if err != nil {
			return nil, err
		}
		if a.Number > n {
			return nil, fmt.Errorf("attempt %d of %s: %w", n, short(id), task.ErrNotFound)
		}
		select {
		case <-ch:
		case <-late.C:
			if a.Number == n {
				if x := e.settleWhenDead(ctx, id, a); x != nil {
					return x, nil
				}
			}
			late.Reset(2 * time.Second)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// settleWhenDead gives the exit of an attempt that runs no more though its shim
// has not recorded one; nil where it may go on.
func (e *Engine) settleWhenDead(ctx context.Context, id string, a attempt) *dv1.Exit {
	p, err := e.process(e.ctx(ctx), id)
	if err != nil || p != nil && p.Status != tasktypes.Status_STOPPED {
		return nil // where containerd is away, it comes back
	}
	x, err := e.settle(ctx, id, a, p)
	if err != nil && ctx.Err() == nil {
		e.o.Log.Error("an exit could not be recorded", "task", short(id), "err", err)
	}
	return x
}

// recordWithin is how long after its process the record of a shim may come: the
// shim waits for the last output first.
const recordWithin = 5 * time.Second

// settle gives the exit of an attempt that runs no more; p is its stopped
// process, nil where its shim is gone. nil: it never began.
func (e *Engine) settle(ctx context.Context, id string, a attempt, p *tasktypes.Process) (*dv1.Exit, error) {
	if x, err := e.readExit(id, a.Number); x != nil || err != nil {
		return x, err
	}
	began, err := e.mayHaveBegun(id, a)
	if err != nil || !began {
		return nil, err
	}
	if p != nil {
		return e.stopped(ctx, id, a, p)
	}
	x := shimapi.Exit{Attempt: a.Number, Code: killedCode, At: time.Now(), Started: a.At}
	if a.Boot != e.boot {
		x.Code = lostCode
	}
	if x.LogEnd, err = logs.End(e.o.logDir(id)); err != nil {
		return nil, err
	}
	if err := shimapi.WriteExit(e.o.recordFile(id, a), x); err != nil {
		return nil, err
	}
	return e.readExit(id, a.Number)
}

// stopped gives the exit of a process whose shim lives, and so is the one to
// record it. Where the shim can't for long (a full disk), its word is taken.
func (e *Engine) stopped(ctx context.Context, id string, a attempt, p *tasktypes.Process) (*dv1.Exit, error) {
	ch, stop, err := e.follow.listen(e.o.dir(id))
	if err != nil {
		return nil, err
	}
	defer stop()
	late := time.NewTimer(e.recordWithin)
	defer late.Stop()
	for {
		if x, err := e.readExit(id, a.Number); x != nil || err != nil {
			return x, err
		}
		select {
		case <-ch:
		case <-late.C:
			end, err := logs.End(e.o.logDir(id))
			return &dv1.Exit{Attempt: a.Number, Code: int32(p.ExitStatus), At: p.ExitedAt.AsTime().UnixNano(), Started: a.At.UnixNano(), LogEnd: end}, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// mayHaveBegun says whether a try's process may have run.
func (e *Engine) mayHaveBegun(id string, a attempt) (bool, error) {
	if a.Boot != e.boot {
		return true, nil // begunFile need not have lasted
	}
	_, err := os.Stat(e.begunFile(id, a))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// process gives a task's process, nil if containerd has none.
func (e *Engine) process(ctx context.Context, id string) (*tasktypes.Process, error) {
	r, err := e.c.TaskService().Get(ctx, &taskspb.GetRequest{ContainerID: id})
	if err != nil {
		if notFound(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("asking for the process of %s: %w", short(id), err)
	}
	return r.Process, nil
}

func notFound(err error) bool {
	return errdefs.IsNotFound(err) || strings.Contains(err.Error(), "NotFound") || strings.Contains(err.Error(), "not found")
}

// found is a task as it is now. p is its process, looked up if nil. With an error,
// the task it gives has neither ended nor is it said to run.
func (e *Engine) found(ctx context.Context, s task.Spec, a attempt, p *tasktypes.Process) (task.Found, error) {
	f := task.Found{Spec: s, Attempt: task.Attempt{Number: a.Number, StopSignal: e.stopSignal(ctx, s)}}
	if a.Number == 0 {
		return f, nil
	}
	place(&f.Attempt, e.o.Network.Get(s.ID))
	f.Attempt.Started = a.At
	x, err := e.readExit(s.ID, a.Number)
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
			return f, fmt.Errorf("asking for the process of %s: its shim gives no state", short(s.ID))
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
	f.Running, f.Paused, f.Attempt.Pid = true, p.Status == tasktypes.Status_PAUSED, int(p.Pid)
	return f, nil
}

// neverBegan makes of a found task what it was before its last start, which was
// cut short before any process ran.
func (e *Engine) neverBegan(f task.Found) (task.Found, error) {
	id := f.Spec.ID
	for n := f.Attempt.Number - 1; n > 0; n-- {
		x, err := e.readExit(id, n)
		if err != nil {
			return f, err
		}
		if x != nil {
			f.Attempt = task.Attempt{Number: n, Exit: x, StopSignal: f.Attempt.StopSignal, Started: time.Unix(0, x.Started)}
			return f, nil
		}
	}
	f.Attempt = task.Attempt{StopSignal: f.Attempt.StopSignal}
	return f, nil
}

// List implements task.Engine. Tasks whose container is gone from containerd
// are no tasks any more. What is wrong with one keeps no other from being listed:
// one that can't be looked at is waited on, one whose files are damaged is left
// out, and found when it is prepared and started again.
func (e *Engine) List(ctx context.Context) ([]task.Found, error) {
	ctx = e.ctx(ctx)
	dirs, err := os.ReadDir(e.o.tasks())
	if err != nil {
		return nil, fmt.Errorf("listing tasks: %w", err)
	}
	r, err := e.c.TaskService().List(ctx, &taskspb.ListTasksRequest{})
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
			e.o.Log.Error("it is not known whether a task runs", "task", short(s.ID), "err", err)
		}
		out = append(out, f)
	}
	return out, nil
}

// Signal implements task.Engine.
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
	x, err := e.readExit(id, a.Number)
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
	// Without a pid namespace of its own, nothing dies with the first process.
	all := sig == syscall.SIGKILL && s.Create.HostConfig != nil && s.Create.HostConfig.PidMode.IsHost()
	_, err = e.c.TaskService().Kill(ctx, &taskspb.KillRequest{ContainerID: id, Signal: uint32(sig), All: all})
	if err != nil {
		if notFound(err) || strings.Contains(err.Error(), "process already finished") || strings.Contains(err.Error(), "FailedPrecondition") {
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
		return 0, refused("%v", err)
	}
	return sig, nil
}

// Release implements task.Engine. A shim that has an exit still to record is kept
// until it did: nobody else knows that exit.
func (e *Engine) Release(ctx context.Context, id string) error {
	r, err := e.process(e.ctx(ctx), id)
	if err != nil {
		return err
	}
	if r != nil && r.Status == tasktypes.Status_STOPPED && e.unrecorded(id) {
		return fmt.Errorf("releasing %s: its shim has not recorded its exit yet", short(id))
	}
	return e.release(ctx, id, r)
}

// unrecorded says whether the exit of a stopped process is still to be recorded.
func (e *Engine) unrecorded(id string) bool {
	a, err := e.readAttempt(id)
	if err != nil || a.Number == 0 {
		return false
	}
	if began, err := e.mayHaveBegun(id, a); err != nil || !began {
		return false
	}
	x, err := e.readExit(id, a.Number)
	return x == nil && err == nil
}

func (e *Engine) release(ctx context.Context, id string, r *tasktypes.Process) error {
	ctx = e.ctx(ctx)
	e.forgetExecs(id)
	if r == nil {
		if err := e.deleteShim(ctx, id); err != nil {
			return err
		}
	} else {
		ctr, err := e.c.LoadContainer(ctx, id)
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("releasing %s: %w", short(id), err)
		}
		if err == nil {
			if err := e.deleteTask(ctx, ctr); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(e.o.stdinSocket(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("releasing %s: %w", short(id), err)
	}
	return e.o.Network.Detach(ctx, id)
}

// Remove implements task.Engine.
func (e *Engine) Remove(ctx context.Context, id string) error {
	ctx = e.ctx(ctx)
	r, err := e.process(ctx, id)
	if err != nil {
		return err
	}
	if err := e.release(ctx, id, r); err != nil {
		return err
	}
	ctr, err := e.c.LoadContainer(ctx, id)
	if err == nil {
		err = ctr.Delete(ctx, client.WithSnapshotCleanup)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("removing %s: %w", short(id), err)
	}
	if err := os.RemoveAll(e.o.dir(id)); err != nil {
		return fmt.Errorf("removing %s: %w", short(id), err)
	}
	return nil
}

// Resize implements task.Engine.
func (e *Engine) Resize(ctx context.Context, id string, width, height uint32) error {
	_, err := e.c.TaskService().ResizePty(e.ctx(ctx), &taskspb.ResizePtyRequest{ContainerID: id, Width: width, Height: height})
	if err != nil {
		if notFound(err) {
			return fmt.Errorf("%s: %w", short(id), task.ErrNotRunning)
		}
		return fmt.Errorf("resizing the terminal of %s: %w", short(id), err)
	}
	return nil
}
