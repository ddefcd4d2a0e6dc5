// Package membership manages the quorum: raft's configuration according to the
// state's list of controllers, a controller's address, the trust in its clock, and
// how it learns that it was removed. Admission is decided elsewhere.
package membership

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Log is this controller's own log.
type Log interface {
	Raft() *raft.Raft
	Snapshot() *state.Snapshot
	Applied() uint64
	Leader() (addr, id string)
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
}

// Timing and limits of the quorum.
const (
	retryAfter = 500 * time.Millisecond
	changeWait = 5 * time.Second // for raft to accept a change
	askWait    = time.Second     // for another controller's answer
	lag        = 64              // how many entries behind still counts as ready
)

// QuorumOptions configures NewQuorum.
type QuorumOptions struct {
	Self string // this controller's id
	Log  Log
	// Status asks another controller for its applied index.
	Status func(ctx context.Context, id, addr string) (applied uint64, err error)
	Logger *slog.Logger
}

// Quorum adapts raft's configuration to the state's list of controllers. Only the
// leader's acts. A new controller is a non-voter until it has caught up. It is safe
// for concurrent use.
type Quorum struct {
	o        QuorumOptions
	due      chan struct{} // signalled when the list of controllers changed
	removing chan struct{} // a lock: removals are judged one at a time
}

// NewQuorum returns a Quorum whose Run is the leader's.
func NewQuorum(o QuorumOptions) *Quorum {
	q := &Quorum{o: o, due: make(chan struct{}, 1), removing: make(chan struct{}, 1)}
	q.removing <- struct{}{}
	return q
}

// Committed is called with each entry's effects, once they are in the state. It
// never blocks.
func (q *Quorum) Committed(effects []*dv1.Effect) {
	for _, e := range effects {
		if e.GetController() != nil || e.GetDeleteController() != "" {
			select {
			case q.due <- struct{}{}:
			default:
			}
			return
		}
	}
}

// Run serves one term of this controller's leadership, until ctx is done.
func (q *Quorum) Run(ctx context.Context) error {
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-q.due:
		case <-wake.C:
		case <-ctx.Done():
			return nil
		}
		changed, waiting, err := q.step(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			q.o.Logger.Warn("updating the members of the quorum failed, retrying", "err", err)
			wake.Reset(retryAfter)
		case changed:
			wake.Reset(0)
		case waiting:
			wake.Reset(retryAfter)
		}
	}
}

// step makes one change or promotion. waiting reports whether members that aren't
// ready yet are to be promoted.
func (q *Quorum) step(ctx context.Context) (changed, waiting bool, err error) {
	have, err := q.servers()
	if err != nil {
		return false, false, err
	}
	var want []*dv1.Controller
	for c := range q.o.Log.Snapshot().Controllers() {
		want = append(want, c)
	}
	if c := next(have, want); c != nil {
		return true, false, q.apply(*c)
	}
	need, candidates := promotable(have, len(want))
	if need == 0 {
		return false, false, nil
	}
	ready := q.ready(ctx, candidates)
	if len(ready) < need {
		return false, true, nil
	}
	for _, s := range ready[:need] {
		if err := q.apply(change{addVoter, s.ID, s.Address}); err != nil {
			return false, true, fmt.Errorf("promoting controller %.12s: %w", s.ID, err)
		}
		q.o.Logger.Info("a controller became a voter", "controller", s.ID)
	}
	return true, false, nil
}

func (q *Quorum) servers() ([]raft.Server, error) {
	f := q.o.Log.Raft().GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, fmt.Errorf("reading raft's configuration: %w", err)
	}
	return f.Configuration().Servers, nil
}

func (q *Quorum) apply(c change) error {
	r := q.o.Log.Raft()
	switch c.what {
	case addVoter:
		return r.AddVoter(c.id, c.addr, 0, changeWait).Error()
	case addNonvoter:
		return r.AddNonvoter(c.id, c.addr, 0, changeWait).Error()
	default:
		return r.RemoveServer(c.id, 0, changeWait).Error()
	}
}

// ready returns the servers that answer and are nearly up to date, in the given
// order.
func (q *Quorum) ready(ctx context.Context, servers []raft.Server) (out []raft.Server) {
	ok := make([]bool, len(servers))
	var asked sync.WaitGroup
	for i, s := range servers {
		asked.Go(func() {
			at, err := q.status(ctx, string(s.ID), string(s.Address))
			ok[i] = err == nil && at+lag >= q.o.Log.Applied()
		})
	}
	asked.Wait()
	for i, s := range servers {
		if ok[i] {
			out = append(out, s)
		}
	}
	return out
}

func (q *Quorum) status(ctx context.Context, id, addr string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	return q.o.Status(ctx, id, addr)
}

// Remove calls do to remove a controller, by id or name, unless the quorum can't
// lose it. It is called on the leader. Two concurrent removals could each count on
// the other controller, so the next call blocks until do has returned. It returns
// do's error.
func (q *Quorum) Remove(ctx context.Context, name string, do func() error) error {
	select {
	case <-q.removing:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { q.removing <- struct{}{} }()
	servers, err := q.servers()
	if err != nil {
		return err
	}
	snap := q.o.Log.Snapshot()
	going, left := without(servers, snap, name)
	if err := affordable(snap, going, left, q.silent(ctx, left)); err != nil {
		return err
	}
	return do()
}

// silent returns the names of voters that don't answer.
func (q *Quorum) silent(ctx context.Context, voters []*dv1.Controller) (names []string) {
	var mu sync.Mutex
	var asked sync.WaitGroup
	for _, c := range voters {
		if c.Id == q.o.Self {
			continue
		}
		asked.Go(func() {
			if _, err := q.status(ctx, c.Id, c.Addr); err != nil {
				mu.Lock()
				defer mu.Unlock()
				names = append(names, c.Name)
			}
		})
	}
	asked.Wait()
	return names
}

// Members returns the controllers, according to this one's view of raft's
// configuration.
func (q *Quorum) Members() (out []*dv1.ControllerInfo) {
	roles := map[string]dv1.ControllerInfo_Role{}
	if servers, err := q.servers(); err == nil {
		for _, s := range servers {
			roles[string(s.ID)] = dv1.ControllerInfo_CATCHING_UP
			if s.Suffrage == raft.Voter {
				roles[string(s.ID)] = dv1.ControllerInfo_VOTER
			}
		}
	}
	_, leader := q.o.Log.Leader()
	for m := range q.o.Log.Snapshot().Controllers() {
		role := cmp.Or(roles[m.Id], dv1.ControllerInfo_JOINING)
		if m.Id == leader {
			role = dv1.ControllerInfo_LEADER
		}
		out = append(out, &dv1.ControllerInfo{Id: m.Id, Name: m.Name, Addr: m.Addr, Role: role, Joined: m.Joined, Revision: m.Revision})
	}
	return out
}
