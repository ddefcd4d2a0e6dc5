package network

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/network/routes"
)

// links is the host's links, addresses and routes. The kernel does not report all that
// goes with a link, so now and then they are looked at without a report.
func (f *fabric) links() watched {
	return watched{
		what: "this host's network", risk: "containers may be unreachable", protocol: unix.NETLINK_ROUTE,
		groups: []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_NEIGH},
		mend:   f.repair, concerns: f.concerns, anyway: time.Minute,
	}
}

// concerns reports whether a message is about something that the fabric made, or that its
// routes go through, and that is not as it should be.
func (f *fabric) concerns(m netlink.Message) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return f.concernsLink(m)
	case unix.RTM_DELADDR, unix.RTM_NEWADDR:
		return true // containers' addresses are not here
	case unix.RTM_DELRULE:
		return routes.IsReturn(m)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if routes.IsReturn(m) {
			return m.Header.Type == unix.RTM_DELROUTE
		}
		dst, r, ok, err := routes.DecodeRoute(m.Data)
		want, wanted := f.want.Routes[dst]
		if err != nil || !ok {
			return err != nil
		}
		if m.Header.Type == unix.RTM_DELROUTE {
			return wanted
		}
		r.Dev = want.Dev // the message has its number
		return !wanted || r != want
	case unix.RTM_DELNEIGH:
		a, ok := neighbour(m.Data)
		_, wanted := f.want.Neighbours[routes.Place{Dev: f.o.Tunnel, Addr: a}]
		return ok && wanted
	}
	return false
}

func (f *fabric) concernsLink(m netlink.Message) bool {
	if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] == unix.AF_BRIDGE {
		return false // about a bridge's port
	}
	up := binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_UP != 0
	d, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return true
	}
	var name string
	var mac routes.MAC
	var mtu int
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_IFNAME:
			name = d.String()
		case unix.IFLA_ADDRESS:
			copy(mac[:], d.Bytes())
		case unix.IFLA_MTU:
			mtu = int(d.Uint32())
		}
	}
	if strings.HasPrefix(name, vethPrefix) {
		return false // a container's
	}
	want, ours := f.want.Links[name]
	if !ours {
		for _, w := range f.ways {
			if w.dev == name {
				return true // with it, its routes come and go unreported
			}
		}
		return routes.Numbered(name, f.o.Prefix) // left of a network that was here
	}
	return m.Header.Type == unix.RTM_DELLINK || !up || mac != want.MAC || want.MTU != 0 && want.MTU != mtu
}

func neighbour(b []byte) (a netip.Addr, ok bool) {
	if len(b) < unix.SizeofNdMsg {
		return a, false
	}
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofNdMsg:])
	if err != nil {
		return a, false
	}
	for d.Next() {
		if d.Type() == unix.NDA_DST {
			a, ok = netip.AddrFromSlice(d.Bytes())
		}
	}
	return a, ok
}
