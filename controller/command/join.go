package command

import (
	"bytes"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/plural"
	"github.com/drover/drover/pkg/route"
)

// Roles of tokens.
const (
	TokenController = "controller"
	TokenAgent      = "agent"
)

// CheckToken returns why a token is not valid at the given time, or nil.
func CheckToken(t *dv1.Token, hash []byte, now int64) *dv1.Error {
	switch {
	case t == nil || !bytes.Equal(t.Hash, hash):
		return refuse(dv1.Error_FORBIDDEN, "this token is not one of this fleet's: create one with drover token create")
	case t.Revoked:
		return refuse(dv1.Error_FORBIDDEN, "this token was revoked: create another with drover token create")
	case t.Expires != 0 && now > t.Expires:
		return refuse(dv1.Error_FORBIDDEN, "this token has expired: create another with drover token create")
	}
	return nil
}

func (d *decision) join(c *dv1.Join) *dv1.Error {
	t := d.Token(c.TokenId)
	if e := CheckToken(t, c.SecretHash, d.now); e != nil {
		return e
	}
	if c.Controller != nil && t.Role != TokenController {
		return refuse(dv1.Error_AGENTS_ONLY, "this token admits agents only: create one for controllers with drover token create --role controller")
	}
	n := proto.CloneOf(c.GetNode())
	if t.SocketRole != "" {
		n.Roles = map[string]string{"0": t.SocketRole}
	}
	if e := d.admit(n, nil); e != nil {
		return e
	}
	for _, i := range c.Identities {
		if old := d.Identity(i.Uri); old != nil && !proto.Equal(old, i) {
			return refuse(dv1.Error_CONFLICT, "%s already exists", i.Uri)
		}
		d.add(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: i}})
	}
	for _, s := range c.Sealed {
		if e := d.putSealed(s); e != nil {
			return e
		}
	}
	if c.Controller != nil {
		m := proto.CloneOf(c.Controller)
		m.Joined = d.now
		d.add(&dv1.Effect{Of: &dv1.Effect_Controller{Controller: m}})
	}
	t = proto.CloneOf(t)
	t.Used++
	d.add(&dv1.Effect{Of: &dv1.Effect_Token{Token: t}})
	return nil
}

func (d *decision) putToken(t *dv1.Token) *dv1.Error {
	switch {
	case t.GetId() == "" || len(t.GetHash()) != 32:
		return refuse(dv1.Error_INVALID, "a token needs an id and a secret")
	case t.Role != TokenController && t.Role != TokenAgent:
		return refuse(dv1.Error_INVALID, "a token's role is controller or agent, not %q", t.Role)
	case t.SocketRole != "" && t.SocketRole != pki.KindUser && t.SocketRole != pki.RoleAdmin:
		return refuse(dv1.Error_INVALID, "a socket's role is user or admin, not %q", t.SocketRole)
	case d.Token(t.Id) != nil:
		return refuse(dv1.Error_CONFLICT, "token %s already exists", t.Id)
	}
	t = proto.CloneOf(t)
	t.Created = d.now
	d.add(&dv1.Effect{Of: &dv1.Effect_Token{Token: t}})
	return nil
}

func (d *decision) revokeToken(id string) *dv1.Error {
	t := d.Token(id)
	if t == nil {
		return refuse(dv1.Error_NOT_FOUND, "No such token: %s", id)
	}
	if !t.Revoked {
		t = proto.CloneOf(t)
		t.Revoked = true
		d.add(&dv1.Effect{Of: &dv1.Effect_Token{Token: t}})
	}
	return nil
}

func (d *decision) updateNode(c *dv1.UpdateNode) *dv1.Error {
	old := d.NodeByName(c.NodeId)
	if old == nil {
		return refuse(dv1.Error_NOT_FOUND, "No such node: %s", c.NodeId)
	}
	n := proto.CloneOf(old)
	if old.Availability == dv1.Node_REMOVING {
		return refuse(dv1.Error_CONFLICT, "node %s is being removed", n.Name)
	}
	switch c.Availability {
	case dv1.Node_AVAILABILITY_UNSPECIFIED:
	case dv1.Node_ACTIVE, dv1.Node_DRAIN:
		n.Availability = c.Availability
	default:
		return refuse(dv1.Error_INVALID, "a node's availability is active or drain, not %s", wire.Word(c.Availability))
	}
	for k, v := range c.SetLabels {
		if k == "" {
			return refuse(dv1.Error_INVALID, "a label needs a name")
		}
		n.Labels, n.SetLabels = with(n.Labels, k, v), with(n.SetLabels, k, v)
	}
	for _, k := range c.DropLabels {
		if _, ok := n.SetLabels[k]; !ok {
			return refuse(dv1.Error_NOT_FOUND, "node %s has no label %s that was set here", n.Name, k)
		}
		delete(n.Labels, k)
		delete(n.SetLabels, k)
	}
	for uid, role := range c.Roles {
		if _, err := strconv.ParseUint(uid, 10, 32); err != nil {
			return refuse(dv1.Error_INVALID, "%q is not a uid", uid)
		}
		switch role {
		case "":
			delete(n.Roles, uid)
		case pki.KindUser, pki.RoleAdmin:
			n.Roles = with(n.Roles, uid, role)
		default:
			return refuse(dv1.Error_INVALID, "a role is user or admin, not %q", role)
		}
	}
	d.res.NodeId, d.res.Name = n.Id, n.Name
	if !proto.Equal(old, n) {
		d.add(&dv1.Effect{Of: &dv1.Effect_Node{Node: n}})
	}
	return nil
}

