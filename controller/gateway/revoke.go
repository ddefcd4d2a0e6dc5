package gateway

import (
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// granted holds the roles of nodes' users, by node and uid, as of the last commit.
// It is accessed by commits only.
type granted map[string]map[string]string

// seed loads the roles of a state.
func (g granted) seed(s *state.Snapshot) {
	for n := range s.Nodes() {
		g[n.Id] = n.Roles
	}
}

// change records a node's roles, and returns the users that lost some.
func (g granted) change(n *dv1.Node) (less []string) {
	for uid, role := range g[n.Id] {
		if now := n.Roles[uid]; now != role && now != pki.RoleAdmin {
			less = append(less, uid)
		}
	}
	g[n.Id] = n.Roles
	return less
}

// Seed loads a state, before the first Committed: the users' roles, and which of the
// controllers that raft has connections of already were revoked.
func (g *Gateway) Seed(s *state.Snapshot) {
	g.granted.seed(s)
	for i := range s.Identities() {
		if i.Revoked {
			g.raft.conns.expel(i.Uri)
		}
	}
}

// Committed closes the connections of identities that were revoked, and of users
// that lost roles; those of a controller after Linger, while its requests are
// refused. It is called with each entry's effects, in order, and never blocks.
func (g *Gateway) Committed(effects []*dv1.Effect) {
	for _, e := range effects {
		if n := e.GetNode(); n != nil {
			host := pki.Principal{URI: pki.URI(g.o.Files.Principal.Cluster, pki.KindNode, n.Id)}
			for _, uid := range g.granted.change(n) {
				g.requests.expel(pki.Principal{ID: uid}.At(host).URI)
			}
		}
		delete(g.granted, e.GetDeleteNode())
		id := e.GetIdentity()
		if !id.GetRevoked() {
			continue
		}
		uri := id.GetUri()
		expel := func() {
			g.requests.expel(uri)
			g.streams.expel(uri)
		}
		if p, err := pki.FromURI(uri); err == nil && p.Kind == pki.KindController {
			time.AfterFunc(g.o.Linger, expel)
		} else {
			expel()
		}
		g.raft.conns.expel(uri)
	}
}
