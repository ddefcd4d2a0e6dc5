package task

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/failpoint"
	"github.com/drover/drover/pkg/life"
)

const (
	// keepLogs is how long the logs of an auto-removed task are kept for a reader, and
	// those of a forcibly removed one for the reader that it has.
	keepLogs = 30 * time.Second
	// killAgain is the pause before a SIGKILL without effect is repeated.
	killAgain = 2 * time.Second
	// startBudget bounds how long a start is retried while the engine is away.
	startBudget = 15 * time.Second
	// lostCode is docker's exit code for a process whose end nobody observed.
	lostCode = 255
)

// worker drives one task, one step at a time, in one goroutine.
type worker struct {
	r   *Reconciler
	id  string
	raw []byte
	log *slog.Logger

	mu      sync.Mutex // guards the fields below
	want    want
	pull    *pull                 // in progress, else nil
	readers map[*Reader]life.Life // whose output each reads, zero if unknown
	rewired bool                  // it is time to try to rewire again
	told    bool                  // anew what is wanted: endpoints to leave may not be known to be gone
	read    bool

	wake chan struct{} // one of the above changed

	// Only used by the goroutine.
	have   have
	exit   chan *dv1.Exit // of the running process
	timer  *time.Timer    // until SIGKILL, or until logs are no longer kept
	signal string         // the image's stop signal
}

// pull is a pull that continues as long as the attempt it is for is wanted.
type pull struct {
	attempt int32
	end     context.CancelFunc
}

func (w *worker) set(x want) {
	w.mu.Lock()
	w.want, w.told = x, true
	if w.pull != nil && !x.wants(w.pull.attempt) {
		w.pull.end()
	}
	w.mu.Unlock()
	w.poke()
}

// Reader is a reader of a task's output.
type Reader struct{ w *worker }

// Of sets which life's end the reader waits for.
func (r *Reader) Of(l life.Life) {
	r.note(func(w *worker) { w.readers[r] = l })
}

// Left records that the reader left, and whether it has read the output to its end.
func (r *Reader) Left(end bool) {
	r.note(func(w *worker) {
		delete(w.readers, r)
		w.read = w.read || end
	})
}

func (r *Reader) note(f func(w *worker)) {
	if r.w == nil { // of a task that this node doesn't have
		return
	}
	r.w.mu.Lock()
	f(r.w)
	r.w.mu.Unlock()
	r.w.poke()
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) look() want {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.have.reading = false
	for _, of := range w.readers { // a reader of a life that will never begin blocks nothing
		w.have.reading = w.have.reading || !w.have.life.Before(of)
	}
	w.have.read = w.read && !w.have.reading
	w.have.unwired = w.have.unwired && !w.rewired
	if w.told {
		w.told, w.have.left = false, ""
	}
	return w.want
}

// adopt adopts what the engine found, nil if nothing.
func (w *worker) adopt(f *Found) {
	s := &dv1.TaskStatus{Id: w.raw, Phase: dv1.Phase_PENDING}
	if f != nil {
		a := f.Attempt
		w.signal = a.StopSignal
		started := a.Life != life.Life{}
		// A life without a record of its end is waited on: the engine knows more.
		w.have = have{prepared: true, life: a.Life, running: started && (f.Running || a.Exit == nil), wired: "?"}
		w.have.held = started && !w.have.running
		s.Phase = dv1.Phase_READY
		if started {
			s = w.seen(a)
		}
		s.Paused = f.Paused
	}
	if x := w.want.failed; x != nil && !life.Of(x).Before(w.have.life) && !w.have.running {
		w.have.life, w.have.held, w.have.failed = life.Of(x), true, true
		s = x
	}
	w.report(s, w.want)
}

