package state

import (
	"encoding/binary"
	"iter"
	"net/netip"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var networks = &kind[*dv1.Network]{
	name:    "network",
	key:     func(m *dv1.Network) string { return string(m.Id) },
	indexes: []*index[*dv1.Network]{networksByName, networksByNumber},
	stamp:   func(m *dv1.Network, index uint64) { m.Revision = index },
}

var (
	networksByName   = &index[*dv1.Network]{unique: "name", key: func(m *dv1.Network) string { return m.Name + sep }}
	networksByNumber = &index[*dv1.Network]{unique: "number", width: 4, key: func(m *dv1.Network) string {
		return string(binary.BigEndian.AppendUint32(nil, m.Number))
	}}
)

// Network returns a network, or nil.
func (s *Snapshot) Network(id []byte) *dv1.Network { return networks.get(s, string(id)) }

// NetworkByName returns a network, or nil.
func (s *Snapshot) NetworkByName(name string) *dv1.Network {
	return networks.first(s, networksByName, name+sep)
}

// Networks yields all networks, sorted by id.
func (s *Snapshot) Networks() iter.Seq[*dv1.Network] { return networks.each(s, "") }

// NetworksByNumber yields all networks, sorted by number.
func (s *Snapshot) NetworksByNumber() iter.Seq[*dv1.Network] {
	return networks.by(s, networksByNumber, "")
}

var addressSlices = &kind[*dv1.Slice]{
	name:    "slice",
	key:     func(m *dv1.Slice) string { return string(m.NetworkId) + m.NodeId },
	indexes: []*index[*dv1.Slice]{slicesByNode},
	stamp:   func(m *dv1.Slice, index uint64) { m.Revision = index },
}

var slicesByNode = &index[*dv1.Slice]{key: func(m *dv1.Slice) string { return m.NodeId + sep }}

// Slice returns a node's slice of a network, or nil.
func (s *Snapshot) Slice(network []byte, node string) *dv1.Slice {
	return addressSlices.get(s, string(network)+node)
}

// Slices yields the slices of a network, sorted by node.
func (s *Snapshot) Slices(network []byte) iter.Seq[*dv1.Slice] {
	return addressSlices.each(s, string(network))
}

// SlicesOfNode yields the slices of a node: one for each network in which it has endpoints.
func (s *Snapshot) SlicesOfNode(node string) iter.Seq[*dv1.Slice] {
	return addressSlices.by(s, slicesByNode, node+sep)
}

var endpoints = &kind[*dv1.Endpoint]{
	name:    "endpoint",
	key:     func(m *dv1.Endpoint) string { return string(m.TaskId) + string(m.NetworkId) },
	indexes: []*index[*dv1.Endpoint]{endpointsByNetwork, endpointsByNode, endpointsByIP, endpointsByIP6},
	stamp:   func(m *dv1.Endpoint, index uint64) { m.Revision = index },
}

var (
	endpointsByNetwork = &index[*dv1.Endpoint]{key: func(m *dv1.Endpoint) string { return string(m.NetworkId) }}
	endpointsByNode    = &index[*dv1.Endpoint]{key: func(m *dv1.Endpoint) string { return m.NodeId + sep }}
	endpointsByIP      = &index[*dv1.Endpoint]{unique: "address", key: func(m *dv1.Endpoint) string { return addressIn(m.NetworkId, m.Ip) }}
	endpointsByIP6     = &index[*dv1.Endpoint]{unique: "IPv6 address", key: func(m *dv1.Endpoint) string { return addressIn(m.NetworkId, m.Ip6) }}
)

// addressIn is the entry of an address: sorted by network, then by address.
func addressIn(network []byte, ip string) string {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return ""
	}
	return string(network) + string(a.AsSlice())
}

// Endpoint returns a task's endpoint in a network, or nil.
func (s *Snapshot) Endpoint(task, network []byte) *dv1.Endpoint {
	return endpoints.get(s, string(task)+string(network))
}

// EndpointsOfTask yields a task's endpoints, sorted by network; also those of a removed
// task whose node has yet to acknowledge.
func (s *Snapshot) EndpointsOfTask(task []byte) iter.Seq[*dv1.Endpoint] {
	return endpoints.each(s, string(task))
}

// EndpointsOfNetwork yields the endpoints in a network, sorted by task.
func (s *Snapshot) EndpointsOfNetwork(network []byte) iter.Seq[*dv1.Endpoint] {
	return endpoints.by(s, endpointsByNetwork, string(network))
}

// EndpointsOfNode yields the endpoints on a node, sorted by task.
func (s *Snapshot) EndpointsOfNode(node string) iter.Seq[*dv1.Endpoint] {
	return endpoints.by(s, endpointsByNode, node+sep)
}

// EndpointAt returns the endpoint that has an address in a network, or nil.
func (s *Snapshot) EndpointAt(network []byte, ip netip.Addr) *dv1.Endpoint {
	ix := endpointsByIP
	if ip.Is6() {
		ix = endpointsByIP6
	}
	return endpoints.first(s, ix, addressIn(network, ip.String()))
}
