package fleet

import (
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// Limits on what is kept of removed tasks, for those that wait for their exit.
const (
	maxRemoved      = 1024
	maxRemovedBytes = 4 << 20
)

// Log is the part of consensus that a Local uses.
type Log interface {
	Snapshot() *state.Snapshot
}

// Reports is what agents reported to this controller: dispatch.Hub.
type Reports interface {
	Observed(taskID string) *dv1.TaskStatus // nil if none
	Ended() iter.Seq[*dv1.TaskStatus]       // of attempts that ended or failed to start
	Holders(digest string) []string
	Silent() map[string]int64 // since when, Unix ns; the map is the caller's
	Paused() int              // how many tasks are paused
}

// LocalOptions configures NewLocal; all but Contact are required.
type LocalOptions struct {
	Log     Log
	Reports Reports
	Dial    func(n *dv1.Node) (*http.Client, error) // the client of a node's bulk port, which dials on first use
	Contact string                                  // the node on this controller's host, "" for none
}

// Local is the fleet according to one controller's log and sessions. It is safe for
// concurrent use.
type Local struct {
	o LocalOptions

	mu       sync.Mutex // guards the fields below
	waiters  map[string]map[chan struct{}]bool
	known    map[string]*dv1.Task // by hex id, as of the last commit
	tags     map[string]string    // digest by reference
	volumes  map[string]*dv1.Volume
	networks map[string]*dv1.Network // by id, as of the last commit
	events   events
	removed  removed
}

// removed holds the final statuses of recently removed tasks.
type removed struct {
	byID  map[string]*ending
	order []string // oldest first
	bytes int
}

type ending struct {
	status *dv1.TaskStatus
	task   *dv1.Task
	size   int
}

// NewLocal returns an empty Local: Seed it.
func NewLocal(o LocalOptions) *Local {
	return &Local{o: o, waiters: map[string]map[chan struct{}]bool{}, known: map[string]*dv1.Task{}, tags: map[string]string{}, volumes: map[string]*dv1.Volume{}, networks: map[string]*dv1.Network{},
		events: events{subs: map[chan struct{}]bool{}}, removed: removed{byID: map[string]*ending{}}}
}

// retire keeps the final status of a removed task, with mu held: its exit is nowhere
// else, and agents stop reporting it once they have removed the container.
func (l *Local) retire(id string, t *dv1.Task) {
	st := l.o.Reports.Observed(id)
	if st == nil {
		st = &dv1.TaskStatus{Id: t.Id, Attempt: t.Attempt, Started: t.Started, Exit: t.Exit}
	} else if life.Of(st.Exit).Before(life.Of(t.Exit)) {
		st = proto.CloneOf(st)
		st.Exit = t.Exit
	}
	l.removed.put(id, t, st)
}

func (r *removed) put(id string, t *dv1.Task, st *dv1.TaskStatus) {
	if old := r.byID[id]; old != nil {
		r.bytes -= old.size
	} else {
		r.order = append(r.order, id)
	}
	b := &ending{status: st, task: t, size: proto.Size(st) + proto.Size(t)}
	r.byID[id] = b
	r.bytes += b.size
	for len(r.order) > maxRemoved || len(r.order) > 1 && r.bytes > maxRemovedBytes {
		r.bytes -= r.byID[r.order[0]].size
		delete(r.byID, r.order[0])
		r.order = r.order[1:]
	}
}

// StatusChanged wakes those who wait for a task whose status changed.
func (l *Local) StatusChanged(taskID string) {
	st := l.o.Reports.Observed(taskID)
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.removed.byID[taskID]; b != nil && st != nil {
		if x := st.Exit; life.Of(b.status.Exit).Before(life.Of(x)) && life.Of(b.task.Exit).Before(life.Of(x)) {
			l.taskEvent(b.task, "die", x.At, "exitCode", strconv.Itoa(int(x.Code))) // removed by force: no entry records it
		}
		l.removed.put(taskID, b.task, st)
	}
	l.wake(taskID)
}

// wake is called with mu held.
func (l *Local) wake(id string) {
	for w := range l.waiters[id] {
		poke(w)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Observe returns what agents reported to this controller. It does not block.
func (l *Local) Observe(_ context.Context, q Query) *Observations {
	o := &Observations{Silence: l.o.Reports.Silent(), Paused: l.o.Reports.Paused(), Tasks: make(map[string]*dv1.TaskStatus, len(q.Tasks)), Images: make(map[string][]string, len(q.Images))}
	for _, id := range q.Tasks {
		if st := l.status(id); st != nil {
			o.Tasks[id] = st
		}
	}
	if q.Ended {
		snap := l.o.Log.Snapshot()
		for st := range l.o.Reports.Ended() {
			if t := snap.Task(st.Id); t != nil && t.Attempt == st.Attempt && state.Live(t) {
				o.Tasks[hex.EncodeToString(st.Id)] = st
			}
		}
	}
	for _, digest := range q.Images {
		o.Images[digest] = l.o.Reports.Holders(digest)
	}
	return o
}

// status returns a task's latest status, also of a removed task, or nil.
func (l *Local) status(taskID string) *dv1.TaskStatus {
	if st := l.o.Reports.Observed(taskID); st != nil {
		return st
	}
	l.mu.Lock()
	b := l.removed.byID[taskID]
	l.mu.Unlock()
	if b != nil {
		return b.status
	}
	if id, err := hex.DecodeString(taskID); err == nil {
		if t := l.o.Log.Snapshot().Ended(id); t != nil {
			return &dv1.TaskStatus{Id: t.Id, Attempt: t.Attempt, Started: t.Started, Exit: t.Exit, Phase: dv1.Phase_EXITED, Why: t.Failed}
		}
	}
	return nil
}

// WaitTask blocks until done returns true for the task in raft (nil if it is
// removed) and its latest status (may be nil); done is called at once and at every
// change.
func (l *Local) WaitTask(ctx context.Context, taskID string, done func(*dv1.Task, *dv1.TaskStatus) bool) error {
	id, err := hex.DecodeString(taskID)
	if err != nil {
		return fmt.Errorf("waiting for task %q: %w", taskID, err)
	}
	w := make(chan struct{}, 1)
	l.mu.Lock() // subscribe before looking
	if l.waiters[taskID] == nil {
		l.waiters[taskID] = map[chan struct{}]bool{}
	}
	l.waiters[taskID][w] = true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiters[taskID], w)
		if len(l.waiters[taskID]) == 0 {
			delete(l.waiters, taskID)
		}
	}()
	for !done(l.o.Log.Snapshot().Task(id), l.status(taskID)) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w:
		}
	}
	return nil
}

// Agent returns an HTTP client whose requests (http://agent/v1/…, pkg/bulk) go to a
// node.
func (l *Local) Agent(nodeID string) (*http.Client, error) {
	n := l.o.Log.Snapshot().Node(nodeID)
	if n == nil || n.Addr == "" {
		return nil, fmt.Errorf("node %s has no address", nodeID)
	}
	return l.o.Dial(n)
}

// Contact returns the node on this controller's host, "" if there is no agent.
func (l *Local) Contact() string { return l.o.Contact }
