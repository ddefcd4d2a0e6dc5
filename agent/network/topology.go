package network

import (
	"errors"
	"fmt"
	"net/netip"
)

// Topology is what a node must know of the fleet to carry its containers' traffic. It is
// always the whole of it: what it does not name any more is removed.
type Topology struct {
	Self     string // id of this node
	Peers    []Peer // all nodes; this one may be among them
	Networks []Fleet
	Doors    []Door // ports that answer here for other nodes' containers, one of a number at most
}

// Peer is a node as others reach it.
type Peer struct {
	ID     string
	Name   string
	Addr   netip.Addr   // of the host; the zero Addr: it is not reached
	Subnet netip.Prefix // the node's part of the default bridge network
	Door   bool         // ports of this node's containers answer there
}

// Fleet is a network of the fleet in which this node has endpoints, or will have.
type Fleet struct {
	ID       string // names it in connections
	Number   uint32 // names its bridge
	Subnets  []Subnet
	Internal bool // reaches nothing outside, and nothing outside reaches it
	MTU      int  // of its interfaces; 0 is what the ways to all peers allow
	Routes   []Route
}

// Subnet is a part of a network's addresses, one of each family at most.
type Subnet struct {
	Prefix  netip.Prefix
	Gateway netip.Addr // the same on every node
}

// Route says which node has addresses of a network: a slice, or one address that lies
// outside of its node's slices. The longest prefix counts.
type Route struct {
	Prefix netip.Prefix
	Node   string
}

// Validate reports the first thing that no node could do.
func (t Topology) Validate() error {
	if t.Self == "" {
		return errors.New("topology: Self is missing")
	}
	nodes := map[string]bool{}
	for _, p := range t.Peers {
		switch {
		case p.ID == "" || nodes[p.ID]:
			return fmt.Errorf("topology: a peer has the id %q, which must be its own", p.ID)
		case !p.Subnet.IsValid() || !p.Subnet.Addr().Is4() || p.Subnet.Bits() > 29 || p.Subnet != p.Subnet.Masked():
			return fmt.Errorf("topology: peer %s has the subnet %v, which is no IPv4 network", p.ID, p.Subnet)
		}
		nodes[p.ID] = true
	}
	ids, numbers := map[string]bool{Bridge: true}, map[uint32]bool{}
	for _, f := range t.Networks {
		if f.ID == "" || ids[f.ID] || f.Number == 0 || f.Number > maxNumber || numbers[f.Number] {
			return fmt.Errorf("topology: network %q has the number %d: both must be its own", f.ID, f.Number)
		}
		ids[f.ID], numbers[f.Number] = true, true
		if err := f.validate(); err != nil {
			return fmt.Errorf("topology: network %s: %w", f.ID, err)
		}
	}
	for _, d := range t.Doors {
		if err := d.validate(); err != nil {
			return err
		}
	}
	return nil
}

// maxNumber is the highest number that fits into the name of a bridge.
const maxNumber = 999_999_999

func (f Fleet) validate() error {
	families := map[bool]bool{}
	for _, s := range f.Subnets {
		is4 := s.Prefix.Addr().Is4()
		switch {
		case !s.Prefix.IsValid() || s.Prefix != s.Prefix.Masked():
			return fmt.Errorf("%v is no subnet", s.Prefix)
		case !s.Prefix.Contains(s.Gateway):
			return fmt.Errorf("the gateway %v is not in %v", s.Gateway, s.Prefix)
		case families[is4]:
			return errors.New("it has several subnets of one family")
		}
		families[is4] = true
	}
	if len(f.Subnets) == 0 {
		return errors.New("it has no subnet")
	}
	if f.MTU != 0 && (f.MTU < 68 || f.MTU > 65535) {
		return fmt.Errorf("its MTU is %d", f.MTU)
	}
	routes := map[netip.Prefix]bool{}
	for _, r := range f.Routes {
		if _, ok := f.subnet(r.Prefix); !ok || routes[r.Prefix] || r.Node == "" {
			return fmt.Errorf("it has a route for %v to node %q", r.Prefix, r.Node)
		}
		routes[r.Prefix] = true
	}
	return nil
}

// subnet returns the subnet that contains p.
func (f Fleet) subnet(p netip.Prefix) (Subnet, bool) {
	for _, s := range f.Subnets {
		if p.IsValid() && p == p.Masked() && p.Bits() >= s.Prefix.Bits() && s.Prefix.Contains(p.Addr()) {
			return s, true
		}
	}
	return Subnet{}, false
}