// seen returns the status of a life as found in the engine.
func (w *worker) seen(a Attempt) *dv1.TaskStatus {
	s := &dv1.TaskStatus{Id: w.raw, Attempt: a.Life.Attempt, Restarts: a.Life.Restarts, Phase: dv1.Phase_ACTIVE, Pid: int32(a.Pid), Ip: a.IP,
		Gateway: a.Gateway, Mac: a.MAC, PrefixLen: int32(a.PrefixLen), Ports: a.Ports}
	if !a.Started.IsZero() {
		s.Started = a.Started.UnixNano()
	}
	switch {
	case a.Exit != nil:
		ended(s, a.Exit)
	case a.Before != nil: // its own status may never have been reported
		s.Exit = proto.CloneOf(a.Before)
	}
	return s
}

func ended(s *dv1.TaskStatus, x *dv1.Exit) {
	s.Phase, s.Exit, s.Pid, s.Paused = dv1.Phase_EXITED, proto.CloneOf(x), 0, false
	s.Exit.Attempt, s.Exit.Restarts = s.Attempt, s.Restarts
	if s.Started == 0 {
		s.Started = x.Started
	}
}

// report publishes s, completed from the store.
func (w *worker) report(s *dv1.TaskStatus, x want) {
	s.Orphan = x.orphan || (x.task == nil && x.tomb == nil)
	s.At = time.Now().UnixNano()
	w.r.publish(s)
}

func (w *worker) run(ctx context.Context, f *Found) {
	w.timer = time.NewTimer(time.Hour)
	defer w.timer.Stop()
	w.timer.Stop()
	if w.have.running {
		w.watch(ctx, f.Attempt.Life)
	}
	for ctx.Err() == nil {
		x := w.look()
		if s := w.r.status(w.raw); s != nil && s.Orphan != (x.orphan || (x.task == nil && x.tomb == nil)) {
			w.report(proto.CloneOf(s), x)
		}
		switch next(x, w.have) {
		case prepare:
			w.prepare(ctx, x)
		case start:
			w.start(ctx, x)
		case never:
			w.fail(x, errors.New("it was stopped before it was started"))
		case stop:
			w.stop(ctx, x)
		case release:
			w.release(ctx)
		case rewire:
			w.rewire(ctx, x)
		case leave:
			w.leave(x)
		case remove:
			if w.remove(ctx) {
				return
			}
		case hold:
			w.timer.Reset(keepLogs)
			w.pause(ctx, x)
		case await, idle:
			w.pause(ctx, x)
		}
	}
}

// pause waits until there is something to do.
func (w *worker) pause(ctx context.Context, x want) {
	for held := next(x, w.have) == hold; ; {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
			if held { // logs are kept for a limited time, which keeps running
				was := w.have.reading
				if x = w.look(); next(x, w.have) == hold {
					if was && !w.have.reading {
						w.timer.Reset(keepLogs) // for a reader that lost its connection to come back
					}
					continue
				}
			}
			return
		case e := <-w.exit:
			w.exited(e, x)
			return
		case <-w.timer.C:
			if held {
				if w.have.reading && x.task.GetAutoRemove() && !x.tomb.Force {
					w.timer.Reset(keepLogs) // a slow reader is still a reader
					continue
				}
				w.have.waited = true
				return
			}
			w.kill(ctx)
			return
		}
	}
}

// prepare makes the container. An engine that is away is given time to come back, unless
// something else is wanted meanwhile: a failure would be seen by those who attach first.
func (w *worker) prepare(ctx context.Context, x want) {
	tctx, span := w.span(ctx, "agent prepare", x.task.Traceparent)
	defer span.End()
	var late <-chan time.Time // however long it took to notice
	for wait := firstPause; ; wait = min(2*wait, maxPause) {
		err := w.made(tctx, x, 0)
		switch {
		case ctx.Err() != nil, errors.Is(err, errUnwanted):
			w.have.tried = true
			return
		case err == nil:
			w.report(&dv1.TaskStatus{Id: w.raw, Phase: dv1.Phase_READY}, x)
			return
		}
		w.log.Warn("preparing a task failed", "err", err)
		over := errors.As(err, new(*StartError))
		if late == nil {
			late = time.After(startBudget)
		}
		if !over {
			select {
			case <-w.wake:
				return // to the step that is next now
			case <-time.After(wait/2 + rand.N(wait/2)):
			case <-late:
				over = true
			case <-ctx.Done():
				return
			}
		}
		if over {
			w.have.tried = true
			w.report(&dv1.TaskStatus{Id: w.raw, Phase: dv1.Phase_FAILED, Why: why(err)}, x)
			return
		}
	}
}

