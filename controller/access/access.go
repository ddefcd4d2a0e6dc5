// Package access decides who may do what in a fleet: who may call a route, and whose
// commands are decided. It is consulted where a request arrives and, with the newest
// state, where a command is decided. It is pure; the caller's identity was proved
// before, on its connection.
package access

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
)

// commands lists who may propose each command of dv1.Command, by name. A command
// that isn't listed is refused. Nodes may only propose commands about themselves,
// tokens only joins, and controllers move only themselves.
var commands = map[protoreflect.Name]route.Who{
	"create":       route.User,
	"start":        route.User,
	"stop":         route.User,
	"restart":      route.User,
	"rename":       route.User,
	"remove":       route.User,
	"killed":       route.User,
	"commit_image": route.User,
	"put_tag":      route.User,
	"untag":        route.User,

	"create_network": route.User,
	"remove_network": route.User,
	"connect":        route.User,
	"disconnect":     route.User,

	"create_volume":  route.User, // command refuses users what is the host's
	"remove_volumes": route.User,
	"move_volume":    route.User,

	"put_token":         route.Admin,
	"revoke_token":      route.Admin,
	"update_node":       route.Admin,
	"remove_node":       route.Admin | route.Controller, // which resumes a removal
	"remove_controller": route.Admin,
	"set_timing":        route.Admin,
	"add_pool":          route.Admin,

	"register_node":  route.Node,
	"report":         route.Node,
	"ack_tombstones": route.Node,
	"left_networks":  route.Node,

	"init":            route.Controller,
	"set_liveness":    route.Controller,
	"put_identity":    route.Controller,
	"put_sealed":      route.Controller,
	"put_controller":  route.Controller,
	"rotate_data_key": route.Controller,
	"fill_run":        route.Controller,
	"end_move":        route.Controller,

	"join": route.Token,
}

// Asked is what is asked for: a request to a route, or a command.
type Asked struct {
	what string
	who  route.Who
	cmd  *dv1.Command
}

// Request asks for a request to a route.
func Request(r route.Route) Asked { return Asked{what: r.String(), who: r.Who} }

// Command asks for a command to be decided.
func Command(c *dv1.Command) Asked {
	m := c.ProtoReflect()
	f := m.WhichOneof(m.Descriptor().Oneofs().ByName("of"))
	if f == nil {
		return Asked{what: "no command"}
	}
	return Asked{what: string(f.Name()), who: commands[f.Name()], cmd: c}
}

// Who returns the roles that are allowed.
func (a Asked) Who() route.Who { return a.who }

// ErrUnknown reports an identity that a state doesn't have. A newer state may.
var ErrUnknown = errors.New("not known to this cluster")

// Allowed returns the principal of a URI, with its roles in s, if it may do what is
// asked; otherwise the error says why not. The URI must be proved: by a certificate,
// a socket's peer credentials, or a controller that vouches for it.
func Allowed(s *state.Snapshot, uri string, a Asked) (pki.Principal, error) {
	if c, ok := a.cmd.GetOf().(*dv1.Command_Init); ok {
		return first(s, uri, c.Init)
	}
	p, err := Known(s, uri)
	if err != nil {
		return p, err
	}
	switch {
	case a.who.Has(p):
	case route.Of(p) == route.Anyone:
		return p, fmt.Errorf("%s has no role that allows this", uri)
	case a.who == route.Admin:
		return p, fmt.Errorf("%s is not an admin of this fleet", uri)
	default:
		return p, fmt.Errorf("%s lacks the required role (%s): %s", uri, a.who, a.what)
	}
	if of, own := owner(a.cmd); own && of != p.ID {
		return p, fmt.Errorf("%s may not speak for %q: %s", uri, of, a.what)
	}
	return p, nil
}

// first returns the principal that may create the cluster: its first controller,
// which no state knows yet. Once there is one, an Init changes nothing.
func first(s *state.Snapshot, uri string, c *dv1.Init) (pki.Principal, error) {
	p, err := pki.FromURI(uri)
	if err == nil && (p.Kind != pki.KindController || s.Cluster() == nil && p.Cluster != c.GetCluster().GetId()) {
		err = fmt.Errorf("%s may not create cluster %s", uri, c.GetCluster().GetId())
	}
	return p, err
}

// owner returns whom a command is about, if only that identity may propose it.
func owner(c *dv1.Command) (id string, own bool) {
	switch of := c.GetOf().(type) {
	case *dv1.Command_RegisterNode:
		return of.RegisterNode.GetNode().GetId(), true
	case *dv1.Command_Report:
		return of.Report.GetNodeId(), true
	case *dv1.Command_AckTombstones:
		return of.AckTombstones.GetNodeId(), true
	case *dv1.Command_LeftNetworks:
		return of.LeftNetworks.GetNodeId(), true
	case *dv1.Command_PutController:
		return of.PutController.GetController().GetId(), true
	case *dv1.Command_Join:
		return of.Join.GetTokenId(), true
	}
	return "", false
}

// Known returns the principal of a URI, with its roles in s. A revoked identity is
// pki.ErrRevoked. A host that joins with a token isn't in the state: the join itself
// decides.
func Known(s *state.Snapshot, uri string) (pki.Principal, error) {
	if id, ok := strings.CutPrefix(uri, pki.TokenURI("")); ok {
		return pki.Principal{Kind: pki.KindToken, ID: id, URI: uri}, nil
	}
	if host, uid, ok := pki.HostOf(uri); ok {
		return local(s, host, uid)
	}
	p, err := pki.FromURI(uri)
	if err != nil {
		return p, err
	}
	i := s.Identity(uri)
	if i == nil {
		return p, fmt.Errorf("%s is %w", uri, ErrUnknown)
	}
	if i.Revoked {
		return p, fmt.Errorf("%s: %w", uri, pki.ErrRevoked)
	}
	p.Roles = i.Roles
	return p, nil
}

// local returns the principal of a local user: on a controller's host an admin,
// since its socket's permissions let them in; on a node whatever role the fleet
// granted to (node, uid).
func local(s *state.Snapshot, host, uid string) (pki.Principal, error) {
	h, err := Known(s, host)
	p := pki.Principal{Kind: pki.KindLocal, ID: uid}.At(h)
	if err != nil {
		return p, fmt.Errorf("this host is no longer a %s of the fleet: %w", h.Kind, err)
	}
	if _, err := strconv.ParseUint(uid, 10, 32); err != nil {
		return p, fmt.Errorf("%q is not a uid", uid)
	}
	switch route.Of(h) &^ route.Anyone {
	case route.Controller:
		p.Roles = []string{pki.RoleAdmin}
		return p, nil
	case route.Node:
		n := s.Node(h.ID)
		if role := n.GetRoles()[uid]; role != "" {
			p.Roles = []string{role}
			return p, nil
		}
		name := n.GetName()
		return p, fmt.Errorf("uid %s on node %s has no role in this fleet: on a controller's host, drover node grant %s --uid %s --role user (or admin)", uid, name, name, uid)
	}
	return p, fmt.Errorf("%s is not a host of this fleet", host)
}

// Speaks returns why a controller may not speak for a URI, nil if it may: for itself
// and for whoever called it, possibly through another controller, but never for
// another controller itself.
func Speaks(controller, uri string) error {
	by, err := pki.FromURI(controller)
	if err != nil || by.Kind != pki.KindController {
		return fmt.Errorf("%q is not a controller and may not speak for others", controller)
	}
	if p, err := pki.FromURI(uri); err == nil && p.Kind == pki.KindController && uri != controller {
		return fmt.Errorf("%s may not speak for %s", controller, uri)
	}
	return nil
}
