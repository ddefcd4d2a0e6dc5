// Package accesstest adds principals to commands, for tests that aren't about
// permissions.
package accesstest

import (
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/access"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
)

// Named sets c's principal to one that may propose it: the node or token that it is
// about, or else the first that s knows. A principal that is set already is kept.
func Named(s *state.Snapshot, c *dv1.Command) *dv1.Command {
	if c.GetPrincipal() != "" {
		return c
	}
	c = proto.CloneOf(c)
	cluster := s.Cluster().GetId()
	node := func(id string) string { return pki.URI(cluster, pki.KindNode, id) }
	switch of := c.Of.(type) {
	case *dv1.Command_Init:
		c.Principal = pki.URI(of.Init.GetCluster().GetId(), pki.KindController, "first")
	case *dv1.Command_RegisterNode:
		c.Principal = node(of.RegisterNode.GetNode().GetId())
	case *dv1.Command_Report:
		c.Principal = node(of.Report.NodeId)
	case *dv1.Command_AckTombstones:
		c.Principal = node(of.AckTombstones.NodeId)
	case *dv1.Command_LeftNetworks:
		c.Principal = node(of.LeftNetworks.NodeId)
	case *dv1.Command_PutController:
		c.Principal = pki.URI(cluster, pki.KindController, of.PutController.GetController().GetId())
	case *dv1.Command_Join:
		c.Principal = pki.TokenURI(of.Join.TokenId)
	default:
		role := pki.RoleAdmin
		if access.Command(c).Who() == route.Controller {
			role = pki.KindController
		}
		for i := range s.Identities() {
			if !i.Revoked && strings.Join(i.Roles, " ") == role {
				c.Principal = i.Uri
			}
		}
	}
	return c
}

// Identities returns one identity of each kind, with nodes' ids: an Init needs them
// for Named to find a principal.
func Identities(cluster string, nodes ...string) []*dv1.Identity {
	out := []*dv1.Identity{
		{Uri: pki.URI(cluster, pki.KindController, "c1"), Roles: []string{pki.KindController}},
		{Uri: pki.URI(cluster, pki.KindUser, "admin"), Roles: []string{pki.RoleAdmin}},
	}
	for _, n := range nodes {
		out = append(out, &dv1.Identity{Uri: pki.URI(cluster, pki.KindNode, n), Roles: []string{pki.KindNode}})
	}
	return out
}
