package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Conntrack entries outlive their destination, and UDP's never close: a sender that
// keeps its port keeps sending to the address that a container had before its restart,
// or to the socket that held the port while there was no container.

// forgetAddresses drops the connections of a sandbox that is removed.
func forgetAddresses(s *Sandbox) error {
	var ips []net.IP
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			ips = append(ips, a.Addr().AsSlice())
		}
	}
	mine := func(f *netlink.ConntrackFlow) bool {
		return slices.ContainsFunc(ips, func(ip net.IP) bool { return f.Forward.SrcIP.Equal(ip) || f.Reverse.SrcIP.Equal(ip) })
	}
	err := forget(unix.AF_INET, mine)
	if slices.ContainsFunc(ips, func(ip net.IP) bool { return ip.To4() == nil }) {
		err = errors.Join(err, forget(unix.AF_INET6, mine))
	}
	return err
}

// forgetDatagrams drops UDP connections to this host's published ports that lead
// elsewhere than they should now.
func forgetDatagrams(ports []destination) error {
	ports = slices.DeleteFunc(slices.Clone(ports), func(p destination) bool { return p.Proto != "udp" })
	if len(ports) == 0 {
		return nil
	}
	local, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("listing this host's addresses: %w", err)
	}
	return forget(unix.AF_INET, func(f *netlink.ConntrackFlow) bool {
		to, ok := netip.AddrFromSlice(f.Forward.DstIP)
		if !ok || f.Forward.Protocol != unix.IPPROTO_UDP || !isLocal(local, f.Forward.DstIP) {
			return false
		}
		return slices.ContainsFunc(ports, func(p destination) bool {
			mine := p.Host == f.Forward.DstPort && (p.IP == "" || p.IP == to.Unmap().String())
			return mine && !f.Reverse.SrcIP.Equal(p.to.AsSlice())
		})
	})
}

func isLocal(addrs []net.Addr, ip net.IP) bool {
	return ip.IsLoopback() || slices.ContainsFunc(addrs, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.Equal(ip)
	})
}

type flowFilter func(*netlink.ConntrackFlow) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flowFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool { return f(flow) }

func forget(family netlink.InetFamily, f flowFilter) error {
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f); err != nil {
		return fmt.Errorf("dropping connections from conntrack: %w", err)
	}
	return nil
}
