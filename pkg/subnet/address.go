package subnet

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
)

// Offset returns how far an address lies above another one of its family: 0 if it
// doesn't, and the largest number if it is further than that.
func Offset(base, a netip.Addr) uint64 {
	if a.Compare(base) <= 0 {
		return 0
	}
	high, low := halves(a)
	baseHigh, baseLow := halves(base)
	low, borrow := bits.Sub64(low, baseLow, 0)
	if high, _ = bits.Sub64(high, baseHigh, borrow); high > 0 {
		return math.MaxUint64
	}
	return low
}

// Add returns the address that lies n above base. It must exist.
func Add(base netip.Addr, n uint64) netip.Addr {
	high, low := halves(base)
	low, carry := bits.Add64(low, n, 0)
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], high+carry)
	binary.BigEndian.PutUint64(b[8:], low)
	if base.Is4() {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}

// Last returns a network's last address.
func Last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// halves returns an address as a number. IPv4 addresses are compared with each other only,
// so that the prefix that maps them makes no difference.
func halves(a netip.Addr) (high, low uint64) {
	b := a.As16()
	if a.Is4() {
		b[10], b[11] = 0, 0
	}
	return binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
}
