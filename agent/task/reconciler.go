package task

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/failpoint"
	"github.com/drover/drover/pkg/life"
)

// Reporter receives what the reconciler reports. It must not block.
type Reporter interface {
	Status(*dv1.TaskStatus)
	Ack(index uint64)
	Removed(id []byte)
	// Left acknowledges that a task that stays is no longer in a network.
	Left(task, network []byte)
}

// Options of a Reconciler.
type Options struct {
	Runtime  Runtime
	Images   Puller  // for images that a task needs and the node lacks
	Volumes  Volumes // may be nil: then no volume is removed
	Store    *Store
	Reporter Reporter
	Log      *slog.Logger
	Tracer   trace.Tracer // nil: none
}

// Volumes is the data of the node's volumes.
type Volumes interface {
	// Remove deletes a volume's data, once no task of the node uses it: it blocks until
	// then. What is not there is no error.
	Remove(ctx context.Context, id string) error
}

// Reconciler brings an engine to the state that the store holds. Safe for concurrent
// use.
type Reconciler struct {
	o     Options
	ready chan struct{} // closed when what the engine holds was adopted
	wg    sync.WaitGroup

	// changing orders changes of the store by syncs and by workers, so that a tombstone
	// that is repeated while its task is being removed isn't kept for ever. It is held
	// over the store's fsync, which orders them anyway. It guards over.
	changing sync.Mutex
	over     bool

	mu       sync.Mutex // guards the fields below
	ctx      context.Context
	workers  map[string]*worker
	statuses map[string]*dv1.TaskStatus
	removing map[string]bool // volumes, by raw id
}

// New returns a Reconciler that is not running yet.
func New(o Options) *Reconciler {
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	return &Reconciler{o: o, ready: make(chan struct{}), workers: map[string]*worker{}, statuses: map[string]*dv1.TaskStatus{}, removing: map[string]bool{}}
}

// Run adopts what the engine holds, resumes from the store even without a controller,
// and works until ctx ends; containers keep running then. It may be called once.
func (r *Reconciler) Run(ctx context.Context) error {
	var found []Found
	err := again(ctx, func() (err error) {
		if found, err = r.o.Runtime.List(ctx); err != nil {
			r.o.Log.Warn("listing the engine's tasks failed; it is retried", "err", err)
		}
		return err
	})
	if err != nil {
		return err
	}
	wants, err := r.o.Store.all()
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.ctx = ctx
	r.mu.Unlock()
	for _, f := range found {
		id, err := hex.DecodeString(f.Spec.ID)
		if err != nil {
			r.o.Log.Warn("the engine holds a task with a malformed id", "task", f.Spec.ID)
			continue
		}
		r.spawn(id, wants[string(id)], &f)
		delete(wants, string(id))
	}
	for id, w := range wants {
		r.spawn([]byte(id), w, nil)
	}
	close(r.ready)
	<-ctx.Done()
	r.changing.Lock()
	r.over = true // Take starts no more workers
	r.changing.Unlock()
	r.wg.Wait()
	return ctx.Err()
}

// Ready returns a channel that is closed once Statuses covers everything on this node.
func (r *Reconciler) Ready() <-chan struct{} { return r.ready }

