package dispatch

import (
	"bytes"
	"slices"
	"sync"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/roster"
)

// recentChanges is how many changes are kept, for sessions that lack only these. A
// session further behind gets the full roster.
const recentChanges = 1024

// rosterLog numbers the changes of what every agent knows about the fleet: its
// members, controllers and keys. A session only remembers the number it was last
// sent.
type rosterLog struct {
	mu     sync.Mutex        // guards the fields below
	change uint64            // number of the last change
	index  uint64            // of the entry that made it
	recent []string          // URIs of the last changes, "" for one of controllers or keys
	next   chan struct{}     // closed at the next change
	addrs  map[string]string // of nodes: a node is also written when only its liveness changes

	building sync.Mutex // guards the fields below; one caller builds the full roster, the others wait for it
	whole    *dv1.Roster
	sum      []byte
	of       uint64 // change that whole is as of
}

// begin reads the nodes' addresses. Commits wait until it is done.
func (r *rosterLog) begin(read func() *state.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range read().Nodes() {
		r.addrs[n.Id] = n.Addr
	}
}

// changed records a change: of an identity's place in the roster or, with an empty
// uri, of controllers or keys.
func (r *rosterLog) changed(uri string, index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.change++
	r.index = index
	r.recent = append(r.recent, uri)
	if len(r.recent) >= 2*recentChanges {
		r.recent = append([]string(nil), r.recent[len(r.recent)-recentChanges:]...)
	}
	close(r.next)
	r.next = make(chan struct{})
}

// moved records a node's address and reports whether it changed.
func (r *rosterLog) moved(n *dv1.Node) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at, ok := r.addrs[n.Id]; ok && at == n.Addr {
		return false
	}
	r.addrs[n.Id] = n.Addr
	return true
}

func (r *rosterLog) remove(node string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.addrs, node)
}

// current returns the number of the last change, and a channel that is closed at the
// next one.
func (r *rosterLog) current() (uint64, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.change, r.next
}

// since returns the identities that changed after change sent, and the index of the
// entry of the last such change. known is false if sent is too old to tell.
func (r *rosterLog) since(sent uint64) (uris []string, change, index uint64, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	lacks := r.change - sent
	if lacks > uint64(len(r.recent)) {
		return nil, r.change, r.index, false
	}
	return append([]string(nil), r.recent[uint64(len(r.recent))-lacks:]...), r.change, r.index, true
}

// gossipPeers is how many gossip peers a welcome names.
const gossipPeers = 5

// peers returns the addresses of some random nodes other than except.
func (r *rosterLog) peers(except string) (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, addr := range r.addrs {
		if len(out) == gossipPeers {
			break
		}
		if id != except && addr != "" {
			out = append(out, addr)
		}
	}
	return out
}

// full returns the full roster and its checksum. It is built once per change, for
// all callers.
func (r *rosterLog) full(log Log) (*dv1.Roster, []byte) {
	r.building.Lock()
	defer r.building.Unlock()
	change, _ := r.current() // before reading the state, which is then at least as new
	if r.whole == nil || r.of != change {
		r.whole, r.of = fullRoster(log.Snapshot()), change
		applied, _ := (*roster.Roster)(nil).Apply(r.whole)
		r.sum = applied.Sum()
	}
	return r.whole, r.sum
}

func fullRoster(snap *state.Snapshot) *dv1.Roster {
	r := &dv1.Roster{Epoch: snap.Cluster().GetEpoch(), Index: snap.Index(), Full: true}
	for i := range snap.Identities() {
		add(r, snap, i)
	}
	return r
}

// add adds an identity to a roster, if agents accept its kind.
func add(r *dv1.Roster, snap *state.Snapshot, i *dv1.Identity) {
	p, err := pki.FromURI(i.Uri)
	if err != nil || p.Kind != pki.KindNode && p.Kind != pki.KindController {
		return
	}
	if i.Revoked {
		r.Revoked = append(r.Revoked, i.Uri)
		return
	}
	m := &dv1.Member{Uri: i.Uri}
	if p.Kind == pki.KindNode {
		m.Addr = snap.Node(p.ID).GetAddr()
	}
	r.Members = append(r.Members, m)
}

// welcome returns what a node should know of its fleet; r is the part of the roster
// that it lacks.
func (t *term) welcome(subnet, node string, r *dv1.Roster) *dv1.Welcome {
	snap := t.o.Log.Snapshot()
	w := &dv1.Welcome{Subnet: subnet, Epoch: snap.Cluster().GetEpoch(), ClusterId: snap.Cluster().GetId(), GossipKeys: t.o.Keys(), Roster: r, Peers: t.roster.peers(node)}
	for c := range snap.Controllers() {
		w.Controllers = append(w.Controllers, c.Addr)
	}
	return w
}

// greet returns the welcome for an agent whose roster has the checksum has.
func (t *term) greet(s *session, subnet string, has []byte) *dv1.Welcome {
	s.sent, _ = t.roster.current() // before reading the state
	whole, sum := t.roster.full(t.o.Log)
	if bytes.Equal(sum, has) {
		whole = nil
	}
	return t.welcome(subnet, s.node, whole)
}

// news returns the changes of the fleet that a session has not sent yet, or nil.
func (t *term) news(s *session) *dv1.Welcome {
	uris, change, index, known := t.roster.since(s.sent)
	if change == s.sent {
		return nil
	}
	s.sent = change
	if !known {
		whole, _ := t.roster.full(t.o.Log)
		return t.welcome("", s.node, whole)
	}
	snap := t.o.Log.Snapshot()
	var r *dv1.Roster
	slices.Sort(uris)
	for _, uri := range slices.Compact(uris) {
		if uri == "" {
			continue
		}
		if r == nil {
			r = &dv1.Roster{Epoch: snap.Cluster().GetEpoch(), Index: index}
		}
		if i := snap.Identity(uri); i != nil {
			add(r, snap, i)
		}
	}
	return t.welcome("", s.node, r)
}
