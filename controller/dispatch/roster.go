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

// recentChanges is how many changes are kept for sessions that were told of the
// earlier ones. Who lacks more is told everything.
const recentChanges = 1024

// rosterLog counts the changes of what every agent knows of its fleet: who belongs to
// it, its controllers, its keys. A session compares numbers; nothing is kept of it.
type rosterLog struct {
	mu     sync.Mutex        // guards the fields below
	change uint64            // number of the last change
	index  uint64            // of the entry that made it
	recent []string          // URIs of the last changes, "" for one of controllers or keys
	next   chan struct{}     // closed at the next change
	addrs  map[string]string // of nodes: a node is also written when its liveness changes

	making sync.Mutex // guards the fields below; one makes the whole, the others wait for it
	whole  *dv1.Roster
	sum    []byte
	of     uint64 // change that whole is as of
}

// begin reads where nodes are. What is committed meanwhile waits for that.
func (r *rosterLog) begin(read func() *state.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range read().Nodes() {
		r.addrs[n.Id] = n.Addr
	}
}

// changed notes a change: of an identity's place in the roster, or, with uri "", of
// controllers or keys.
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

// moved notes where a node is and reports whether that is news.
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

// now is the number of the last change, and a channel that is closed at the next.
func (r *rosterLog) now() (uint64, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.change, r.next
}

// since returns whose places changed after change told, and the index of the last
// entry that did so; !known: so much changed that nobody knows any more.
func (r *rosterLog) since(told uint64) (uris []string, change, index uint64, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	lacks := r.change - told
	if lacks > uint64(len(r.recent)) {
		return nil, r.change, r.index, false
	}
	return append([]string(nil), r.recent[uint64(len(r.recent))-lacks:]...), r.change, r.index, true
}

// gossipPeers is how many agents a welcome names.
const gossipPeers = 5

// peers returns some nodes' addresses, in no order: not everybody is told the same.
func (r *rosterLog) peers(but string) (out []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, addr := range r.addrs {
		if len(out) == gossipPeers {
			break
		}
		if id != but && addr != "" {
			out = append(out, addr)
		}
	}
	return out
}

// everybody returns the whole roster and its sum. It is made once for each change,
// for all that ask.
func (r *rosterLog) everybody(log Log) (*dv1.Roster, []byte) {
	r.making.Lock()
	defer r.making.Unlock()
	change, _ := r.now() // before the state is read, which is then no older
	if r.whole == nil || r.of != change {
		r.whole, r.of = everybody(log.Snapshot()), change
		applied, _ := (*roster.Roster)(nil).Apply(r.whole)
		r.sum = applied.Sum()
	}
	return r.whole, r.sum
}

func everybody(snap *state.Snapshot) *dv1.Roster {
	r := &dv1.Roster{Epoch: snap.Cluster().GetEpoch(), Index: snap.Index(), Full: true}
	for i := range snap.Identities() {
		add(r, snap, i)
	}
	return r
}

// add adds an identity to a roster, if it is one that agents let in.
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

// welcome is what a node should know of its fleet; r is what it lacks of the roster.
func (t *term) welcome(subnet, node string, r *dv1.Roster) *dv1.Welcome {
	snap := t.o.Log.Snapshot()
	w := &dv1.Welcome{Subnet: subnet, Epoch: snap.Cluster().GetEpoch(), ClusterId: snap.Cluster().GetId(), GossipKeys: t.o.Keys(), Roster: r, Peers: t.roster.peers(node)}
	for c := range snap.Controllers() {
		w.Controllers = append(w.Controllers, c.Addr)
	}
	return w
}

// greet is the welcome of a session whose agent has the roster of that sum.
func (t *term) greet(s *session, subnet string, has []byte) *dv1.Welcome {
	s.told, _ = t.roster.now() // before the state is read
	whole, sum := t.roster.everybody(t.o.Log)
	if bytes.Equal(sum, has) {
		whole = nil
	}
	return t.welcome(subnet, s.node, whole)
}

// news is what a session's agent was not told of its fleet, nil if nothing.
func (t *term) news(s *session) *dv1.Welcome {
	uris, change, index, known := t.roster.since(s.told)
	if change == s.told {
		return nil
	}
	s.told = change
	if !known {
		whole, _ := t.roster.everybody(t.o.Log)
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
