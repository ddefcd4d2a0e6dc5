package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

const (
	// freshFor is how long the leader's report of nodes is cached.
	freshFor = 500 * time.Millisecond
	// patience is how long to wait for a leader.
	patience = 5 * time.Second
	// electionWait is how long to wait when there is an answer without one: right after
	// a leader was lost, the next one is about to be elected.
	electionWait = time.Second
	// pause is the delay before a leader that is known but did not answer is retried.
	pause = 20 * time.Millisecond
	// maxAsked bounds how many tasks one query is about.
	maxAsked = 4096
)

// Peers is the part of the other controllers that a Fleet uses: peer.Peers.
type Peers interface {
	// Leads reports whether this controller leads.
	Leads() bool
	// Leader reports whether a leader is known; changed is closed once that may have
	// changed.
	Leader() (known bool, changed <-chan struct{})
	// Leaderless returns for how long there has been no leader, 0 if there is one.
	Leaderless() time.Duration
	// Seen returns the highest index that was returned through this controller.
	Seen() uint64
	// Propose has the leader decide; when it returns, this controller's log has the
	// entry.
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
	// Query asks the leader for agents' reports, and for its index.
	Query(ctx context.Context, q *dv1.Query) (*dv1.Digest, error)
	// Watch follows a task on the leader, and on the next one, until done returns true
	// or ctx is done.
	Watch(ctx context.Context, taskID string, done func(*dv1.TaskView) bool) error
}

// Replica is the part of this controller's log that a Fleet uses.
type Replica interface {
	Log
	// WaitIndex blocks until the state is at index or later.
	WaitIndex(ctx context.Context, index uint64) (*state.Snapshot, error)
	// Verify returns the index of the last entry, if this controller is the leader.
	Verify() (uint64, error)
}

// Fleet is the fleet as seen from any controller: its own view while it leads, else
// the leader's. It is safe for concurrent use.
type Fleet struct {
	*Local
	peers Peers
	log   Replica

	mu   sync.Mutex // guards the fields below
	last *dv1.Digest
	at   time.Time
}

// New returns a Fleet of this controller's own view, the others, and its log.
func New(own *Local, peers Peers, log Replica) *Fleet {
	return &Fleet{Local: own, peers: peers, log: log}
}

// Propose has the leader decide c.
func (f *Fleet) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	return f.peers.Propose(ctx, c)
}

// Leader reports whether a leader is known; changed is closed once that may have
// changed.
func (f *Fleet) Leader() (known bool, changed <-chan struct{}) { return f.peers.Leader() }

// ask queries the leader; it returns nil without one.
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

// CatchUp blocks until this controller has everything that was answered before the
// call, while there is a leader to ask, and no longer than ctx.
func (f *Fleet) CatchUp(ctx context.Context) {
	for ctx.Err() == nil && !f.peers.Leads() {
		known, changed := f.peers.Leader()
		if d := f.ask(ctx, nil); d != nil {
			_, _ = f.log.WaitIndex(ctx, d.Index) // otherwise it answers from less
			return
		}
		select {
		case <-changed:
		case <-retry(known, pause):
		case <-ctx.Done():
		}
	}
}

// retry fires when a leader that is known and did not answer may be asked again.
func retry(known bool, after time.Duration) <-chan time.Time {
	if !known {
		return nil
	}
	return time.After(after)
}

// Observe returns what agents reported to the leader. Which nodes are silent is cached
// briefly. Without a leader it returns what was last known here.
func (f *Fleet) Observe(ctx context.Context, q Query) *Observations {
	own := f.Local.Observe(ctx, q) // which includes removed tasks, from the log
	if f.peers.Leads() {
		return own
	}
	f.mu.Lock()
	last, at := f.last, f.at
	f.mu.Unlock()
	fresh := last != nil && time.Since(at) < freshFor && len(q.Tasks)+len(q.Images) == 0 && !q.Ended
	for tasks := q.Tasks; !fresh; {
		n := min(len(tasks), maxAsked)
		d := f.ask(ctx, &dv1.Query{Tasks: tasks[:n], Images: q.Images, Ended: q.Ended})
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

// State returns a state with everything that was answered anywhere before the call,
// or without a leader what this controller has.
func (f *Fleet) State(ctx context.Context, least uint64) (*state.Snapshot, error) {
	snap, _, err := f.Find(ctx, least, nil)
	return snap, err
}

// Find is State, and reports whether the state is fresh. A stale state is returned
// at once only if enough accepts it (nil accepts any); otherwise Find waits a while
// for a leader. Right after a leader was lost, it always waits for the next.
func (f *Fleet) Find(ctx context.Context, least uint64, enough func(*state.Snapshot) bool) (*state.Snapshot, bool, error) {
	least = max(least, f.peers.Seen())
	for began := time.Now(); ; {
		known, changed := f.peers.Leader()
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
				return nil, false, fmt.Errorf("%w: this one lacks what you have seen: it is at index %d, not %d", ErrNoLeader, snap.Index(), least)
			}
			return snap, false, nil
		}
		late := time.NewTimer(left)
		select {
		case <-changed:
		case <-retry(known, pause):
		case <-late.C:
		case <-ctx.Done():
		}
		late.Stop()
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
	}
}

// WaitTask is Local.WaitTask on the leader's view. It follows the leadership, and
// without a leader what is committed here. done is never called concurrently.
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
		if !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return ctx.Err()
}

// waitRound waits until this controller starts or stops leading.
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
