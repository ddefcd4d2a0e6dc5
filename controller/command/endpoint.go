package command

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/ipam"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// maxEndpoints bounds the endpoints of a task, in bytes: its removal rewrites all of them in
// one entry, and each node in their networks is sent their names.
const maxEndpoints = 32 << 10

// decided is about what a fleet adds to an endpoint that was asked for, in bytes.
const decided = 256

// checkEndpoints refuses endpoints that their networks could not have, or that are too much
// for one task with those that it has. one is set if one task gets them: only then users can
// choose addresses.
func (d *decision) checkEndpoints(asked []*dv1.Endpoint, one bool, has ...*dv1.Endpoint) *dv1.Error {
	if len(asked) == 0 {
		return nil
	}
	if e := d.haveNetworks(); e != nil {
		return e
	}
	size := 0
	for _, e := range has {
		size += proto.Size(e)
	}
	seen := map[string]bool{}
	for _, e := range asked {
		if size += proto.Size(e) + decided; size > maxEndpoints {
			return refuse(dv1.Error_INVALID, "invalid endpoint settings:\nwhat the container is called, and its options, in all of its networks have more than %d bytes", maxEndpoints)
		}
		n, err := d.network(e.NetworkId)
		if err != nil {
			return err
		}
		if seen[string(e.NetworkId)] {
			return refuse(dv1.Error_INVALID, "network %s is named twice", n.Name)
		}
		seen[string(e.NetworkId)] = true
		if !one && (e.AskedIp != "" || e.AskedIp6 != "" || e.AskedMac != "") {
			return refuse(dv1.Error_INVALID, "invalid endpoint settings:\naddresses can't be chosen for a run over nodes")
		}
		if err := checkAsked(n, e); err != nil {
			return err
		}
	}
	return nil
}

func checkAsked(n *dv1.Network, e *dv1.Endpoint) *dv1.Error {
	for _, ask := range []struct {
		text, family string
		v6, has      bool
	}{{e.AskedIp, "IPv4", false, n.Ipv4}, {e.AskedIp6, "IPv6", true, n.Ipv6}} {
		if ask.text == "" {
			continue
		}
		a, err := netip.ParseAddr(ask.text)
		if err != nil || a.Is6() != ask.v6 || a.Is4In6() || a.IsUnspecified() || a.Zone() != "" {
			return refuse(dv1.Error_INVALID, "invalid endpoint settings:\ninvalid %s address: %s", ask.family, ask.text)
		}
		if !ask.has || !ipam.Contains(n, a) {
			return refuse(dv1.Error_INVALID, "invalid endpoint settings:\nno configured subnet contains IP address %s", a)
		}
	}
	if e.AskedMac != "" {
		var mac network.HardwareAddr
		if err := mac.UnmarshalText([]byte(e.AskedMac)); err != nil || len(mac) != 6 || mac[0]&1 != 0 { // of one host
			return refuse(dv1.Error_INVALID, "invalid MAC address: %s", e.AskedMac)
		}
	}
	for _, l := range e.LinkLocal {
		// Docker takes any; here it would pass the check of what a container may send as.
		if a, err := netip.ParseAddr(l); err != nil || !a.IsLinkLocalUnicast() || a.Zone() != "" {
			return refuse(dv1.Error_INVALID, "invalid endpoint settings:\ninvalid link-local IP address: %s", l)
		}
	}
	return nil
}

// attach gives a new task its endpoints. As docker, it lets a task be made whose address
// is taken: that matters when it is started.
func (d *decision) attach(t *dv1.Task, asked []*dv1.Endpoint) *dv1.Error {
	for _, e := range asked {
		n, err := d.network(e.NetworkId)
		if err != nil {
			return err
		}
		if err := d.enter(t, n, proto.CloneOf(e)); err != nil {
			return err
		}
	}
	return nil
}

// enter puts an endpoint of a task into a network. Only a task that may run must have its
// addresses.
func (d *decision) enter(t *dv1.Task, n *dv1.Network, e *dv1.Endpoint) *dv1.Error {
	e.TaskId, e.NetworkId, e.NodeId, e.Id = t.Id, n.Id, t.NodeId, d.endpointID(t, n)
	e.Ip, e.Ip6, e.Mac, e.Asked, e.Leaving, e.Revision = "", "", "", false, false, 0
	return d.address(t, n, e)
}

// endpointID is another one each time that a task enters a network.
func (d *decision) endpointID(t *dv1.Task, n *dv1.Network) []byte {
	b := append(append([]byte("drover endpoint 1\n"), t.Id...), n.Id...)
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(b, d.Index()))
	return sum[:]
}

