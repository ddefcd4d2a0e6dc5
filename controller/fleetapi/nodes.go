package fleetapi

import (
	"context"
	"fmt"
	"net/http"

	"connectrpc.com/connect"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/ipam"
	"github.com/drover/drover/controller/scheduler"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/subnet"
)

// nodes implements dv1connect.NodesHandler.
type nodes struct{ *server }

func (s nodes) List(ctx context.Context, r *connect.Request[dv1.ListNodesRequest]) (*connect.Response[dv1.ListNodesResponse], error) {
	for _, on := range r.Msg.On {
		if err := scheduler.CheckConstraint(on); err != nil {
			return nil, refuse(dv1.Error_INVALID, "%v", err)
		}
	}
	snap, err := s.state(ctx, r.Header())
	if err != nil {
		return nil, err
	}
	var fit []*dv1.Node
	for n := range snap.Nodes() {
		ok, err := scheduler.Matches(n, r.Msg.On)
		if err != nil {
			return nil, refuse(dv1.Error_INVALID, "%v", err)
		}
		if ok {
			fit = append(fit, n)
		}
	}
	fit, next, err := page(fit, (*dv1.Node).GetName, r.Msg.PageSize, r.Msg.PageToken)
	if err != nil {
		return nil, err
	}
	out := &dv1.ListNodesResponse{NextPageToken: next}
	seen := s.observe(ctx)
	for _, n := range fit {
		out.Nodes = append(out.Nodes, seen.node(snap, n))
	}
	return reply(snap, out), nil
}

func (s nodes) Get(ctx context.Context, r *connect.Request[dv1.GetNodeRequest]) (*connect.Response[dv1.GetNodeResponse], error) {
	snap, n, err := s.find(ctx, r.Header(), r.Msg.Node)
	if err != nil {
		return nil, err
	}
	return reply(snap, &dv1.GetNodeResponse{Node: s.observe(ctx).node(snap, n)}), nil
}

func (s nodes) find(ctx context.Context, header http.Header, name string) (*state.Snapshot, *dv1.Node, error) {
	snap, err := s.state(ctx, header)
	if err != nil {
		return nil, nil, err
	}
	n := snap.NodeByName(name)
	if n == nil {
		return nil, nil, refuse(dv1.Error_NOT_FOUND, "No such node: %s", name)
	}
	return snap, n, nil
}

// observed is what is known of nodes besides the state.
type observed struct {
	*fleet.Observations
	roles map[string]dv1.ControllerInfo_Role
}

func (s nodes) observe(ctx context.Context) observed {
	o := observed{s.Fleet.Observe(ctx, fleet.Query{}), map[string]dv1.ControllerInfo_Role{}}
	for _, m := range s.Members() {
		o.roles[m.Id] = m.Role
	}
	return o
}

func (o observed) node(snap *state.Snapshot, n *dv1.Node) *dv1.NodeInfo {
	out := &dv1.NodeInfo{
		Id: n.Id, Name: n.Name, Addr: n.Addr, Subnet: n.Subnet, Labels: n.Labels, Availability: n.Availability, Liveness: n.Liveness,
		Controller: o.roles[n.Id], Capacity: n.Capacity, Roles: n.Roles, Joined: n.Joined, Revision: n.Revision,
	}
	var silent bool
	if out.SilentSince, silent = o.Silent(n.Id); silent && out.Liveness == dv1.Node_READY {
		out.Liveness = dv1.Node_SUSPECT
	}
	use := snap.Use(n.Id)
	out.Containers, out.Running = uint32(use.All()), uint32(use.Running)
	return out
}

func (s nodes) Update(ctx context.Context, r *connect.Request[dv1.UpdateNodeRequest]) (*connect.Response[dv1.UpdateNodeResponse], error) {
	switch r.Msg.Availability {
	case dv1.Node_AVAILABILITY_UNSPECIFIED, dv1.Node_ACTIVE, dv1.Node_DRAIN:
	default:
		return nil, refuse(dv1.Error_INVALID, "a node's availability is active or drain, not %s", wire.Word(r.Msg.Availability))
	}
	res, err := s.propose(ctx, r, &dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{
		NodeId: r.Msg.Node, SetLabels: r.Msg.SetLabels, DropLabels: r.Msg.DropLabels, Availability: r.Msg.Availability}}})
	if err != nil {
		return nil, err
	}
	return done(res, &dv1.UpdateNodeResponse{Changed: res.Changed}), nil
}

func (s nodes) Grant(ctx context.Context, r *connect.Request[dv1.GrantRequest]) (*connect.Response[dv1.GrantResponse], error) {
	res, err := s.propose(ctx, r, &dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{
		NodeId: r.Msg.Node, Roles: map[string]string{fmt.Sprint(r.Msg.Uid): r.Msg.Role}}}})
	if err != nil {
		return nil, err
	}
	return done(res, &dv1.GrantResponse{Changed: res.Changed}), nil
}

// Remove takes several entries for a node with many tasks. The leader continues by
// itself if this caller, or this controller, dies.
func (s nodes) Remove(ctx context.Context, r *connect.Request[dv1.RemoveNodeRequest]) (*connect.Response[dv1.RemoveNodeResponse], error) {
	c := &dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: r.Msg.Node, Force: r.Msg.Force}}}
	res, err := s.propose(ctx, r, c)
	if err != nil {
		return nil, err
	}
	id, name := res.NodeId, res.Name
	for part := 1; res.Left > 0; part++ {
		next := &dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: id}}}
		if c.Key != "" {
			next.Key = fmt.Sprint(c.Key, "/", part)
		}
		more, err := s.propose(ctx, r, next)
		if wire.KindOf(err) == dv1.Error_NOT_FOUND { // the leader was faster
			break
		}
		if err != nil {
			return nil, refuse(dv1.Error_UNAVAILABLE, "node %s is being removed, which continues: %s", name, words(err))
		}
		res = more
	}
	return done(res, &dv1.RemoveNodeResponse{}), nil
}

func (s nodes) ListPools(ctx context.Context, r *connect.Request[dv1.ListPoolsRequest]) (*connect.Response[dv1.ListPoolsResponse], error) {
	snap, err := s.state(ctx, r.Header())
	if err != nil {
		return nil, err
	}
	out := &dv1.ListPoolsResponse{}
	for _, p := range command.Pools(snap.Cluster()) {
		out.Pools = append(out.Pools, &dv1.PoolInfo{Pool: p.String(), Nodes: uint32(subnet.Nodes(p)), Used: uint32(subnet.Taken(p, snap.Subnets(), snap.SubnetAt))})
	}
	for _, p := range ipam.Pools(snap.Cluster()) {
		out.NetworkPools = append(out.NetworkPools, &dv1.NetworkPoolInfo{Base: p.Base.String(), Size: uint32(p.Size), Subnets: uint32(p.Subnets()), Used: uint32(ipam.Used(snap, p))})
	}
	return reply(snap, out), nil
}

func (s nodes) AddPool(ctx context.Context, r *connect.Request[dv1.AddPoolRequest]) (*connect.Response[dv1.AddPoolResponse], error) {
	res, err := s.propose(ctx, r, &dv1.Command{Of: &dv1.Command_AddPool{AddPool: &dv1.AddPool{Pool: r.Msg.Pool, NetworkPool: r.Msg.NetworkPool}}})
	if err != nil {
		return nil, err
	}
	return done(res, &dv1.AddPoolResponse{}), nil
}