// made prepares the container, and pulls its image if it isn't here.
func (w *worker) made(ctx context.Context, x want, attempt int32) error {
	spec, err := specOf(w.id, x)
	if err != nil {
		return err
	}
	err = w.r.o.Runtime.Prepare(ctx, spec)
	if errors.Is(err, ErrNoImage) {
		w.phase(x, attempt, dv1.Phase_PULLING)
		if err := w.pulled(ctx, spec, attempt); err != nil {
			return err
		}
		w.phase(x, attempt, dv1.Phase_PREPARING)
		err = w.r.o.Runtime.Prepare(ctx, spec)
	}
	if err != nil {
		return err
	}
	w.have.prepared = true
	return nil
}

// errUnwanted ends a step whose attempt was removed, stopped or superseded meanwhile.
var errUnwanted = errors.New("it is no longer wanted")

// pulled pulls the image, unless attempt is no longer wanted meanwhile.
func (w *worker) pulled(ctx context.Context, s Spec, attempt int32) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	w.mu.Lock()
	w.pull = &pull{attempt, end}
	if !w.want.wants(attempt) { // changed before there was a pull to end
		end()
	}
	w.mu.Unlock()
	_, err := w.r.o.Images.Pull(ctx, s.Image, s.Digest, nil, func(Progress) {})
	w.mu.Lock()
	w.pull = nil
	w.mu.Unlock()
	if !w.wants(attempt) {
		return errUnwanted
	}
	if err != nil {
		return &StartError{Code: 125, Message: fmt.Sprintf("pulling %s: %v", s.Image, err)}
	}
	return nil
}

func (w *worker) wants(attempt int32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.want.wants(attempt)
}

// phase reports a step towards an attempt, once.
func (w *worker) phase(x want, attempt int32, p dv1.Phase) {
	s := &dv1.TaskStatus{Id: w.raw, Attempt: attempt, Phase: p}
	if forward(w.r.status(w.raw), s) {
		w.report(s, x)
	}
}

func specOf(id string, x want) (Spec, error) {
	s := Spec{ID: id, Name: x.task.Name, Image: x.spec.GetImage(), Digest: x.spec.GetDigest(),
		SpecHash: fmt.Sprintf("%x", x.spec.GetId()), AutoRemove: x.task.AutoRemove}
	if err := json.Unmarshal(x.spec.GetBody(), &s.Create); err != nil {
		return s, &StartError{Code: 125, Message: fmt.Sprintf("reading the spec of container %s: %v", x.task.Name, err)}
	}
	for _, m := range x.task.Mounts {
		mount := Mount{Source: m.Source, CreateSource: m.CreateSource, Target: m.Target, ReadOnly: m.ReadOnly, NoCopy: m.NoCopy, Subpath: m.Subpath, Propagation: m.Propagation}
		for _, v := range x.vols {
			if bytes.Equal(v.Id, m.VolumeId) {
				mount.Volume = &Volume{ID: hex.EncodeToString(v.Id), Name: v.Name, Options: v.Options}
			}
		}
		if mount.Volume == nil && m.Source == "" {
			return s, &StartError{Code: 125, Message: fmt.Sprintf("container %s mounts a volume at %s that this node was not told of", x.task.Name, m.Target)}
		}
		s.Mounts = append(s.Mounts, mount)
	}
	return s, nil
}

