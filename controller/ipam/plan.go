package ipam

import (
	"fmt"
	"net/netip"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/subnet"
)

// Plan chooses addresses on one state, each aware of those that it chose before. It must
// be used by one goroutine.
type Plan struct {
	snap   *state.Snapshot
	taken  map[string]bool                  // chosen before, by network and address
	slices map[string]*dv1.Slice            // as the plan leaves them, by network and node
	owned  map[string]map[netip.Prefix]bool // nodes' slices of the networks that lacked one
	full   map[string]bool                  // families and networks without a free address
}

// New returns a Plan on a state.
func New(s *state.Snapshot) *Plan {
	return &Plan{snap: s, taken: map[string]bool{}, slices: map[string]*dv1.Slice{}, owned: map[string]map[netip.Prefix]bool{}, full: map[string]bool{}}
}

// Lacks reports whether an endpoint has no address of a family that its network has.
func Lacks(n *dv1.Network, e *dv1.Endpoint) bool {
	return n.Ipv4 && e.Ip == "" || n.Ipv6 && e.Ip6 == ""
}

// Assign chooses the addresses that an endpoint lacks, and its MAC address. It returns
// the node's slice if that changed. An address that isn't free stays "": what was asked
// for is taken, or the network is full.
func (p *Plan) Assign(n *dv1.Network, e *dv1.Endpoint) (changed *dv1.Slice) {
	choose := func(have, asked string, v6 bool) string {
		if have != "" {
			return have
		}
		if a, err := netip.ParseAddr(asked); err == nil {
			if !p.free(n, a) {
				return ""
			}
			p.take(n, a)
			e.Asked = true
			return asked
		}
		a, own, slice := p.next(n, e.NodeId, v6)
		if !a.IsValid() {
			return ""
		}
		p.take(n, a)
		e.Asked = e.Asked || !own
		if slice != nil {
			changed = slice
		}
		return a.String()
	}
	if n.Ipv4 {
		e.Ip = choose(e.Ip, e.AskedIp, false)
	}
	if n.Ipv6 {
		e.Ip6 = choose(e.Ip6, e.AskedIp6, true)
	}
	e.Mac = e.AskedMac
	if e.Mac == "" {
		e.Mac = mac(e)
	}
	return changed
}

