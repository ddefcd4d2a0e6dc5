// Package subnet computes with addresses, and allocates nodes' from pools of IPv4
// addresses: each node owns a /24.
package subnet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sort"
)

// Bits is the prefix length of a node's subnet.
const Bits = 24

// minPool limits the size of a pool: 65,536 nodes.
const minPool = 8

// ParsePool parses a pool: an IPv4 network with at least one node's subnet.
func ParsePool(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, fmt.Errorf("address pool %q is no network, such as 10.208.0.0/12", s)
	case !p.Addr().Is4() || p.Bits() < minPool || p.Bits() > Bits:
		return p, fmt.Errorf("address pool %s is no IPv4 network from /%d to /%d", s, minPool, Bits)
	case p != p.Masked():
		return p, fmt.Errorf("address pool %s has bits behind its /%d: %s is the network", s, p.Bits(), p.Masked())
	case !p.Addr().IsGlobalUnicast():
		return p, fmt.Errorf("address pool %s is not for hosts", s)
	}
	return p, nil
}

// Nodes returns how many nodes a pool has room for.
func Nodes(pool netip.Prefix) int { return 1 << (Bits - pool.Bits()) }

// Of parses a node's subnet.
func Of(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	return p, err == nil && p.Addr().Is4() && p.Bits() == Bits && p == p.Masked()
}

// Number returns the number of a subnet; numbered is its inverse.
func Number(p netip.Prefix) uint32 { a := p.Addr().As4(); return binary.BigEndian.Uint32(a[:]) >> 8 }
func numbered(n uint32) netip.Prefix {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], n<<8)
	return netip.PrefixFrom(netip.AddrFrom4(a), Bits)
}

// Numbers returns the numbers of the first and the last subnet that an IPv4 network
// overlaps.
func Numbers(p netip.Prefix) (first, last uint32) {
	end := Last(p).As4()
	return Number(p), binary.BigEndian.Uint32(end[:]) >> 8
}

// Free returns a pool's lowest free subnet, and false if there is none. taken returns
// the i-th of n allocated numbers, in ascending order; it is called about log n times.
func Free(pool netip.Prefix, n int, taken func(i int) uint32) (netip.Prefix, bool) {
	first, last := Numbers(pool)
	return FreeFrom(first, last, n, taken)
}

// FreeFrom is Free for the numbers from first to last.
func FreeFrom(first, last uint32, n int, taken func(i int) uint32) (netip.Prefix, bool) {
	from := sort.Search(n, func(i int) bool { return taken(i) >= first })
	// Up to the first gap, the i-th allocated number is the i-th of all.
	size := int(last-first) + 1
	i := sort.Search(min(n-from, size), func(i int) bool { return taken(from+i)-first > uint32(i) })
	return numbered(first + uint32(i)), i < size
}

// Taken counts a pool's subnets among those that are allocated.
func Taken(pool netip.Prefix, n int, taken func(i int) uint32) int {
	base := Number(pool)
	from := sort.Search(n, func(i int) bool { return taken(i) >= base })
	return sort.Search(n-from, func(i int) bool { return taken(from+i)-base >= uint32(Nodes(pool)) })
}
