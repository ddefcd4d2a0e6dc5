package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/drover/drover/agent/network/routes"
)

// plan is what this host should have for a topology: links, routes and neighbours, and
// what the firewall compares packets with.
type plan struct {
	routes.Picture
	filter filter
	left   map[string]error // networks that are not carried, by id, and why
}

// filter is what packets are compared with.
type filter struct {
	bridges  []string
	internal []string
	within   []within     // what a bridge's network consists of
	tunnel   uint16       // the tunnel's port, if there is one
	nodes    []netip.Addr // hosts of the fleet
	gateways []netip.Addr // by which nodes themselves speak to containers
	stations []station    // with which hardware addresses nodes' packets arrive
	doors    []entry      // ports that lead to other nodes
	doorways []doorway    // by which other nodes' doors send here
}

// has reports whether a link is planned.
func (p plan) has(link string) bool {
	_, ok := p.Links[link]
	return ok
}

// within says that addresses belong to a bridge's network.
type within struct {
	bridge string
	prefix netip.Prefix
}

// station is a node's hardware address on a link.
type station struct {
	dev string
	mac routes.MAC
}

// way is how another node is reached: through a link that both share, if it has one, else
// through the tunnel.
type way struct {
	dev string
	mac routes.MAC // with which the node's packets arrive by that link
	// proven means that packets are sent that way; before, they are only taken from there.
	proven bool
}

// host is what a plan depends on of the host itself.
type host struct {
	addr      netip.Addr     // this node's, if it is one of the host's own
	nets      []netip.Prefix // of the host's own links
	tunnelMTU int            // what fits through the tunnel to all nodes
}

// planFor computes what a topology needs.
func planFor(o Options, t Topology, ways map[string]way, h host) plan {
	p := plan{Picture: routes.NewPicture(), left: map[string]error{}}
	gateway := o.Subnet.Addr().Next()
	p.Links[o.Bridge] = routes.Link{MAC: macOf(gateway), Addrs: []netip.Prefix{netip.PrefixFrom(gateway, o.Subnet.Bits())}, Sysctls: sysctlsOf(o.Bridge, false, false)}
	p.filter.bridges = []string{o.Bridge}
	p.filter.within = []within{{o.Bridge, o.Subnet}}
	hops := map[string]hop{}
	own := slices.Clone(h.nets)
	for _, peer := range t.Peers {
		if peer.ID == t.Self || !peer.Addr.IsValid() || peer.Subnet.Overlaps(o.Subnet) {
			continue
		}
		hops[peer.ID] = p.reach(o, peer, ways[peer.ID], h.addr)
		if overlapped(h.nets, peer.Subnet).IsValid() {
			continue // its containers are reached by other networks
		}
		p.Routes[peer.Subnet] = hops[peer.ID].v4
		p.filter.within = append(p.filter.within, within{o.Bridge, peer.Subnet})
	}
	for _, peer := range t.Peers {
		if peer.Addr.IsValid() {
			a := peer.Addr.Unmap()
			p.filter.nodes = append(p.filter.nodes, a)
			own = append(own, netip.PrefixFrom(a, a.BitLen()))
		}
		own = append(own, peer.Subnet)
		p.filter.gateways = append(p.filter.gateways, peer.Subnet.Addr().Next())
	}
	own = append(own, o.Subnet)
	with6 := false
	for _, f := range t.Networks {
		if err := f.clash(own); err != nil {
			p.left[f.ID] = err
			continue
		}
		for _, s := range f.Subnets {
			own = append(own, s.Prefix)
		}
		with6 = with6 || f.has6()
		p.network(o, t.Self, f, hops)
	}
	if len(hops) > 0 {
		p.tunnel(o, hops, with6, h.tunnelMTU)
		p.doors(t, hops, ways, o.Tunnel)
	}
	return p
}

// clash reports that a network has addresses of others: of hosts, which must go on
// reaching each other and whom they reach today, or of containers.
func (f Fleet) clash(others []netip.Prefix) error {
	for _, s := range f.Subnets {
		if o := overlapped(others, s.Prefix); o.IsValid() {
			return fmt.Errorf("this node can't carry %v: it has addresses of %v, which is in use here", s.Prefix, o)
		}
	}
	return nil
}

