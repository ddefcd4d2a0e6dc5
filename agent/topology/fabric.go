package topology

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	fabric "github.com/drover/drover/agent/network"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// optionMTU is docker's option of a network.
const optionMTU = "com.docker.network.driver.mtu"

// Fabric returns what node self must do to carry the traffic of its containers, the
// version of that, and a channel that is closed when there is a newer one. What can't be
// understood is left out, and is the error: it must not keep the rest from working.
func (t *Topology) Fabric(self string) (out fabric.Topology, version uint64, newer <-chan struct{}, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out.Self = self
	errs := []error{t.unread}
	for _, x := range t.peers {
		p, err := peer(x)
		if err == nil {
			err = fabric.Topology{Self: self, Peers: []fabric.Peer{p}}.Validate()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", x.NodeId, err))
			continue
		}
		out.Peers = append(out.Peers, p)
	}
	for id, n := range t.networks {
		f, err := n.fabric()
		if err == nil {
			err = fabric.Topology{Self: self, Networks: []fabric.Fleet{f}}.Validate()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("network %s (%.12s): %w", n.Name, hexID(id), err))
			continue
		}
		out.Networks = append(out.Networks, f)
	}
	for _, d := range t.doors {
		if d.NodeId == self {
			continue
		}
		door := fabric.Door{Proto: d.Proto, Port: uint16(d.Port), Node: d.NodeId}
		if err := (fabric.Topology{Self: self, Doors: []fabric.Door{door}}).Validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		out.Doors = append(out.Doors, door)
	}
	slices.SortFunc(out.Doors, func(a, b fabric.Door) int { return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto)) })
	slices.SortFunc(out.Peers, func(a, b fabric.Peer) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(out.Networks, func(a, b fabric.Fleet) int { return cmp.Compare(a.Number, b.Number) })
	return out, t.version, t.changed, errors.Join(errs...)
}

// Version returns that of what Fabric returns now.
func (t *Topology) Version() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.version
}

func peer(x *dv1.Peer) (p fabric.Peer, err error) {
	p.ID, p.Name, p.Door = x.NodeId, x.Name, x.Door
	host := x.Addr
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if p.Addr, err = netip.ParseAddr(host); err != nil {
		return p, err
	}
	p.Addr = p.Addr.Unmap()
	p.Subnet, err = netip.ParsePrefix(x.Subnet)
	return p, err
}

func (n *network) fabric() (f fabric.Fleet, err error) {
	f.ID, f.Number, f.Internal = hexID(string(n.Id)), n.Number, n.Internal
	for _, s := range n.Subnets {
		var sub fabric.Subnet
		if sub.Prefix, err = netip.ParsePrefix(s.Prefix); err != nil {
			return f, err
		}
		if sub.Gateway, err = netip.ParseAddr(s.Gateway); err != nil {
			return f, err
		}
		f.Subnets = append(f.Subnets, sub)
	}
	if o := n.Options[optionMTU]; o != "" {
		if f.MTU, err = strconv.Atoi(o); err != nil {
			return f, err
		}
	}
	for _, s := range n.slices {
		for _, x := range s.Prefixes {
			p, err := netip.ParsePrefix(x)
			if err != nil {
				return f, fmt.Errorf("slice of node %s: %w", s.NodeId, err)
			}
			f.Routes = append(f.Routes, fabric.Route{Prefix: p, Node: s.NodeId})
		}
	}
	for _, x := range n.alone {
		for _, a := range addresses(x) {
			f.Routes = append(f.Routes, fabric.Route{Prefix: netip.PrefixFrom(a, a.BitLen()), Node: x.NodeId})
		}
	}
	slices.SortFunc(f.Routes, func(a, b fabric.Route) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Node, b.Node))
	})
	return f, nil
}
