package state

import (
	"encoding/binary"
	"encoding/hex"
	"iter"
	"net/netip"
	"slices"
	"sort"
	"strings"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/subnet"
)

var networks = &kind[*dv1.Network]{
	name:    "network",
	key:     func(m *dv1.Network) string { return string(m.Id) },
	indexes: []*index[*dv1.Network]{networksByName, networksByNumber},
	stamp:   func(m *dv1.Network, index uint64) { m.Revision = index },
}

var (
	networksByName = &index[*dv1.Network]{unique: "name", key: func(m *dv1.Network) string {
		if m.Removing {
			return ""
		}
		return m.Name + sep
	}}
	networksByNumber = &index[*dv1.Network]{unique: "number", width: 4, key: func(m *dv1.Network) string {
		return string(binary.BigEndian.AppendUint32(nil, m.Number))
	}}
)

// Network returns a network, or nil.
func (s *Snapshot) Network(id []byte) *dv1.Network { return networks.get(s, string(id)) }

// NetworkByName returns a network that is not being removed, or nil.
func (s *Snapshot) NetworkByName(name string) *dv1.Network {
	return networks.first(s, networksByName, name+sep)
}

// Networks yields all networks, sorted by id.
func (s *Snapshot) Networks() iter.Seq[*dv1.Network] { return networks.each(s, "") }

// NetworksByPrefix returns the networks whose hex id starts with prefix; none if it is
// empty or not hex.
func (s *Snapshot) NetworksByPrefix(prefix string) []*dv1.Network {
	return byPrefix(s, networks, prefix)
}

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
	indexes: []*index[*dv1.Endpoint]{endpointsByNetwork, endpointsByNode, endpointsByPlace, endpointsByIP, endpointsByIP6},
	stamp:   func(m *dv1.Endpoint, index uint64) { m.Revision = index },
}

var (
	endpointsByNetwork = &index[*dv1.Endpoint]{key: func(m *dv1.Endpoint) string { return string(m.NetworkId) }}
	endpointsByNode    = &index[*dv1.Endpoint]{key: func(m *dv1.Endpoint) string { return m.NodeId + sep }}
	endpointsByPlace   = &index[*dv1.Endpoint]{key: func(m *dv1.Endpoint) string { return string(m.NetworkId) + m.NodeId + sep }}
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

// EndpointsOn yields the endpoints in a network on a node, sorted by task.
func (s *Snapshot) EndpointsOn(network []byte, node string) iter.Seq[*dv1.Endpoint] {
	return endpoints.by(s, endpointsByPlace, string(network)+node+sep)
}

// NamesIn returns what a task is called in a network in which it has an endpoint, each name
// once, in docker's order.
func NamesIn(t *dv1.Task, e *dv1.Endpoint) []string {
	all := append(append([]string{t.Name}, e.Aliases...), hex.EncodeToString(t.Id)[:12], e.Hostname)
	names := all[:0]
	for _, n := range all {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	return names
}

// HasEndpoints reports whether a network has at least n endpoints, on one node, or on
// all for ""; n must be above 0.
func (s *Snapshot) HasEndpoints(network []byte, node string, n int) bool {
	if node == "" {
		return atLeast(n, endpoints.keys(s, endpointsByNetwork, string(network)))
	}
	return atLeast(n, endpoints.keys(s, endpointsByPlace, string(network)+node+sep))
}

// EndpointAt returns the endpoint that has an address in a network, or nil.
func (s *Snapshot) EndpointAt(network []byte, ip netip.Addr) *dv1.Endpoint {
	ix := endpointsByIP
	if ip.Is6() {
		ix = endpointsByIP6
	}
	return endpoints.first(s, ix, addressIn(network, ip.String()))
}

// FreeAddress returns the least address from first to last that no endpoint of a network
// has, and false if all are taken, in O(log² n) of all endpoints.
func (s *Snapshot) FreeAddress(network []byte, first, last netip.Addr) (netip.Addr, bool) {
	ix := endpointsByIP
	if first.Is6() {
		ix = endpointsByIP6
	}
	taken := endpoints.in(s).indexes[ix.at]
	n := taken.len()
	begin := addressIn(network, first.String())
	from := sort.Search(n, func(i int) bool { return taken.at(i) >= begin })
	room := subnet.Offset(first, last)
	if left := uint64(n - from); room > left {
		room = left
	}
	// Up to the first gap, the i-th address behind from is that many above the first.
	gap := sort.Search(int(room)+1, func(i int) bool {
		if from+i == n {
			return true
		}
		e := taken.at(from + i)
		if !strings.HasPrefix(e, string(network)) {
			return true
		}
		a, _ := netip.AddrFromSlice([]byte(e[len(network):len(begin)]))
		return subnet.Offset(first, a) > uint64(i)
	})
	if uint64(gap) > room {
		return netip.Addr{}, false
	}
	return subnet.Add(first, uint64(gap)), true
}

// AddressesIn returns how many addresses from first to last endpoints of a network have,
// in O(log² n).
func (s *Snapshot) AddressesIn(network []byte, first, last netip.Addr) int {
	ix := endpointsByIP
	if first.Is6() {
		ix = endpointsByIP6
	}
	taken := endpoints.in(s).indexes[ix.at]
	begin, end := addressIn(network, first.String()), addressIn(network, last.String())
	from := sort.Search(taken.len(), func(i int) bool { return taken.at(i) >= begin })
	return sort.Search(taken.len()-from, func(i int) bool { return taken.at(from + i)[:len(end)] > end })
}
