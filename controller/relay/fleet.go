package relay

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/engineapi"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Fleet is the fleet as any controller sees it: the leader's own view, or what
// the leader tells. It implements engineapi.Fleet.
type Fleet struct {
	*Relay
	*fleet.Local

	mu     sync.Mutex // guards the fields below
	digest *dv1.Digest
	at     time.Time
}

var _ engineapi.Fleet = (*Fleet)(nil)

// freshFor is how long what the leader said of nodes is taken for true.
const freshFor = 500 * time.Millisecond

// askWithin bounds a question to the leader that has an answer without it.
const askWithin = time.Second

// ask returns the leader's observations, nil without a leader.
func (f *Fleet) ask(ctx context.Context, q *dv1.Query) *dv1.Digest {
	p, _ := f.leader()
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	d := &dv1.Digest{}
	b, err := proto.Marshal(q)
	if err != nil || p.message(ctx, http.MethodPost, prefix+"observe", b, d) != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.digest, f.at = d, time.Now()
	return d
}

// CatchUp waits until this controller has all that was answered before the call,
// while there is a leader to ask, and no longer than ctx.
func (f *Fleet) CatchUp(ctx context.Context) {
	for ctx.Err() == nil && !f.Leads() {
		if d := f.ask(ctx, nil); d != nil {
			_, _ = f.o.Log.WaitIndex(ctx, d.Index) // what it lacks then, it lacks
			return
		}
		f.rest(ctx)
	}
}

// maxAsked bounds how many tasks one question is about.
const maxAsked = 4096

// Observe implements engineapi.Fleet. Who is silent may be as of a moment before.
func (f *Fleet) Observe(ctx context.Context, q fleet.Query) *fleet.Observations {
	if f.Leads() {
		return f.Local.Observe(ctx, q)
	}
	f.mu.Lock()
	last, at := f.digest, f.at
	f.mu.Unlock()
	if last == nil || time.Since(at) >= freshFor || len(q.Tasks)+len(q.Images) > 0 {
		if d := f.ask(ctx, &dv1.Query{Tasks: q.Tasks[:min(len(q.Tasks), maxAsked)], Images: q.Images}); d != nil {
			last = d
		}
	}
	own := f.Local.Observe(ctx, q) // of removed tasks the log knows too
	out := &fleet.Observations{Silence: last.GetSilent(), Tasks: own.Tasks, Images: map[string][]string{}}
	maps.Copy(out.Tasks, last.GetTasks())
	for digest, h := range last.GetImages() {
		out.Images[digest] = h.Nodes
	}
	return out
}

// State implements engineapi.Fleet: everything that was answered anywhere before
// the call, or without a leader what this controller has.
func (f *Fleet) State(ctx context.Context, least uint64) (*state.Snapshot, error) {
	snap, _, err := f.Find(ctx, least, nil)
	return snap, err
}

