package dispatch

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// term is what a Hub knows while its controller leads. Each election begins with
// none of it, and what a session of an earlier term still does reaches nobody.
type term struct {
	o        Options
	started  time.Time // what times of nodes are counted from
	reported observations
	roster   rosterLog

	mu    sync.RWMutex // guards the fields below
	over  bool
	nodes map[string]*node
}

// node is what a term knows of a node beside what it reported.
type node struct {
	id      string
	session atomic.Pointer[session]
	heard   atomic.Int64 // last, since the term started
	spared  atomic.Int64 // counts as heard for its silence: it has a grace to come back
	silent  atomic.Bool  // is in the view as such

	observing sync.Mutex // of one observation after the other

	mu      sync.Mutex // guards highest, and which session is next
	highest uint64     // session number
}

func newTerm(o Options) *term {
	return &term{o: o, started: o.Now(), nodes: map[string]*node{}, roster: rosterLog{addrs: map[string]string{}, next: make(chan struct{})}}
}

// end ends all sessions, and lets no other begin.
func (t *term) end(why error) {
	t.mu.Lock()
	t.over = true
	nodes := t.nodes
	t.nodes = map[string]*node{}
	t.mu.Unlock()
	for _, n := range nodes {
		if s := n.session.Load(); s != nil {
			s.cancel(why)
		}
	}
}

func (t *term) node(id string) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.nodes[id]
}

// session is the open session of a node, nil if there is none.
func (t *term) session(node string) *session {
	if n := t.node(node); n != nil {
		return n.session.Load()
	}
	return nil
}

// mark notes that a node's agent must be told of a task.
func (t *term) mark(node string, task []byte, index uint64) {
	if s := t.session(node); s != nil {
		s.mark(task, index)
	}
}

// moved marks a node that is new or elsewhere. A node is written for its liveness too.
func (t *term) moved(n *dv1.Node, index uint64) {
	if t.roster.moved(n) {
		t.roster.changed(pki.URI(t.o.Log.Snapshot().Cluster().GetId(), pki.KindNode, n.Id), index)
	}
}

// remove forgets a node that was removed.
func (t *term) remove(id string) {
	t.mu.Lock()
	n := t.nodes[id]
	delete(t.nodes, id)
	t.mu.Unlock()
	if n != nil {
		if s := n.session.Load(); s != nil {
			s.cancel(errRemoved)
		}
	}
	t.roster.remove(id)
	t.reported.remove(id)
}

// enter makes s the session of its node.
func (t *term) enter(s *session, number uint64) error {
	n, err := t.enrol(s.node)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if number <= n.highest {
		return fmt.Errorf("session %d of node %s is old: %d was seen", number, s.node, n.highest)
	}
	if old := n.session.Load(); old != nil {
		old.cancel(errSuperseded)
	}
	s.of = n
	n.highest = number
	t.hear(n)
	n.session.Store(s)
	return nil
}

// enrol returns the entry of a node that is a member.
func (t *term) enrol(id string) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return nil, errDeposed
	}
	if t.o.Log.Snapshot().Node(id) == nil { // with mu held: its removal comes before or after
		return nil, errRemoved
	}
	n := t.nodes[id]
	if n == nil {
		n = &node{id: id}
		n.silent.Store(true) // for all that is known here
		t.nodes[id] = n
		t.reported.admit(id)
	}
	return n, nil
}

// grace is what a node gets to come back after its session broke: whoever relayed
// it may be what died.
const grace = 1500 * time.Millisecond

func (t *term) leave(s *session, why error) {
	if s.of.session.CompareAndSwap(s, nil) && !errors.Is(why, errSilent) {
		s.of.spared.Store(int64(t.elapsed() + grace - SuspectAfter))
	}
}

// elapsed is how long the term has been going on.
func (t *term) elapsed() time.Duration { return t.o.Now().Sub(t.started) }

// hear notes that a node said something.
func (t *term) hear(n *node) {
	n.heard.Store(int64(t.elapsed()))
	if n.silent.Swap(false) {
		t.reported.clearSilent(n.id)
	}
}