func with(m map[string]string, k, v string) map[string]string {
	out := map[string]string{k: v}
	for a, b := range m {
		if a != k {
			out[a] = b
		}
	}
	return out
}

// removeNode removes a node and revokes its identity. Its tasks are removed without
// tombstones, since no agent is left to acknowledge them. What doesn't fit into one
// entry is left for the leader to propose again.
func (d *decision) removeNode(c *dv1.RemoveNode) *dv1.Error {
	n := d.NodeByName(c.NodeId)
	if n == nil {
		return refuse(dv1.Error_NOT_FOUND, "No such node: %s", c.NodeId)
	}
	if d.Controller(n.Id) != nil {
		return refuse(dv1.Error_CONFLICT, "node %s is a controller too: drover controller rm %s first", n.Name, n.Name)
	}
	if !route.Admin.Has(d.who) && n.Availability != dv1.Node_REMOVING {
		return refuse(dv1.Error_FORBIDDEN, "%s is not an admin of this fleet", d.who.URI)
	}
	tasks := slices.Collect(d.TasksOfNode(n.Id))
	held := slices.Collect(d.VolumesOfNode(n.Id))
	if !c.Force && n.Availability != dv1.Node_REMOVING {
		if n.Liveness == dv1.Node_READY {
			return refuse(dv1.Error_CONFLICT, "node %s is up: stop drover there first, or force it", n.Name)
		}
		if len(tasks) > 0 {
			return refuse(dv1.Error_CONFLICT, "node %s has %s, which would be forgotten: remove what is there first, or force it", n.Name, plural.Of(len(tasks), "container"))
		}
		if len(held) > 0 {
			return refuse(dv1.Error_CONFLICT, "node %s has the data of %s (%s), which would be out of reach: remove them first, or force it", n.Name, plural.Of(len(held), "volume"), held[0].Name)
		}
	}
	d.add(revoke(d.Snapshot, pki.KindNode, n.Id)...)
	d.add(revoke(d.Snapshot, pki.KindUser, pki.AdminOf(n.Id))...)
	tombs := slices.Collect(d.Tombstones(n.Id))
	left := d.some(len(tasks)+len(tombs), func(i int) {
		if i < len(tasks) {
			d.forget(tasks[i])
			d.gone(tasks[i].Id)
			return
		}
		id := state.Removed(tombs[i-len(tasks)])
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteTombstone{DeleteTombstone: id}})
		d.gone(id)
	})
	d.res.NodeId, d.res.Name, d.res.Left = n.Id, n.Name, uint32(left)
	if left == 0 {
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: n.Id}})
	} else if n.Availability != dv1.Node_REMOVING {
		n = proto.CloneOf(n)
		n.Availability = dv1.Node_REMOVING
		d.add(&dv1.Effect{Of: &dv1.Effect_Node{Node: n}})
	}
	return nil
}

// putController records a controller's new address and feature level. Only a join
// adds a controller.
func (d *decision) putController(m *dv1.Controller) *dv1.Error {
	old := d.Controller(m.GetId())
	switch {
	case old == nil:
		return refuse(dv1.Error_NOT_FOUND, "No such controller: %s", m.GetId())
	case m.Addr == "" && m.Level == 0:
		return refuse(dv1.Error_INVALID, "a controller needs an address or a level")
	case m.Level != 0 && m.Level < d.Level():
		return refuse(dv1.Error_CONFLICT, "controller %s has feature level %d, the fleet's is %d by now: install the version that the other controllers have", old.Name, m.Level, d.Level())
	}
	n := proto.CloneOf(old)
	if m.Addr != "" && m.Addr != old.Addr {
		for o := range d.Controllers() {
			if o.Addr == m.Addr {
				return refuse(dv1.Error_CONFLICT, "controller %s is at %s", o.Name, o.Addr)
			}
		}
		n.Addr = m.Addr
	}
	if m.Level != 0 {
		n.Level = m.Level
	}
	if !proto.Equal(old, n) {
		d.add(&dv1.Effect{Of: &dv1.Effect_Controller{Controller: n}})
		d.raise(n.Id, n)
	}
	return nil
}

func (d *decision) removeController(id string) *dv1.Error {
	var m *dv1.Controller
	for c := range d.Controllers() {
		if c.Id == id || c.Name == id {
			m = c
		}
	}
	if m == nil {
		return refuse(dv1.Error_NOT_FOUND, "No such controller: %s", id)
	}
	others := 0
	for range d.Controllers() {
		others++
	}
	if others == 1 {
		return refuse(dv1.Error_CONFLICT, "%s is the only controller", m.Name)
	}
	d.add(Expel(d.Snapshot, m.Id)...)
	d.raise(m.Id, nil)
	d.res.NodeId, d.res.Name = m.Id, m.Name
	return nil
}

// Expel removes a controller and the identities that come with it. Its copy of the
// data key stays, as a sign that this key must be rotated.
func Expel(s *state.Snapshot, controller string) []*dv1.Effect {
	out := []*dv1.Effect{{Of: &dv1.Effect_DeleteController{DeleteController: controller}}}
	return append(out, append(revoke(s, pki.KindController, controller), revoke(s, pki.KindUser, pki.AdminOf(controller))...)...)
}

func revoke(s *state.Snapshot, kind, id string) []*dv1.Effect {
	i := s.Identity(pki.URI(s.Cluster().GetId(), kind, id))
	if i == nil || i.Revoked {
		return nil
	}
	i = proto.CloneOf(i)
	i.Revoked = true
	return []*dv1.Effect{{Of: &dv1.Effect_Identity{Identity: i}}}
}