// mac derives a MAC address as docker did: from the IPv4 address, or the end of the IPv6
// address.
func mac(e *dv1.Endpoint) string {
	a, err := netip.ParseAddr(e.Ip)
	if err != nil {
		if a, err = netip.ParseAddr(e.Ip6); err != nil {
			return ""
		}
	}
	b := a.AsSlice()
	b = b[len(b)-4:]
	return fmt.Sprintf("02:42:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}

// next chooses an address for an endpoint on a node: the least free one of the node's
// slices, else that of a new slice, else any of the network, which is not the node's own.
func (p *Plan) next(n *dv1.Network, node string, v6 bool) (a netip.Addr, own bool, changed *dv1.Slice) {
	family := fmt.Sprint(v6, string(n.Id))
	if p.full[family] {
		return netip.Addr{}, false, nil
	}
	slice := p.slice(n, node)
	for _, text := range slice.GetPrefixes() {
		if block, err := netip.ParsePrefix(text); err == nil && block.Addr().Is6() == v6 {
			if a, ok := p.least(n, block); ok {
				return a, true, nil
			}
		}
	}
	if block, a, ok := p.block(n, v6); ok {
		changed = proto.CloneOf(slice)
		if changed == nil {
			changed = &dv1.Slice{NetworkId: n.Id, NodeId: node}
		}
		changed.Prefixes = append(changed.Prefixes, block.String())
		p.slices[string(n.Id)+node] = changed
		p.owned[string(n.Id)][block] = true
		return a, true, changed
	}
	for _, s := range n.Subnets {
		if r := Range(s); r.Addr().Is6() == v6 {
			if a, ok := p.least(n, r); ok {
				return a, false, nil
			}
		}
	}
	p.full[family] = true
	return netip.Addr{}, false, nil
}

// sliceBits is the length of the slices of a range: 64 addresses, or a sixteenth of a
// small network; of IPv6, where there is room, 65,536.
func sliceBits(r netip.Prefix) int {
	if r.Addr().Is6() {
		return min(128, max(112, r.Bits()+16))
	}
	return min(32, max(26, r.Bits()+4))
}

// block returns the lowest slice of a network that no node owns and that has a free
// address, which is returned too.
func (p *Plan) block(n *dv1.Network, v6 bool) (netip.Prefix, netip.Addr, bool) {
	owned := p.ownedOf(n)
	for _, s := range n.Subnets {
		r := Range(s)
		if r.Addr().Is6() != v6 {
			continue
		}
		bits := sliceBits(r)
		for at := r.Addr(); r.Contains(at); {
			block := netip.PrefixFrom(at, bits)
			if !owned[block] {
				if a, ok := p.least(n, block); ok {
					return block, a, true
				}
			}
			at = subnet.Last(block).Next()
		}
	}
	return netip.Prefix{}, netip.Addr{}, false
}

// ownedOf returns the slices of a network that nodes own, reading them once.
func (p *Plan) ownedOf(n *dv1.Network) map[netip.Prefix]bool {
	if owned := p.owned[string(n.Id)]; owned != nil {
		return owned
	}
	owned := map[netip.Prefix]bool{}
	for s := range p.snap.Slices(n.Id) {
		for _, text := range s.Prefixes {
			if block, err := netip.ParsePrefix(text); err == nil {
				owned[block] = true
			}
		}
	}
	p.owned[string(n.Id)] = owned
	return owned
}

func (p *Plan) slice(n *dv1.Network, node string) *dv1.Slice {
	if s := p.slices[string(n.Id)+node]; s != nil {
		return s
	}
	return p.snap.Slice(n.Id, node)
}

// least returns the lowest free address of a part of a network.
func (p *Plan) least(n *dv1.Network, part netip.Prefix) (netip.Addr, bool) {
	last := subnet.Last(part)
	for from := part.Addr(); from.IsValid() && from.Compare(last) <= 0; {
		a, ok := p.snap.FreeAddress(n.Id, from, last)
		if !ok || p.usable(n, a) {
			return a, ok
		}
		from = a.Next()
	}
	return netip.Addr{}, false
}

// free reports whether an endpoint may have an address.
func (p *Plan) free(n *dv1.Network, a netip.Addr) bool {
	return p.snap.EndpointAt(n.Id, a) == nil && p.usable(n, a)
}

// usable reports whether an address that no endpoint has is not reserved, nor chosen by
// the plan.
func (p *Plan) usable(n *dv1.Network, a netip.Addr) bool {
	if p.taken[string(n.Id)+a.String()] {
		return false
	}
	for _, s := range n.Subnets {
		if prefix, err := netip.ParsePrefix(s.Prefix); err == nil && prefix.Contains(a) {
			return !reserved(s, prefix, a)
		}
	}
	return false
}

func (p *Plan) take(n *dv1.Network, a netip.Addr) { p.taken[string(n.Id)+a.String()] = true }

// Contains reports whether an address lies in one of a network's subnets.
func Contains(n *dv1.Network, a netip.Addr) bool {
	for _, s := range n.Subnets {
		if p, err := netip.ParsePrefix(s.Prefix); err == nil && p.Contains(a) {
			return true
		}
	}
	return false
}

// Reserved reports whether an address of a network is kept from endpoints.
func Reserved(n *dv1.Network, a netip.Addr) bool {
	for _, s := range n.Subnets {
		if p, err := netip.ParsePrefix(s.Prefix); err == nil && p.Contains(a) && reserved(s, p, a) {
			return true
		}
	}
	return false
}