// address assigns the addresses that an endpoint lacks, and writes it. If its task is
// live, what it can't have is refused.
func (d *decision) address(t *dv1.Task, n *dv1.Network, e *dv1.Endpoint) *dv1.Error {
	if d.plan == nil {
		d.plan = ipam.New(d.Snapshot)
	}
	slice := d.plan.Assign(n, e)
	if ipam.Lacks(n, e) && state.Live(t) {
		for _, v6 := range []bool{false, true} {
			if err := d.takeOver(n, e, v6); err != nil {
				return err
			}
		}
		d.plan.Assign(n, e) // its MAC address
	}
	if slice != nil {
		d.add(&dv1.Effect{Of: &dv1.Effect_Slice{Slice: slice}})
	}
	d.add(&dv1.Effect{Of: &dv1.Effect_Endpoint{Endpoint: e}})
	return nil
}

// takeOver takes an address that an endpoint lacks from one whose task has no process:
// as docker's, these have their addresses only while nobody else needs them.
func (d *decision) takeOver(n *dv1.Network, e *dv1.Endpoint, v6 bool) *dv1.Error {
	has, have, asked := n.Ipv4, &e.Ip, e.AskedIp
	if v6 {
		has, have, asked = n.Ipv6, &e.Ip6, e.AskedIp6
	}
	if !has || *have != "" {
		return nil
	}
	var from *dv1.Endpoint
	if a, err := netip.ParseAddr(asked); err == nil {
		if from = d.latest(d.EndpointAt(n.Id, a)); !d.lends(from, v6) {
			return refuse(dv1.Error_FORBIDDEN, "failed to set up container networking: Address already in use")
		}
	} else if from = d.lender(n, v6); from == nil {
		family := 4
		if v6 {
			family = 6
		}
		return refuse(dv1.Error_UNAVAILABLE, "failed to set up container networking: no available IPv%d addresses on this network's address pools: %s (%x)", family, n.Name, n.Id)
	}
	from = proto.CloneOf(from)
	if v6 {
		*have, from.Ip6 = from.Ip6, ""
	} else {
		*have, from.Ip = from.Ip, ""
	}
	if from.AskedMac == "" {
		from.Mac = ""
	}
	e.Asked = true // it may be of another node's slice
	d.lent[string(from.TaskId)+string(from.NetworkId)] = from
	d.add(&dv1.Effect{Of: &dv1.Effect_Endpoint{Endpoint: from}})
	return nil
}

// latest returns an endpoint without what this command took from it, which the view still
// has.
func (d *decision) latest(e *dv1.Endpoint) *dv1.Endpoint {
	if lent := d.lent[string(e.GetTaskId())+string(e.GetNetworkId())]; lent != nil {
		return lent
	}
	return e
}

// lends reports whether an endpoint has an address that another one may take: its task has
// no process, and its node no more than the endpoint of a task that may be started.
func (d *decision) lends(e *dv1.Endpoint, v6 bool) bool {
	if !v6 && e.GetIp() == "" || v6 && e.GetIp6() == "" || e.Leaving {
		return false
	}
	t := d.Task(e.TaskId)
	return t != nil && !state.Live(t)
}

// lender returns the first endpoint of a network that lends an address of a family, or nil.
// That there is none is remembered: the network may be large, and a run has many tasks.
func (d *decision) lender(n *dv1.Network, v6 bool) *dv1.Endpoint {
	key := fmt.Sprint(v6, string(n.Id))
	if d.noLender[key] {
		return nil
	}
	for e := range d.EndpointsOfNetwork(n.Id) {
		if e = d.latest(e); d.lends(e, v6) {
			return e
		}
	}
	d.noLender[key] = true
	return nil
}

// addresses gives a task that is started the addresses that its endpoints lack.
func (d *decision) addresses(t *dv1.Task) *dv1.Error {
	for e := range d.EndpointsOfTask(t.Id) {
		n := d.Network(e.NetworkId)
		if e.Leaving || n == nil || !ipam.Lacks(n, e) {
			continue
		}
		if err := d.address(t, n, proto.CloneOf(e)); err != nil {
			return err
		}
	}
	return nil
}

