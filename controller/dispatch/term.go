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

// term is the state of a Hub while its controller leads. Each election starts with
// an empty one; late reports of an earlier term's sessions have no effect.
type term struct {
	o        Options
	started  time.Time // times of nodes are relative to it
	reported observations
	roster   rosterLog
	topology *topology

	mu    sync.RWMutex // guards the fields below
	over  bool
	nodes map[string]*node
}

// node is the state of a node's session, apart from what it reported.
type node struct {
	id      string
	session atomic.Pointer[session]
	heard   atomic.Int64 // last time heard from, since the term started
	spared  atomic.Int64 // counts like heard for its silence: the grace period to reconnect
	silent  atomic.Bool  // the view shows it as silent

	observing sync.Mutex // serializes observations

	mu      sync.Mutex // guards highest, and changes of session
	highest uint64     // session number
}

func newTerm(o Options) *term {
	return &term{o: o, started: o.Now(), nodes: map[string]*node{}, topology: newTopology(), roster: rosterLog{addrs: map[string]string{}, next: make(chan struct{})}}
}

// end ends all sessions and refuses new ones.
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

// session returns the open session of a node, or nil.
func (t *term) session(node string) *session {
	if n := t.node(node); n != nil {
		return n.session.Load()
	}
	return nil
}

// mark records that a node's agent must be sent a record.
func (t *term) mark(node string, m mark, index uint64) {
	if s := t.session(node); s != nil {
		s.mark(m, index)
	}
}

// moved records a node that is new or has a new address. Nodes are also written when
// only their liveness changes.
func (t *term) moved(n *dv1.Node, index uint64) {
	if t.roster.moved(n) {
		t.roster.changed(pki.URI(t.o.Log.Snapshot().Cluster().GetId(), pki.KindNode, n.Id), index)
	}
}

// remove drops a node that was removed.
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
		return fmt.Errorf("session %d of node %s is outdated: session %d was seen", number, s.node, n.highest)
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

// enrol returns the entry of a node, if it is a member.
func (t *term) enrol(id string) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return nil, errDeposed
	}
	if t.o.Log.Snapshot().Node(id) == nil { // under mu, so that the node's removal comes entirely before or after
		return nil, errRemoved
	}
	n := t.nodes[id]
	if n == nil {
		n = &node{id: id}
		n.silent.Store(true) // until it is heard from
		t.nodes[id] = n
		t.reported.admit(id)
	}
	return n, nil
}

// grace is how long a node may take to reconnect after its session broke: what died
// may be the controller that relayed it.
const grace = 1500 * time.Millisecond

func (t *term) leave(s *session, why error) {
	if s.of.session.CompareAndSwap(s, nil) && !errors.Is(why, errSilent) {
		s.of.spared.Store(int64(t.elapsed() + grace - SuspectAfter))
	}
}

// elapsed returns the time since the term started.
func (t *term) elapsed() time.Duration { return t.o.Now().Sub(t.started) }

// hear records that a node was heard from.
func (t *term) hear(n *node) {
	n.heard.Store(int64(t.elapsed()))
	if n.silent.Swap(false) {
		t.reported.clearSilent(n.id)
	}
}