// release releases what an ended life holds, and retries while nothing else is
// wanted: a shim that can't record its exit on a full disk keeps everything, yet a task
// that was removed meanwhile must go, since that frees space. The logs of such an
// attempt are kept for a reader no longer than others.
func (w *worker) release(ctx context.Context) {
	var removed time.Time         // when the removal was noticed
	_ = again(ctx, func() error { // fails when the agent ends
		x := w.look()
		if x.tomb != nil && removed.IsZero() {
			removed = time.Now()
		}
		w.have.waited = w.have.waited || !removed.IsZero() && time.Since(removed) >= keepLogs
		if next(x, w.have) != release {
			return nil
		}
		err := w.logged("releasing", w.r.o.Runtime.Release(ctx, w.id))
		w.have.held = err != nil && !errors.Is(err, ErrNotFound)
		return err
	}, ErrNotFound)
}

// rewireAgain is the pause before networks that could not be changed are tried again.
const rewireAgain = time.Second

// rewire changes the networks of the running process. What fails is tried again while
// the worker does what else is wanted.
func (w *worker) rewire(ctx context.Context, x want) {
	err := w.logged("changing the networks of", w.r.o.Runtime.Rewire(ctx, w.id, x.endpoints()))
	if err == nil || ctx.Err() != nil {
		w.have.wired = x.wiring()
		return
	}
	w.have.unwired = true
	w.mu.Lock()
	w.rewired = false
	w.mu.Unlock()
	time.AfterFunc(rewireAgain, func() {
		w.mu.Lock()
		w.rewired = true
		w.mu.Unlock()
		w.poke()
	})
}

// leave acknowledges endpoints that are gone.
func (w *worker) leave(x want) {
	for _, e := range x.ends {
		if e.Leaving {
			w.r.o.Reporter.Left(e.TaskId, e.NetworkId)
		}
	}
	w.have.left = x.leaving()
}

// start starts the wanted attempt. Errors of the user fail it at once; an engine that is
// away is given time to come back.
func (w *worker) start(ctx context.Context, x want) {
	n := x.task.Attempt
	w.mu.Lock()
	w.read = false
	w.mu.Unlock()
	w.have.stopping, w.have.failed = stopping{}, false
	tctx, span := w.span(ctx, "agent start", x.task.Traceparent)
	defer span.End()
	ctx = tctx
	var a Attempt
	var last error // as returned by the engine
	try := func() error {
		if a, last = w.try(ctx, x, n); last == nil {
			return nil
		}
		if errors.As(last, new(*StartError)) || errors.Is(last, errUnwanted) {
			return nil
		}
		if errors.Is(last, ErrNotFound) {
			w.have.prepared = false
		}
		return w.logged("starting", last)
	}
	if try() != nil { // from now on the engine is away, however long it took to notice
		bctx, cancel := context.WithTimeout(ctx, startBudget)
		defer cancel()
		_ = again(bctx, try)
	}
	if ctx.Err() != nil {
		return // the next agent finds out the result
	}
	if errors.Is(last, errUnwanted) {
		return
	}
	if last != nil {
		span.SetStatus(codes.Error, last.Error())
		w.fail(x, last)
		return
	}
	for _, t := range a.Timings {
		_, s := w.r.o.Tracer.Start(ctx, t.Name, trace.WithTimestamp(t.Start))
		s.End(trace.WithTimestamp(t.End))
	}
	w.signal = a.StopSignal
	w.have.life, w.have.running, w.have.held, w.have.wired = a.Life, a.Exit == nil, a.Exit != nil, x.wiring()
	if w.have.running {
		w.watch(ctx, a.Life)
	}
	failpoint.Here("task.start.done")
	w.report(w.seen(a), x)
}

// span joins the trace of the operation that requested a step.
func (w *worker) span(ctx context.Context, name, traceparent string) (context.Context, trace.Span) {
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
	return w.r.o.Tracer.Start(ctx, name, trace.WithAttributes(attribute.String("task", w.id)))
}