// overlapped returns which prefix has addresses of p, the zero Prefix if none has.
func overlapped(all []netip.Prefix, p netip.Prefix) netip.Prefix {
	for _, o := range all {
		if o.Overlaps(p) {
			return o
		}
	}
	return netip.Prefix{}
}

// tunnel plans this node's end of the tunnel, and how others' ends are known.
func (p *plan) tunnel(o Options, hops map[string]hop, with6 bool, mtu int) {
	gateway := o.Subnet.Addr().Next()
	off := "1"
	if with6 {
		off = "0"
	}
	p.filter.tunnel = o.TunnelPort
	addrs := []netip.Prefix{netip.PrefixFrom(gateway, 32), netip.PrefixFrom(throughTunnel(gateway), 32)}
	p.Links[o.Tunnel] = routes.Link{MAC: tunnelMAC(gateway), MTU: mtu, Port: int(o.TunnelPort), Addrs: addrs, Sysctls: map[string]string{
		// Answers to what the host's own 127.0.0.1 sent through a door.
		"ipv4/conf/" + o.Tunnel + "/route_localnet": "1",
		// A node that can be reached both ways may send by either.
		"ipv4/conf/" + o.Tunnel + "/rp_filter":        "2",
		"ipv6/conf/" + o.Tunnel + "/disable_ipv6":     off,
		"ipv6/conf/" + o.Tunnel + "/accept_ra":        "0",
		"ipv6/conf/" + o.Tunnel + "/accept_redirects": "0",
	}}
	for _, h := range hops {
		p.Neighbours[routes.Place{Dev: o.Tunnel, Addr: h.end}] = tunnelMAC(h.end)
		if with6 { // a tunnel may be too small for it
			p.Neighbours[routes.Place{Dev: o.Tunnel, Addr: h.v6.Via}] = tunnelMAC(h.end)
		}
	}
}

// hop is the next one on the way to a node, whose end of the tunnel is at end.
type hop struct {
	v4, v6 routes.Route
	tunnel routes.Route // through it in any case
	end    netip.Addr
}

// reach plans the way to a node.
func (p *plan) reach(o Options, peer Peer, w way, from netip.Addr) hop {
	mine, theirs := o.Subnet.Addr().Next(), peer.Subnet.Addr().Next()
	to := peer.Addr.Unmap()
	if from.Is4() != to.Is4() {
		from = netip.Addr{}
	}
	p.filter.stations = append(p.filter.stations, station{o.Tunnel, tunnelMAC(theirs)})
	h := hop{
		end: theirs,
		v4:  routes.Route{Dev: o.Tunnel, Via: theirs, Src: mine, To: to, From: from},
		v6:  routes.Route{Dev: o.Tunnel, Via: tunnelAddr(theirs), To: to, From: from},
	}
	h.tunnel = h.v4
	if w.dev != "" {
		p.filter.stations = append(p.filter.stations, station{w.dev, w.mac})
	}
	if w.proven {
		h.v4 = routes.Route{Dev: w.dev, Via: to, Src: mine}
	}
	return h
}

// network plans this node's part of a network.
func (p *plan) network(o Options, self string, f Fleet, hops map[string]hop) {
	bridge := bridgeOf(o, f.Number)
	l := routes.Link{MAC: fleetMAC(f.Number), Sysctls: sysctlsOf(bridge, true, f.has6())}
	p.filter.bridges = append(p.filter.bridges, bridge)
	if f.Internal {
		p.filter.internal = append(p.filter.internal, bridge)
	}
	for _, s := range f.Subnets {
		l.Addrs = append(l.Addrs, netip.PrefixFrom(s.Gateway, s.Gateway.BitLen()))
		p.filter.within = append(p.filter.within, within{bridge, s.Prefix})
		p.Routes[s.Prefix] = routes.Route{Unreachable: true} // but for what follows
	}
	if f.has6() {
		l.Addrs = append(l.Addrs, netip.PrefixFrom(gateway6, 64))
	}
	p.Links[bridge] = l
	for _, r := range f.Routes {
		s, _ := f.subnet(r.Prefix)
		h, known := hops[r.Node]
		switch {
		case r.Node == self && r.Prefix.Addr().Is4():
			p.Routes[r.Prefix] = routes.Route{Dev: bridge, Src: s.Gateway}
		case r.Node == self:
			p.Routes[r.Prefix] = routes.Route{Dev: bridge}
		case known && r.Prefix.Addr().Is4():
			p.Routes[r.Prefix] = h.v4
		case known:
			p.Routes[r.Prefix] = h.v6
		}
	}
}

