// Package accesstest names commands' principals, for tests that are about something
// else than who may do what.
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

// Named gives c as somebody's who may: the node or token that it is about, else
// whoever s knows first. A command that names somebody is left as it is.
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

// Identities are one of each kind, with nodes' ids: what an Init needs for Named to
// find somebody.
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