// Find implements engineapi.Fleet. Right after a leader was lost, the next one is
// waited for in any case: there will be one in a moment.
func (f *Fleet) Find(ctx context.Context, least uint64, enough func(*state.Snapshot) bool) (*state.Snapshot, bool, error) {
	least = max(least, f.seen.Load())
	for began := time.Now(); ; {
		changed := f.o.Log.LeadershipChanged()
		if f.Leads() {
			if i, err := f.o.Log.Verify(); err == nil {
				snap, err := f.o.Log.WaitIndex(ctx, max(least, i))
				return snap, true, err
			}
		} else if d := f.ask(ctx, nil); d != nil {
			snap, err := f.o.Log.WaitIndex(ctx, max(least, d.Index))
			return snap, true, err
		}
		snap, within := f.o.Log.Snapshot(), patience
		if snap.Index() >= least && (enough == nil || enough(snap)) {
			within = electionWait
		}
		left := within - max(time.Since(began), f.leaderless())
		if left <= 0 {
			if snap.Index() < least {
				return nil, false, fmt.Errorf("%w: this one has not what you have seen, it is at index %d instead of %d", fleet.ErrNoLeader, snap.Index(), least)
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

// Leader implements engineapi.Fleet.
func (f *Fleet) Leader() (known bool, changed <-chan struct{}) {
	changed = f.o.Log.LeadershipChanged()
	if f.Leads() {
		return true, changed
	}
	p, _ := f.leader()
	return p != nil, changed
}

// WaitTask implements engineapi.Fleet. It follows the leadership, and without a
// leader what is committed here.
func (f *Fleet) WaitTask(ctx context.Context, taskID string, done func(*dv1.Task, *dv1.TaskStatus) bool) error {
	var mu sync.Mutex // done is never called twice at once
	over := false
	once := func(t *dv1.Task, st *dv1.TaskStatus) bool {
		mu.Lock()
		defer mu.Unlock()
		over = over || done(t, st)
		return over
	}
	for ctx.Err() == nil {
		changed := f.o.Log.LeadershipChanged()
		round, cancel := context.WithCancel(ctx)
		var ended sync.WaitGroup
		leads := f.Leads()
		ended.Go(func() { // until the leadership is another's
			defer cancel()
			for ch := changed; f.Leads() == leads && round.Err() == nil; {
				select {
				case <-ch:
					ch = f.o.Log.LeadershipChanged()
				case <-round.Done():
				}
			}
		})
		if !leads {
			ended.Go(func() {
				if f.watch(round, taskID, func(v *dv1.TaskView) bool { return once(v.Task, v.Status) }) == nil {
					cancel()
				}
			})
		}
		err := f.Local.WaitTask(round, taskID, once)
		cancel()
		ended.Wait()
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

func (f *Fleet) rest(ctx context.Context) {
	select {
	case <-time.After(pause):
	case <-ctx.Done():
	}
}

// watch follows a task at the leader until done says so, with nil, or ctx ends.
func (f *Fleet) watch(ctx context.Context, taskID string, done func(*dv1.TaskView) bool) error {
	for ctx.Err() == nil {
		p, _ := f.leader()
		if p == nil {
			f.rest(ctx)
			continue
		}
		resp, err := p.do(ctx, laneLog, http.MethodGet, prefix+"tasks/"+taskID, nil)
		if err != nil {
			f.rest(ctx)
			continue
		}
		err = views(resp.Body, done)
		_ = resp.Body.Close()
		if err == nil {
			return nil
		}
		f.rest(ctx)
	}
	return ctx.Err()
}

func views(r io.Reader, done func(*dv1.TaskView) bool) error {
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > 1<<20 {
			return errors.New("a view of a task is too long")
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		v := &dv1.TaskView{}
		if err := proto.Unmarshal(b, v); err != nil {
			return err
		}
		if done(v) {
			return nil
		}
	}
}

// view answers a follower's watch: at once, and at each change.
func (f *Fleet) view(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 32 {
		http.Error(w, "no task id: "+id, http.StatusBadRequest)
		return
	}
	if !f.Leads() {
		http.Error(w, "not the leader", http.StatusMisdirectedRequest)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	rc := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	var last []byte
	say := func(t *dv1.Task, st *dv1.TaskStatus) bool {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&dv1.TaskView{Task: t, Status: st, Index: f.o.Log.Snapshot().Index()})
		if err != nil || slices.Equal(b, last) {
			return err != nil
		}
		last = b
		if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil || rc.Flush() != nil {
			return true
		}
		return false
	}
	go func() { // a deposed leader's view is no good
		defer cancel()
		for ch := f.o.Log.LeadershipChanged(); f.Leads(); {
			select {
			case <-ch:
				ch = f.o.Log.LeadershipChanged()
			case <-ctx.Done():
				return
			}
		}
	}()
	_ = f.Local.WaitTask(ctx, id, say)
}