func (d *decision) connect(c *dv1.Connect) *dv1.Error {
	asked := proto.CloneOf(c.GetEndpoint())
	if asked == nil {
		asked = &dv1.Endpoint{}
	}
	asked.NetworkId = c.NetworkId
	t, e := d.task(asked.TaskId)
	if e != nil {
		return e
	}
	if e := d.checkEndpoints([]*dv1.Endpoint{asked}, true, slices.Collect(d.EndpointsOfTask(t.Id))...); e != nil {
		return e
	}
	if e := d.joinable(t); e != nil {
		return e
	}
	n := d.Network(c.NetworkId)
	if old := d.Endpoint(t.Id, n.Id); old != nil && !old.Leaving {
		if state.Live(t) {
			return refuse(dv1.Error_FORBIDDEN, "endpoint with name %s already exists in network %s", t.Name, n.Name)
		}
		return nil
	}
	return d.enter(t, n, asked)
}

// joinable refuses to connect a container whose network is not its own.
func (d *decision) joinable(t *dv1.Task) *dv1.Error {
	r, err := d.batch.request(d.Spec(t.SpecId).GetBody())
	if err != nil {
		return refuse(dv1.Error_INVALID, "%v", err)
	}
	mode := container.NetworkMode("")
	if r.HostConfig != nil {
		mode = r.HostConfig.NetworkMode
	}
	switch {
	case mode.IsHost(), mode.IsContainer():
		return refuse(dv1.Error_INVALID, "container sharing network namespace with another container or host cannot be connected to any other network")
	case mode.IsNone(), r.Config != nil && r.NetworkDisabled:
		return refuse(dv1.Error_INVALID, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	return nil
}

func (d *decision) disconnect(c *dv1.Disconnect) *dv1.Error {
	t, e := d.task(c.TaskId)
	if e != nil {
		return e
	}
	n, e := d.network(c.NetworkId)
	if e != nil {
		return e
	}
	ep := d.Endpoint(t.Id, n.Id)
	if ep == nil || ep.Leaving {
		return refuse(dv1.Error_INTERNAL, "container %x is not connected to network %s", t.Id, n.Name)
	}
	d.leave(ep)
	return nil
}

// leave records that an endpoint has to go. Its address is free once its node has
// acknowledged that.
func (d *decision) leave(e *dv1.Endpoint) {
	if e.Leaving {
		return
	}
	e = proto.CloneOf(e)
	e.Leaving = true
	d.add(&dv1.Effect{Of: &dv1.Effect_Endpoint{Endpoint: e}})
}

// leaveAll is leave for all endpoints of a task.
func (d *decision) leaveAll(task []byte) {
	for e := range d.EndpointsOfTask(task) {
		d.leave(e)
	}
}

// gone deletes the endpoints of a task that no node has any more.
func (d *decision) gone(task []byte) {
	for e := range d.EndpointsOfTask(task) {
		d.deleteEndpoint(e)
	}
}

// deleteEndpoint deletes an endpoint, with its node's last one in the network the node's
// slice, and with the last one of a removed network the network. What this command
// deletes is counted, since the view still has it.
func (d *decision) deleteEndpoint(e *dv1.Endpoint) {
	d.add(&dv1.Effect{Of: &dv1.Effect_DeleteEndpoint{DeleteEndpoint: append(append([]byte{}, e.TaskId...), e.NetworkId...)}})
	place := string(e.NetworkId) + e.NodeId
	d.dropped[place]++
	d.dropped[string(e.NetworkId)]++
	if !d.HasEndpoints(e.NetworkId, e.NodeId, d.dropped[place]+1) && d.Slice(e.NetworkId, e.NodeId) != nil {
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteSlice{DeleteSlice: []byte(place)}})
	}
	if n := d.Network(e.NetworkId); n.GetRemoving() && !d.HasEndpoints(n.Id, "", d.dropped[string(n.Id)]+1) {
		d.add(&dv1.Effect{Of: &dv1.Effect_DeleteNetwork{DeleteNetwork: n.Id}})
	}
}

// leftNetworks deletes the endpoints that a node acknowledged to be gone from containers
// that stay.
func (d *decision) leftNetworks(c *dv1.LeftNetworks) *dv1.Error {
	if len(c.TaskIds) != len(c.NetworkIds) {
		return refuse(dv1.Error_INVALID, "%d tasks left %d networks", len(c.TaskIds), len(c.NetworkIds))
	}
	seen := map[string]bool{}
	d.res.Left = uint32(d.some(len(c.TaskIds), func(i int) {
		e := d.Endpoint(c.TaskIds[i], c.NetworkIds[i])
		if key := string(c.TaskIds[i]) + string(c.NetworkIds[i]); e != nil && e.Leaving && e.NodeId == c.NodeId && !seen[key] {
			seen[key] = true
			d.deleteEndpoint(e)
		}
	}))
	return nil
}
