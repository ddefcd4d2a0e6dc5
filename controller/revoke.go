package controller

import (
	"time"

	"github.com/drover/drover/controller/membership"
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

// change notes a node's roles, and gives the users who may do less than before.
func (g granted) change(n *dv1.Node) (less []string) {
	for uid, role := range g[n.Id] {
		if now := n.Roles[uid]; now != role && now != pki.RoleAdmin {
			less = append(less, uid)
		}
	}
	g[n.Id] = n.Roles
	return less
}

// revocations ends connections of identities that were just revoked, and of users who
// were granted more before: a controller's after it had the time to be told that it was
// removed, which may have been asked through it; what else it asks meanwhile is
// refused. It is called within a commit and never blocks.
func (c *controller) revocations(effects []*dv1.Effect) {
	for _, e := range effects {
		if n := e.GetNode(); n != nil {
			host := pki.Principal{URI: pki.URI(c.files.Principal.Cluster, pki.KindNode, n.Id)}
			for _, uid := range c.granted.change(n) {
				c.requests.expel(pki.Principal{ID: uid}.At(host).URI)
			}
		}
		delete(c.granted, e.GetDeleteNode())
		id := e.GetIdentity()
		if !id.GetRevoked() {
			continue
		}
		uri := id.GetUri()
		expel := func() {
			c.requests.expel(uri)
			c.sessions.expel(uri)
		}
		if p, err := pki.FromURI(uri); err == nil && p.Kind == pki.KindController {
			time.AfterFunc(membership.Parting, expel)
		} else {
			expel()
		}
		c.layer.conns.expel(uri)
	}
}