// try prepares the task if necessary, and starts it. The caller's budget is for an
// engine that is away, so it does not limit a long pull.
func (w *worker) try(ctx context.Context, x want, n int32) (Attempt, error) {
	if !w.have.prepared {
		if err := w.made(ctx, x, n); err != nil {
			return Attempt{}, err
		}
	}
	if !w.wants(n) {
		return Attempt{}, errUnwanted
	}
	return w.r.o.Runtime.Start(ctx, w.id, life.First(n), &Wiring{Ports: x.task.Ports, Endpoints: x.endpoints()})
}

// fail records that the wanted attempt never ran.
func (w *worker) fail(x want, err error) {
	s := &dv1.TaskStatus{Id: w.raw, Attempt: x.task.Attempt, Phase: dv1.Phase_FAILED, Why: why(err)}
	if err := w.r.o.Store.fail(s); err != nil {
		w.log.Error("a failed start can't be stored, and would be retried if this agent restarted", "err", err)
	}
	failpoint.Here("task.fail.after")
	w.have.life, w.have.running, w.have.held, w.have.failed = life.Of(s), false, true, true
	w.report(s, x)
}

// watch waits in the background for the exit of the running process.
func (w *worker) watch(ctx context.Context, l life.Life) {
	ch := make(chan *dv1.Exit, 1)
	w.exit = ch
	w.r.wg.Go(func() {
		var x *dv1.Exit
		err := again(ctx, func() (err error) { x, err = w.r.o.Runtime.Wait(ctx, w.id, l); return err }, ErrNotFound, ErrNotRunning)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			x = &dv1.Exit{Attempt: l.Attempt, Restarts: l.Restarts, Code: lostCode, At: time.Now().UnixNano(), Reason: "its end was not observed: " + err.Error()}
		}
		ch <- x
	})
}

func (w *worker) exited(e *dv1.Exit, x want) {
	w.timer.Stop()
	w.exit = nil
	w.have.running, w.have.held, w.have.stopping = false, true, stopping{}
	s := proto.CloneOf(w.r.status(w.raw))
	if s == nil || life.Of(s) != w.have.life {
		s = &dv1.TaskStatus{Id: w.raw, Attempt: w.have.life.Attempt, Restarts: w.have.life.Restarts}
	}
	ended(s, e)
	failpoint.Here("task.exit.seen")
	w.report(s, x)
}

// stop signals the running process, and arms the timer for SIGKILL.
func (w *worker) stop(ctx context.Context, x want) {
	w.have.stopping = order(x, w.have)
	if w.have.stopping.killing {
		w.kill(ctx)
		return
	}
	w.timer.Stop()
	if t := x.task.StopTimeout; t > 0 {
		w.timer.Reset(time.Duration(t) * time.Second)
	}
	sig := x.task.StopSignal
	if sig == "" {
		if s, err := specOf(w.id, x); err == nil && s.Create.Config != nil {
			sig = s.Create.StopSignal
		}
	}
	if sig == "" {
		sig = w.signal
	}
	if sig == "" {
		sig = "SIGTERM"
	}
	err := w.r.o.Runtime.Signal(ctx, w.id, sig)
	if err = w.logged("stopping", err); err != nil && !errors.Is(err, ErrNotRunning) {
		w.timer.Reset(killAgain) // a signal that was not delivered is not waited for
	}
}

func (w *worker) kill(ctx context.Context) {
	_ = w.logged("killing", w.r.o.Runtime.Signal(ctx, w.id, "SIGKILL"))
	w.timer.Reset(killAgain)
}

func (w *worker) remove(ctx context.Context) (done bool) {
	err := again(ctx, func() error {
		if err := w.logged("removing", w.r.o.Runtime.Remove(ctx, w.id)); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		failpoint.Here("task.forget.before")
		return w.logged("forgetting", w.r.gone(w))
	})
	return err == nil
}

// logged logs what went wrong in a step that is retried, and returns it.
func (w *worker) logged(doing string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, ErrNotRunning) || errors.Is(err, ErrNotFound) {
		return err
	}
	w.log.Warn(doing+" a task", "err", err)
	return err
}
