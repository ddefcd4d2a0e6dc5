package dispatch

import (
	"bytes"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/roster"
)

// members is what of the roster sessions must be told. Guarded by Hub.mu.
type members struct {
	addrs  map[string]string // of nodes, as last told: liveness changes them too
	change uint64            // counts changes, so that the whole is made once for all
	whole  *dv1.Roster
	sum    []byte
	of     uint64 // the change that whole is as of
}

// member marks an identity whose right to be there may have changed, with mu held.
func (h *Hub) member(uri string) {
	h.members.change++
	for _, n := range h.nodes {
		if n.session != nil {
			n.session.members[uri] = true
			poke(n.session.wake)
		}
	}
}

// seed has mu held, and no sessions.
func (m *members) seed(snap *state.Snapshot) {
	m.addrs, m.whole = map[string]string{}, nil
	for n := range snap.Nodes() {
		m.addrs[n.Id] = n.Addr
	}
}

// moved marks a node that is new or elsewhere, with mu held.
func (h *Hub) moved(n *dv1.Node) {
	if at, ok := h.members.addrs[n.Id]; !ok || at != n.Addr {
		h.members.addrs[n.Id] = n.Addr
		h.member(pki.URI(h.o.Log.Snapshot().Cluster().GetId(), pki.KindNode, n.Id))
	}
}

// roster is everybody, nil for an agent that has that already.
func (h *Hub) roster(has []byte) *dv1.Roster {
	h.mu.Lock()
	change, whole, sum := h.members.change, h.members.whole, h.members.sum
	old := h.members.of != change
	h.mu.Unlock()
	if whole == nil || old {
		whole = all(h.o.Log.Snapshot())
		r, _ := (*roster.Roster)(nil).Apply(whole)
		sum = r.Sum()
		h.mu.Lock()
		h.members.whole, h.members.sum, h.members.of = whole, sum, change
		h.mu.Unlock()
	}
	if bytes.Equal(sum, has) {
		return nil
	}
	return whole
}

func all(snap *state.Snapshot) *dv1.Roster {
	r := &dv1.Roster{Epoch: snap.Cluster().GetEpoch(), Index: snap.Index(), Full: true}
	for i := range snap.Identities() {
		put(r, snap, i)
	}
	return r
}

// changed is what a session was not told of the roster, nil if nothing. Marks are
// taken before the state is read, as in next.
func (h *Hub) changed(s *session) *dv1.Roster {
	h.mu.Lock()
	marks, index := s.members, h.index
	if len(marks) == 0 {
		h.mu.Unlock()
		return nil
	}
	s.members = map[string]bool{}
	h.mu.Unlock()
	snap := h.o.Log.Snapshot()
	r := &dv1.Roster{Epoch: snap.Cluster().GetEpoch(), Index: index}
	for uri := range marks {
		if i := snap.Identity(uri); i != nil {
			put(r, snap, i)
		}
	}
	return r
}

func put(r *dv1.Roster, snap *state.Snapshot, i *dv1.Identity) {
	p, err := pki.FromURI(i.Uri)
	if err != nil || p.Kind != pki.KindNode && p.Kind != pki.KindController {
		return // agents let nobody else in anyway
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
