package routes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The attributes of LWTUNNEL_ENCAP_IP and LWTUNNEL_ENCAP_IP6, linux/lwtunnel.h.
const (
	encapIP, encapIP6            = 2, 4
	tunID, tunDst, tunSrc, tunTL = 1, 2, 3, 4
	hops                         = 64
	// metric is that of all routes, so that they are never put in the place of one of the
	// host's: its own networks have none, and win.
	metric = 77
)

// route encodes a route for RTM_NEWROUTE and RTM_DELROUTE.
func (r Route) encode(dst netip.Prefix, index map[string]int) ([]byte, error) {
	family := byte(unix.AF_INET)
	if dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	kind, scope, flags := byte(unix.RTN_UNICAST), byte(unix.RT_SCOPE_UNIVERSE), uint32(0)
	switch {
	case r.Unreachable:
		kind = unix.RTN_UNREACHABLE
	case r.Via.IsValid():
		flags = unix.RTNH_F_ONLINK
	default:
		scope = unix.RT_SCOPE_LINK
	}
	b := []byte{family, byte(dst.Bits()), 0, 0, unix.RT_TABLE_MAIN, Protocol, scope, kind}
	b = binary.NativeEndian.AppendUint32(b, flags)
	e := netlink.NewAttributeEncoder()
	e.Bytes(unix.RTA_DST, dst.Addr().AsSlice())
	e.Uint32(unix.RTA_PRIORITY, metric)
	if r.Unreachable {
		return attached(b, e)
	}
	i, ok := index[r.Dev]
	if !ok {
		return nil, fmt.Errorf("there is no link %s", r.Dev)
	}
	e.Uint32(unix.RTA_OIF, uint32(i))
	if r.Via.IsValid() {
		e.Bytes(unix.RTA_GATEWAY, r.Via.AsSlice())
	}
	if r.Src.IsValid() {
		e.Bytes(unix.RTA_PREFSRC, r.Src.AsSlice())
	}
	if r.To.IsValid() {
		typ := uint16(encapIP)
		if r.To.Is6() {
			typ = encapIP6
		}
		e.Nested(unix.RTA_ENCAP, func(e *netlink.AttributeEncoder) error {
			e.Bytes(tunID, binary.BigEndian.AppendUint64(nil, VNI))
			e.Bytes(tunDst, r.To.AsSlice())
			if r.From.IsValid() {
				e.Bytes(tunSrc, r.From.AsSlice())
			}
			e.Uint8(tunTL, hops)
			return nil
		})
		e.Uint16(unix.RTA_ENCAP_TYPE, typ)
	}
	return attached(b, e)
}

func attached(b []byte, e *netlink.AttributeEncoder) ([]byte, error) {
	a, err := e.Encode()
	return append(b, a...), err
}

// decodeRoute decodes a route of the main table. ok is false for what is not drover's.
func decodeRoute(b []byte, name map[int]string) (dst netip.Prefix, r Route, ok bool, err error) {
	table, dst, r, ok, err := decodeAny(b, name)
	return dst, r, ok && table == unix.RT_TABLE_MAIN, err
}

// decodeAny decodes a route of any table. ok is false for what is not drover's.
func decodeAny(b []byte, name map[int]string) (table uint32, dst netip.Prefix, r Route, ok bool, err error) {
	if len(b) < unix.SizeofRtMsg {
		return 0, dst, r, false, errors.New("a route's message is short")
	}
	if b[5] != Protocol {
		return 0, dst, r, false, nil
	}
	table = uint32(b[4])
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofRtMsg:])
	if err != nil {
		return 0, dst, r, false, err
	}
	r.Unreachable = b[7] == unix.RTN_UNREACHABLE
	addr := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	for d.Next() {
		switch d.Type() {
		case unix.RTA_DST:
			addr, _ = netip.AddrFromSlice(d.Bytes())
		case unix.RTA_TABLE:
			table = d.Uint32()
		case unix.RTA_OIF:
			r.Dev = name[int(d.Uint32())]
		case unix.RTA_GATEWAY:
			r.Via, _ = netip.AddrFromSlice(d.Bytes())
		case unix.RTA_PREFSRC:
			r.Src, _ = netip.AddrFromSlice(d.Bytes())
		case unix.RTA_ENCAP:
			d.Nested(r.decodeTunnel)
		}
	}
	if r.Unreachable {
		r = Route{Unreachable: true} // IPv6 names lo
	}
	return table, netip.PrefixFrom(addr, int(b[1])), r, addr.IsValid(), d.Err()
}

func (r *Route) decodeTunnel(d *netlink.AttributeDecoder) error {
	for d.Next() {
		switch d.Type() {
		case tunDst:
			r.To, _ = netip.AddrFromSlice(d.Bytes())
		case tunSrc:
			if r.From, _ = netip.AddrFromSlice(d.Bytes()); r.From.IsUnspecified() {
				r.From = netip.Addr{}
			}
		}
	}
	return nil
}

func (p Place) encode(m MAC, index map[string]int) ([]byte, error) {
	i, ok := index[p.Dev]
	if !ok {
		return nil, fmt.Errorf("there is no link %s", p.Dev)
	}
	b := []byte{unix.AF_INET, 0, 0, 0}
	if p.Addr.Is6() {
		b[0] = unix.AF_INET6
	}
	b = binary.NativeEndian.AppendUint32(b, uint32(i))
	b = binary.NativeEndian.AppendUint16(b, unix.NUD_PERMANENT)
	b = append(b, 0, 0)
	e := netlink.NewAttributeEncoder()
	e.Bytes(unix.NDA_DST, p.Addr.AsSlice())
	e.Bytes(unix.NDA_LLADDR, m[:])
	return attached(b, e)
}

// decodeNeighbour decodes a permanent neighbour; ok is false for others.
func decodeNeighbour(b []byte, name map[int]string) (p Place, m MAC, ok bool, err error) {
	if len(b) < unix.SizeofNdMsg {
		return p, m, false, errors.New("a neighbour's message is short")
	}
	if binary.NativeEndian.Uint16(b[8:])&unix.NUD_PERMANENT == 0 {
		return p, m, false, nil
	}
	p.Dev = name[int(binary.NativeEndian.Uint32(b[4:]))]
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofNdMsg:])
	if err != nil {
		return p, m, false, err
	}
	for d.Next() {
		switch d.Type() {
		case unix.NDA_DST:
			p.Addr, _ = netip.AddrFromSlice(d.Bytes())
		case unix.NDA_LLADDR:
			ok = copy(m[:], d.Bytes()) == len(m)
		}
	}
	return p, m, ok && p.Addr.IsValid(), d.Err()
}

// DecodeRoute decodes what the kernel reports of a route, without the name of its link.
// ok is false for those that are not drover's.
func DecodeRoute(b []byte) (dst netip.Prefix, r Route, ok bool, err error) {
	return decodeRoute(b, nil)
}