// Take stores a sync or a part of one, lets workers act on it, and acknowledges the
// whole sync. A stale one returns ErrStale and changes nothing. It blocks until the
// reconciler is ready.
func (r *Reconciler) Take(ctx context.Context, y *dv1.Sync) error {
	select {
	case <-r.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	if r.over {
		return errors.New("taking a sync: the reconciler has ended")
	}
	changed, err := r.o.Store.take(y)
	if err != nil {
		return err
	}
	if !y.More {
		r.o.Reporter.Ack(y.Index)
	}
	for id, w := range changed {
		r.mu.Lock()
		k := r.workers[id]
		r.mu.Unlock()
		if k == nil {
			r.spawn([]byte(id), w, nil)
			continue
		}
		k.set(w)
	}
	for _, t := range y.VolumesRemoved {
		r.removeVolume(t.VolumeId)
	}
	return nil
}

// removeVolume removes a volume in the background, and acknowledges its tombstone. It is
// not stored: controllers repeat what was not acknowledged.
func (r *Reconciler) removeVolume(raw []byte) {
	r.mu.Lock()
	ctx, already := r.ctx, r.removing[string(raw)]
	r.removing[string(raw)] = true
	r.mu.Unlock()
	if already || r.o.Volumes == nil {
		return
	}
	r.wg.Go(func() {
		id := hex.EncodeToString(raw)
		err := again(ctx, func() error {
			err := r.o.Volumes.Remove(ctx, id)
			if err != nil && ctx.Err() == nil {
				r.o.Log.Warn("removing a volume", "volume", id[:min(12, len(id))], "err", err)
			}
			return err
		})
		r.mu.Lock()
		delete(r.removing, string(raw))
		r.mu.Unlock()
		if err == nil {
			r.o.Reporter.Removed(raw)
		}
	})
}

// Statuses returns the current statuses of all tasks on this node.
func (r *Reconciler) Statuses() []*dv1.TaskStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*dv1.TaskStatus, 0, len(r.statuses))
	for _, s := range r.statuses {
		out = append(out, s)
	}
	return out
}

// Reading records that a reader of a task's output has arrived. The logs of an
// auto-removed task are kept until it has read them all, and for keepLogs if it leaves
// before.
func (r *Reconciler) Reading(taskID string) *Reader {
	id, _ := hex.DecodeString(taskID)
	r.mu.Lock()
	w := r.workers[string(id)]
	r.mu.Unlock()
	k := &Reader{w}
	k.Of(life.Life{})
	return k
}

func (r *Reconciler) spawn(id []byte, wanted want, f *Found) {
	w := &worker{r: r, id: hex.EncodeToString(id), raw: id, want: wanted, readers: map[*Reader]life.Life{}, wake: make(chan struct{}, 1),
		log: r.o.Log.With("task", hex.EncodeToString(id)[:min(12, 2*len(id))])}
	r.mu.Lock()
	r.workers[string(id)] = w
	ctx := r.ctx
	r.mu.Unlock()
	w.adopt(f) // before anyone reads statuses
	r.wg.Go(func() { w.run(ctx, f) })
}

// publish stores s and reports it, unless it would be a step back.
func (r *Reconciler) publish(s *dv1.TaskStatus) {
	r.mu.Lock()
	ok := forward(r.statuses[string(s.Id)], s)
	if ok {
		r.statuses[string(s.Id)] = s
	}
	r.mu.Unlock()
	if !ok {
		r.o.Log.Warn("ignored a status that is a step back", "task", hex.EncodeToString(s.Id), "life", life.Of(s), "phase", s.Phase)
		return
	}
	r.o.Reporter.Status(s)
}

func (r *Reconciler) status(id []byte) *dv1.TaskStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.statuses[string(id)]
}

// gone stops a removed task's worker and acknowledges its tombstone.
func (r *Reconciler) gone(w *worker) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	if err := r.o.Store.forget(w.raw); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.workers, string(w.raw))
	delete(r.statuses, string(w.raw))
	r.mu.Unlock()
	failpoint.Here("task.forget.after")
	r.o.Reporter.Removed(w.raw)
	return nil
}

// Pauses between attempts at a step.
const (
	firstPause = 50 * time.Millisecond
	maxPause   = 2 * time.Second
)

// again retries f until it succeeds, ctx ends, or its error is final.
func again(ctx context.Context, f func() error, final ...error) error {
	for wait := firstPause; ; wait = min(2*wait, maxPause) {
		err := f()
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		for _, x := range final {
			if errors.Is(err, x) {
				return err
			}
		}
		if !pause(ctx, wait/2+rand.N(wait/2)) {
			return fmt.Errorf("%w (last: %w)", ctx.Err(), err)
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
