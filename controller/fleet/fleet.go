package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

const (
	// freshFor is how long what the leader reported of nodes is taken for true.
	freshFor = 500 * time.Millisecond
	// patience is how long a leader is waited for.
	patience = 5 * time.Second
	// electionWait is how long, where the answer is at hand without one: right after
	// a leader was lost there will be the next one in a moment.
	electionWait = time.Second
	// pause is between tries at a leader that is no more.
	pause = 20 * time.Millisecond
	// maxAsked bounds how many tasks one question is about.
	maxAsked = 4096
)

// Peers is what a Fleet needs of the other controllers: peer.Peers.
type Peers interface {
	// Leads reports whether this controller decides.
	Leads() bool
	// Leader reports whether a leader is known; changed is closed once that may be
	// different.
	Leader() (known bool, changed <-chan struct{})
	// Leaderless is for how long none is, 0 if one is.
	Leaderless() time.Duration
	// Seen is the highest index that was answered through this controller.
	Seen() uint64
	// Propose has the leader decide; this controller's log has it when it returns.
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
	// Query asks the leader for what agents reported, and how far its log is.
	Query(ctx context.Context, q *dv1.Query) (*dv1.Digest, error)
	// Watch follows a task at the leader, and at the next one, until done returns
	// true or ctx ends.
	Watch(ctx context.Context, taskID string, done func(*dv1.TaskView) bool) error
}

// Replica is what a Fleet needs of this controller's log.
type Replica interface {
	Log
	// WaitIndex blocks until the state is at index or later.
	WaitIndex(ctx context.Context, index uint64) (*state.Snapshot, error)
	// Verify returns the index of the last entry that this controller has as the
	// leader, or an error if it is not.
	Verify() (uint64, error)
}

// Fleet is the fleet as any controller sees it: its own view while it leads, else
// what the leader answers. Safe for concurrent use.
type Fleet struct {
	*Local
	peers Peers
	log   Replica

	mu   sync.Mutex // guards the fields below
	last *dv1.Digest
	at   time.Time
}

// New makes a Fleet of this controller's own view, the others, and its log.
func New(own *Local, peers Peers, log Replica) *Fleet {
	return &Fleet{Local: own, peers: peers, log: log}
}

// Propose has the leader decide c, wherever it is.
func (f *Fleet) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	return f.peers.Propose(ctx, c)
}

// Leader reports whether a leader is known; changed is closed once that may be
// different.
func (f *Fleet) Leader() (known bool, changed <-chan struct{}) { return f.peers.Leader() }

// ask returns what the leader has, nil without one.
func (f *Fleet) ask(ctx context.Context, q *dv1.Query) *dv1.Digest {
	d, err := f.peers.Query(ctx, q)
	if err != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last, f.at = d, time.Now()
	return d
}

// CatchUp blocks until this controller has all that was answered before the call,
// while there is a leader to ask, and no longer than ctx.
func (f *Fleet) CatchUp(ctx context.Context) {
	for ctx.Err() == nil && !f.peers.Leads() {
		if d := f.ask(ctx, nil); d != nil {
			_, _ = f.log.WaitIndex(ctx, d.Index) // else it answers from less
			return
		}
		f.rest(ctx)
	}
}

func (f *Fleet) rest(ctx context.Context) {
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
}

// Observe returns what agents reported to the leader. Who is silent may be as of a
// moment before. Without a leader it is what was known here last.
func (f *Fleet) Observe(ctx context.Context, q Query) *Observations {
	own := f.Local.Observe(ctx, q) // of removed tasks the log knows too
	if f.peers.Leads() {
		return own
	}
	f.mu.Lock()
	last, at := f.last, f.at
	f.mu.Unlock()
	fresh := last != nil && time.Since(at) < freshFor && len(q.Tasks)+len(q.Images) == 0
	for tasks := q.Tasks; !fresh; {
		n := min(len(tasks), maxAsked)
		d := f.ask(ctx, &dv1.Query{Tasks: tasks[:n], Images: q.Images})
		if d == nil {
			break
		}
		last, tasks = d, tasks[n:]
		maps.Copy(own.Tasks, d.Tasks)
		for digest, h := range d.Images {
			own.Images[digest] = slices.Clone(h.Nodes)
		}
		fresh = len(tasks) == 0
	}
	own.Silence = last.GetSilent()
	return own
}

// State is everything that was answered anywhere before the call, or without a
// leader what this controller has.
func (f *Fleet) State(ctx context.Context, least uint64) (*state.Snapshot, error) {
	snap, _, err := f.Find(ctx, least, nil)
	return snap, err
}

// Find is State, and reports whether the state is fresh. One that is not is returned
// at once only if enough accepts it (nil accepts any): otherwise a leader is waited
// for a while. Right after one was lost, the next is waited for in any case.
func (f *Fleet) Find(ctx context.Context, least uint64, enough func(*state.Snapshot) bool) (*state.Snapshot, bool, error) {
	least = max(least, f.peers.Seen())
	for began := time.Now(); ; {
		_, changed := f.peers.Leader()
		if f.peers.Leads() {
			if i, err := f.log.Verify(); err == nil {
				snap, err := f.log.WaitIndex(ctx, max(least, i))
				return snap, true, err
			}
		} else if d := f.ask(ctx, nil); d != nil {
			snap, err := f.log.WaitIndex(ctx, max(least, d.Index))
			return snap, true, err
		}
		snap, within := f.log.Snapshot(), patience
		if snap.Index() >= least && (enough == nil || enough(snap)) {
			within = electionWait
		}
		left := within - max(time.Since(began), f.peers.Leaderless())
		if left <= 0 {
			if snap.Index() < least {
				return nil, false, fmt.Errorf("%w: this one has not what you have seen, it is at index %d instead of %d", ErrNoLeader, snap.Index(), least)
			}
			return snap, false, nil
		}
		select {
		case <-changed:
		case <-time.After(min(left, pause)):
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

// WaitTask is Local's, of the leader's view. It follows the leadership, and without
// a leader what is committed here. done is never called twice at once.
func (f *Fleet) WaitTask(ctx context.Context, taskID string, done func(*dv1.Task, *dv1.TaskStatus) bool) error {
	var mu sync.Mutex // guards over
	over := false
	once := func(t *dv1.Task, st *dv1.TaskStatus) bool {
		mu.Lock()
		defer mu.Unlock()
		over = over || done(t, st)
		return over
	}
	for ctx.Err() == nil {
		err := f.waitRound(ctx, taskID, once)
		mu.Lock()
		end := over
		mu.Unlock()
		if err == nil || end {
			return nil
		}
		if ctx.Err() == nil {
			f.rest(ctx)
		}
	}
	return ctx.Err()
}

// waitRound waits until this controller begins or ceases to lead.
func (f *Fleet) waitRound(ctx context.Context, taskID string, done func(*dv1.Task, *dv1.TaskStatus) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	_, changed := f.peers.Leader()
	leads := f.peers.Leads()
	parts.Go(func() {
		defer cancel()
		for f.peers.Leads() == leads {
			select {
			case <-changed:
				_, changed = f.peers.Leader()
			case <-ctx.Done():
				return
			}
		}
	})
	if !leads {
		parts.Go(func() {
			if f.peers.Watch(ctx, taskID, func(v *dv1.TaskView) bool { return done(v.Task, v.Status) }) == nil {
				cancel()
			}
		})
	}
	return f.Local.WaitTask(ctx, taskID, done)
}
