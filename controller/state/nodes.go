package state

import (
	"encoding/binary"
	"iter"
	"sort"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/subnet"
)

var nodes = &kind[*dv1.Node]{
	name:    "node",
	key:     func(m *dv1.Node) string { return m.Id },
	indexes: []*index[*dv1.Node]{nodesByName, nodesBySubnet},
	stamp:   func(m *dv1.Node, index uint64) { m.Revision = index },
}

var (
	nodesByName   = &index[*dv1.Node]{key: func(m *dv1.Node) string { return m.Name + sep }}
	nodesBySubnet = &index[*dv1.Node]{key: func(m *dv1.Node) string {
		if p, ok := subnet.Of(m.Subnet); ok {
			return subnetKey(subnet.Number(p))
		}
		return ""
	}}
)

func subnetKey(number uint32) string { return string(binary.BigEndian.AppendUint32(nil, number)) }

// Node returns a node, or nil.
func (s *Snapshot) Node(id string) *dv1.Node { return nodes.get(s, id) }

// Nodes yields all nodes, sorted by id.
func (s *Snapshot) Nodes() iter.Seq[*dv1.Node] { return nodes.each(s, "") }

// NodeCount returns how many nodes there are.
func (s *Snapshot) NodeCount() int { return nodes.len(s) }

// NodeAt returns the i-th node in the order of Nodes, in O(log n).
func (s *Snapshot) NodeAt(i int) *dv1.Node { return nodes.nth(s, i) }

// NodeByName returns a node by name or id, or nil.
func (s *Snapshot) NodeByName(name string) *dv1.Node {
	if n := s.Node(name); n != nil {
		return n
	}
	return s.NodeNamed(name)
}

// NodeNamed returns a node by name, or nil.
func (s *Snapshot) NodeNamed(name string) *dv1.Node { return nodes.first(s, nodesByName, name+sep) }

// Subnets returns how many nodes have a subnet; SubnetAt returns the number of the
// i-th subnet in ascending order, as subnet.Free expects.
func (s *Snapshot) Subnets() int { return nodes.in(s).indexes[nodesBySubnet.at].len() }

// SubnetAt takes O(log n).
func (s *Snapshot) SubnetAt(i int) uint32 {
	return binary.BigEndian.Uint32([]byte(nodes.in(s).indexes[nodesBySubnet.at].at(i)))
}

// NodeOfSubnet returns the node of a subnet, nil if it is free.
func (s *Snapshot) NodeOfSubnet(number uint32) *dv1.Node {
	return nodes.first(s, nodesBySubnet, subnetKey(number))
}

// NodesOfSubnets yields the nodes whose subnets have numbers from first to last, in that
// order.
func (s *Snapshot) NodesOfSubnets(first, last uint32) iter.Seq[*dv1.Node] {
	return func(yield func(*dv1.Node) bool) {
		for i := sort.Search(s.Subnets(), func(i int) bool { return s.SubnetAt(i) >= first }); i < s.Subnets() && s.SubnetAt(i) <= last; i++ {
			if !yield(s.NodeOfSubnet(s.SubnetAt(i))) {
				return
			}
		}
	}
}
