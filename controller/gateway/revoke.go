package gateway

import (
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// granted is what users of nodes may do, by node and uid, as of the last commit: only
// commits read and write it.
type granted map[string]map[string]string

// seed takes the roles of a state.
func (g granted) seed(s *state.Snapshot) {
	for n := range s.Nodes() {
		g[n.Id] = n.Roles
	}
}

// change records a node's roles, and returns the users who may do less than before.
func (g granted) change(n *dv1.Node) (less []string) {
	for uid, role := range g[n.Id] {
		if now := n.Roles[uid]; now != role && now != pki.RoleAdmin {
			less = append(less, uid)
		}
	}
	g[n.Id] = n.Roles
	return less
}

// Seed takes a state's roles, before the first Committed.
func (g *Gateway) Seed(s *state.Snapshot) { g.granted.seed(s) }

// Committed ends connections of identities that were just revoked, and of users who
// were granted more before: a controller's after Linger; what it asks meanwhile is
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
