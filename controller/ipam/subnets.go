// Package ipam chooses addresses: the subnets of networks, the slices of them that nodes
// own, and the addresses of endpoints. Deciding who may have one is left to command. Pure.
package ipam

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/subnet"
)

// subnet6Bits is the length of an IPv6 subnet that is chosen from the fleet's own prefix.
const subnet6Bits = 64

// Pools returns where the subnets of a fleet's networks come from that nobody chose, in the
// order in which they are used.
func Pools(c *dv1.Cluster) (out []subnet.NetworkPool) {
	for _, text := range c.GetNetworkPools() {
		if p, err := subnet.ParseNetworkPool(text); err == nil {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return []subnet.NetworkPool{subnet.DefaultNetworkPool}
	}
	return out
}

// FreeSubnet returns the lowest subnet of the first pool with one that overlaps none of
// those that are taken, no node's, and no host's own address; of the pool's size, unless
// bits is not 0.
func FreeSubnet(s *state.Snapshot, taken []netip.Prefix, bits int) (netip.Prefix, bool) {
	taken = append(slices.Clip(taken), hosts(s)...)
	for _, pool := range Pools(s.Cluster()) {
		size := pool.Size
		if bits != 0 {
			size = bits
		}
		if p, ok := freeIn(s, taken, pool.Base, size); ok {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

func freeIn(s *state.Snapshot, taken []netip.Prefix, base netip.Prefix, bits int) (netip.Prefix, bool) {
	if bits < base.Bits() {
		return netip.Prefix{}, false
	}
	taken = slices.DeleteFunc(slices.Clone(taken), func(p netip.Prefix) bool { return !p.Overlaps(base) })
	slices.SortFunc(taken, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	for a := base.Addr(); base.Contains(a); {
		for len(taken) > 0 && subnet.Last(taken[0]).Less(a) {
			taken = taken[1:]
		}
		p := netip.PrefixFrom(a, bits)
		other, overlaps := Overlap(s, taken[:min(1, len(taken))], p) // the others are behind
		if !overlaps {
			return p, true
		}
		if other.Bits() < bits {
			p = other
		}
		a = subnet.Last(p).Next()
	}
	return netip.Prefix{}, false
}

// Used returns how many subnets of a pool have addresses that networks, nodes or hosts have.
func Used(s *state.Snapshot, pool subnet.NetworkPool) int {
	taken := append(Subnets(s), hosts(s)...)
	for n := range s.NodesOfSubnets(subnet.Numbers(pool.Base)) {
		if p, ok := subnet.Of(n.Subnet); ok {
			taken = append(taken, p)
		}
	}
	taken = slices.DeleteFunc(taken, func(p netip.Prefix) bool { return !p.Overlaps(pool.Base) })
	slices.SortFunc(taken, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	used, next := 0, 0 // next is the number of the first subnet that is not counted yet
	for _, p := range taken {
		if p.Bits() <= pool.Base.Bits() {
			return pool.Subnets()
		}
		number := func(a netip.Addr) int { return int(subnet.Offset(pool.Base.Addr(), a) >> (32 - pool.Size)) }
		first, last := max(next, number(p.Addr())), number(subnet.Last(p))
		used += max(0, last-first+1)
		next = max(next, last+1)
	}
	return used
}

// FreeSubnet6 returns an IPv6 subnet that overlaps none of those that are taken: the
// network's in the fleet's prefix, by its number, or the next one.
func FreeSubnet6(s *state.Snapshot, taken []netip.Prefix, number uint32, bits int) (netip.Prefix, bool) {
	if bits == 0 {
		bits = subnet6Bits
	}
	if bits < subnet6Bits {
		return netip.Prefix{}, false
	}
	taken = append(slices.Clip(taken), hosts(s)...)
	b := Prefix6(s.Cluster().GetId()).Addr().As16()
	for i := range uint32(1 << 16) {
		n := number + i
		b[6], b[7] = byte(n>>8), byte(n)
		p := netip.PrefixFrom(netip.AddrFrom16(b), bits)
		if _, overlaps := Overlap(s, taken, p); !overlaps {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// Prefix6 is a fleet's own part of IPv6: a unique local /48 (RFC 4193), derived from its id.
func Prefix6(cluster string) netip.Prefix {
	sum := sha256.Sum256([]byte("drover ula 1\n" + cluster))
	b := [16]byte{0xfd}
	copy(b[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}

// hosts returns the addresses of the fleet's hosts: a network that has them would cut the
// fleet off from itself.
func hosts(s *state.Snapshot) (out []netip.Prefix) {
	add := func(addr string) {
		if at, err := netip.ParseAddrPort(addr); err == nil {
			a := at.Addr().Unmap()
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for n := range s.Nodes() {
		add(n.Addr)
	}
	for c := range s.Controllers() {
		add(c.Addr)
	}
	return out
}

// Subnets returns the subnets of all networks, also of those that are being removed.
func Subnets(s *state.Snapshot) (out []netip.Prefix) {
	for n := range s.Networks() {
		for _, sub := range n.Subnets {
			if p, err := netip.ParsePrefix(sub.Prefix); err == nil {
				out = append(out, p)
			}
		}
	}
	return out
}

// Overlap returns one of the subnets, or a node's subnet, that p overlaps.
func Overlap(s *state.Snapshot, subnets []netip.Prefix, p netip.Prefix) (netip.Prefix, bool) {
	for _, other := range subnets {
		if other.Overlaps(p) {
			return other, true
		}
	}
	if !p.Addr().Is4() {
		return netip.Prefix{}, false
	}
	first, last := p.Addr(), subnet.Last(p)
	for n := range s.NodesOfSubnets(subnet.Number(netip.PrefixFrom(first, subnet.Bits)), subnet.Number(netip.PrefixFrom(last, subnet.Bits))) {
		node, _ := subnet.Of(n.Subnet)
		return node, true
	}
	return netip.Prefix{}, false
}

// Range returns what addresses of a subnet are chosen from.
func Range(s *dv1.Subnet) netip.Prefix {
	if p, err := netip.ParsePrefix(s.IpRange); err == nil {
		return p
	}
	p, _ := netip.ParsePrefix(s.Prefix)
	return p
}

// Gateway returns the address that docker would choose as the gateway: the first of the
// range that is not the subnet's own address.
func Gateway(s *dv1.Subnet) netip.Addr {
	p, _ := netip.ParsePrefix(s.Prefix)
	for a := Range(s).Addr(); p.Contains(a); a = a.Next() {
		if !reserved(s, p, a) {
			return a
		}
	}
	return netip.Addr{}
}

// reserved reports whether no endpoint may have an address of a subnet with the prefix p.
func reserved(s *dv1.Subnet, p netip.Prefix, a netip.Addr) bool {
	if hosts := a.BitLen() - p.Bits(); a == p.Addr() && (!a.Is4() || hosts > 1) || a.Is4() && hosts > 1 && a == subnet.Last(p) {
		return true // RFC 3021: a /31 has neither
	}
	text := a.String()
	if text == s.Gateway {
		return true
	}
	for _, aux := range s.Reserved {
		if aux == text {
			return true
		}
	}
	return false
}

// Usage returns how many addresses of a network's subnet are in use or reserved, and how
// many of its range are free to be chosen. Both end at the largest number.
func Usage(snap *state.Snapshot, n *dv1.Network, s *dv1.Subnet) (used, free uint64) {
	p, err := netip.ParsePrefix(s.Prefix)
	if err != nil {
		return 0, 0
	}
	kept := map[netip.Addr]bool{}
	for _, text := range append(slices.Collect(maps.Values(s.Reserved)), s.Gateway, p.Addr().String(), subnet.Last(p).String()) {
		if a, err := netip.ParseAddr(text); err == nil && reserved(s, p, a) {
			kept[a] = true
		}
	}
	r := Range(s)
	size := subnet.Offset(r.Addr(), subnet.Last(r))
	taken := uint64(snap.AddressesIn(n.Id, r.Addr(), subnet.Last(r)))
	for a := range kept {
		if r.Contains(a) {
			taken++
		}
	}
	if size != math.MaxUint64 {
		size++
	}
	return uint64(snap.AddressesIn(n.Id, p.Addr(), subnet.Last(p)) + len(kept)), size - min(size, taken)
}