// sysctlsOf returns those of a bridge.
func sysctlsOf(bridge string, proxy, with6 bool) map[string]string {
	v4, v6 := "ipv4/conf/"+bridge+"/", "ipv6/conf/"+bridge+"/"
	out := map[string]string{
		// 127.0.0.1 on the host reaches published ports through a bridge only.
		v4 + "route_localnet": "1",
		// A change of the hardware address is announced to running containers.
		v4 + "arp_notify": "1",
		// With the kernel's defaults, a router advertisement from a container makes it the
		// host's default router (as in CVE-2020-13401). accept_ra and autoconf are for
		// administrators who enable IPv6 again.
		v6 + "accept_ra":        "0",
		v6 + "autoconf":         "0",
		v6 + "accept_redirects": "0",
		v6 + "disable_ipv6":     "1",
	}
	if proxy {
		// Containers take all of a network for their link: the bridge answers for those on
		// other nodes, at once.
		out[v4+"proxy_arp"], out["ipv4/neigh/"+bridge+"/proxy_delay"], out[v4+"send_redirects"] = "1", "0", "0"
	}
	if with6 {
		out[v6+"disable_ipv6"] = "0"
	}
	return out
}

// bridgeOf names a network's bridge.
func bridgeOf(o Options, number uint32) string { return fmt.Sprint(o.Prefix, number) }

func (f Fleet) has6() bool {
	return slices.ContainsFunc(f.Subnets, func(s Subnet) bool { return s.Prefix.Addr().Is6() })
}

// gateway6 is what containers route IPv6 through, on each bridge.
var gateway6 = netip.MustParseAddr("fe80::1")

// Hardware addresses are the same on every node: a bridge's, so that a container that
// goes to another node finds its gateway; a tunnel's, so that others know it. docker's
// scheme is 02:42 and the address.
func macOf(a netip.Addr) routes.MAC { return macFrom(0x42, a.As4()) }

func tunnelMAC(gateway netip.Addr) routes.MAC { return macFrom(0x44, gateway.As4()) }

func fleetMAC(number uint32) routes.MAC {
	return macFrom(0x43, [4]byte{byte(number >> 24), byte(number >> 16), byte(number >> 8), byte(number)})
}

func macFrom(scheme byte, b [4]byte) routes.MAC {
	return routes.MAC{0x02, scheme, b[0], b[1], b[2], b[3]}
}

// tunnelAddr names a node's end of the tunnel in IPv6 routes.
func tunnelAddr(gateway netip.Addr) netip.Addr {
	b := gateway.As4()
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 11: 0x44, 12: b[0], 13: b[1], 14: b[2], 15: b[3]})
}

// span is a range of addresses, both ends included.
type span struct{ first, last netip.Addr }

// spans returns what prefixes cover, in order, as few ranges as possible.
func spans(prefixes []netip.Prefix) []span {
	all := make([]span, 0, len(prefixes))
	for _, p := range prefixes {
		all = append(all, span{p.Masked().Addr(), lastOf(p)})
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Or(a.first.Compare(b.first), a.last.Compare(b.last)) })
	out := all[:0]
	for _, s := range all {
		if n := len(out); n > 0 && (s.first.Compare(out[n-1].last) <= 0 || s.first == out[n-1].last.Next()) {
			if s.last.Compare(out[n-1].last) > 0 {
				out[n-1].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
