// Package access says who may do what in a fleet: whose request a route takes,
// and whose command is decided. It is asked where a request comes in, and again,
// of the newest state, where a command is decided. Pure; who a caller is was
// proved before, on its connection.
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

// Whose commands are decided, by their names in dv1.Command. A command that is not
// here is nobody's. A node's are about itself only, a token's are joins with it,
// and a controller moves itself.
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

	"put_token":         route.Admin,
	"revoke_token":      route.Admin,
	"update_node":       route.Admin,
	"remove_node":       route.Admin | route.Controller, // which goes on with one that was begun
	"remove_controller": route.Admin,
	"set_timing":        route.Admin,
	"add_pool":          route.Admin,

	"register_node":  route.Node,
	"report":         route.Node,
	"ack_tombstones": route.Node,

	"init":            route.Controller,
	"set_liveness":    route.Controller,
	"put_identity":    route.Controller,
	"put_sealed":      route.Controller,
	"put_controller":  route.Controller,
	"rotate_data_key": route.Controller,
	"fill_run":        route.Controller,

	"join": route.Token,
}

// Asked is what somebody wants: a request of a route, or a command.
type Asked struct {
	what string
	who  route.Who
	cmd  *dv1.Command
}

// Request asks for a route.
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

// Who may do what is asked.
func (a Asked) Who() route.Who { return a.who }

// ErrUnknown: a state doesn't know somebody. A newer one may.
var ErrUnknown = errors.New("not known to this cluster")

// Allowed gives who is behind a URI, with the roles that s gives it, if it may do
// what is asked; else why not. The URI must be proved: by a certificate, a socket's
// peer, or a controller that speaks for it.
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
		return p, fmt.Errorf("%s is no admin of this fleet", uri)
	default:
		return p, fmt.Errorf("%s has not the role that this takes (%s): %s", uri, a.who, a.what)
	}
	if of, own := owner(a.cmd); own && of != p.ID {
		return p, fmt.Errorf("%s may not speak for %q: %s", uri, of, a.what)
	}
	return p, nil
}

// first is who may make the cluster: its first controller, which no state knows yet.
// In a state that has one, it changes nothing.
func first(s *state.Snapshot, uri string, c *dv1.Init) (pki.Principal, error) {
	p, err := pki.FromURI(uri)
	if err == nil && (p.Kind != pki.KindController || s.Cluster() == nil && p.Cluster != c.GetCluster().GetId()) {
		err = fmt.Errorf("%s may not make cluster %s", uri, c.GetCluster().GetId())
	}
	return p, err
}

// owner is whom a command is about, where only that one may ask for it.
func owner(c *dv1.Command) (id string, own bool) {
	switch of := c.GetOf().(type) {
	case *dv1.Command_RegisterNode:
		return of.RegisterNode.GetNode().GetId(), true
	case *dv1.Command_Report:
		return of.Report.GetNodeId(), true
	case *dv1.Command_AckTombstones:
		return of.AckTombstones.GetNodeId(), true
	case *dv1.Command_PutController:
		return of.PutController.GetController().GetId(), true
	case *dv1.Command_Join:
		return of.Join.GetTokenId(), true
	}
	return "", false
}

// Known gives who is behind a URI, with its roles in s. A revoked identity is
// pki.ErrRevoked. A host that shows a token is known without it: the join decides.
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

// local is a user of a host: of a controller's, whom its socket let in, an admin; of
// a node's, what the fleet granted (node, uid).
func local(s *state.Snapshot, host, uid string) (pki.Principal, error) {
	h, err := Known(s, host)
	p := pki.Principal{Kind: pki.KindLocal, ID: uid}.At(h)
	if err != nil {
		return p, fmt.Errorf("this host is no %s of the fleet any more: %w", h.Kind, err)
	}
	if _, err := strconv.ParseUint(uid, 10, 32); err != nil {
		return p, fmt.Errorf("%q is no uid", uid)
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
	return p, fmt.Errorf("%s is no host of this fleet", host)
}

// Speaks says why a controller may not speak for a URI, nil if it may: for itself and
// for whoever asked it, which may be another controller on behalf of somebody. No
// controller speaks for another one.
func Speaks(controller, uri string) error {
	by, err := pki.FromURI(controller)
	if err != nil || by.Kind != pki.KindController {
		return fmt.Errorf("%q is no controller, and may speak for nobody", controller)
	}
	if p, err := pki.FromURI(uri); err == nil && p.Kind == pki.KindController && uri != controller {
		return fmt.Errorf("%s may not speak for %s", controller, uri)
	}
	return nil
}
