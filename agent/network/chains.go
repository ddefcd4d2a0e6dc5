package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// vethPrefix begins the names of the host's ends of containers' links.
const vethPrefix = "dvr"

// chains returns the rules for all families. They are the same on each host: what
// differs, and grows with containers, networks and nodes, is in sets.
func (t *table) chains() []chain {
	return append(t.inetChains(), t.bridgeChain())
}

func (t *table) inetChains() []chain {
	n := t.ours()
	return []chain{
		base(n, "guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw, t.guardRules()...),
		base(n, zonesChain, nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw+1),
		base(n, "doorways", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, *nftables.ChainPriorityMangle, t.doorwayRules()...),
		base(n, "prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, append(publishRules(), t.doorRules()...)...),
		base(n, "output", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest, append(publishRules(), t.ownDoorRules()...)...),
		base(n, "postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, append(t.doorSourceRules(), outwardRules()...)...),
		base(n, "routed", nftables.ChainTypeFilter, nftables.ChainHookPostrouting, *nftables.ChainPriorityMangle, unmarkRules()...),
		base(n, "redirects", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter, t.redirectRules()...),
		base(n, "forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter, t.forwardRules()...),
		base(n, "input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter, inputRules()...),
	}
}

// The rules of doors are in doorrules.go.

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// protocol is one of the two families, in the rules that both have.
type protocol struct {
	is       func() match
	from, to key
	within   string // set of bridges and addresses of their networks
	pool     string // set of all addresses of containers
	nodes    string // set of hosts
}

var families = []protocol{
	{is: ip4, from: from4, to: to4, within: "own", pool: "pool", nodes: "nodes"},
	{is: ip6, from: from6, to: to6, within: "own6", pool: "pool6", nodes: "nodes6"},
}

// guardRules drop what lies about where it is from, before anything else sees it.
func (t *table) guardRules() []match {
	notLo := isNot(inLink, ifname("lo"))
	out := []match{
		all(notLo, ip4(), ofNet(to4, loopback), drop()),
		all(notLo, ip4(), ofNet(from4, loopback), drop()),
		all(among("bridges", inLink), ip6(), ofNet(from6, netip.MustParsePrefix("fe80::/10")), accept()),
		all(among("bridges", inLink), ip6(), is(from6, make([]byte, 16)), accept()),
	}
	for _, f := range families {
		out = append(out,
			// What is in the tunnel is believed: only nodes send it, and their containers can't.
			all(toTunnel(), f.is(), local(), notAmong(f.nodes, f.from), drop()),
			all(among("bridges", inLink), toTunnel(), f.is(), notAmong(f.pool, f.to), drop()),
			all(among("bridges", inLink), f.is(), notAmong(f.within, inLink, f.from), drop()),
			// Others' containers come with a node's hardware address.
			all(f.is(), among(f.pool, f.from), among("stations", inLink, fromMAC), accept()),
			all(f.is(), among(f.pool, f.from), notLo, notAmong("bridges", inLink), drop()),
		)
	}
	return out
}

// publishRules lead to published ports.
func publishRules() []match {
	var out []match
	for _, p := range protocols {
		out = append(out,
			all(ip4(), local(), l4(protocolNumbers[p]), dnat("one_"+p, to4, toPort)),
			all(ip4(), local(), l4(protocolNumbers[p]), dnat("any_"+p, toPort)))
	}
	return out
}

// outwardRules put this host's address in the place of a container's where the other end
// could not answer that.
func outwardRules() []match {
	var out []match
	for _, f := range families {
		out = append(out,
			all(f.is(), among(f.pool, f.from), notAmong(f.pool, f.to), notAmong("bridges", outLink), masquerade()),
			// A container through a published port: the answer must come back here.
			all(f.is(), among("bridges", outLink), among(f.pool, f.from), dnatted(expr.CmpOpNeq), masquerade()))
	}
	return append(out, all(ip4(), among("bridges", outLink), ofNet(from4, loopback), masquerade()))
}

// forwardRules let packets pass inside one network, to published ports, and out.
func (t *table) forwardRules() []match {
	tunnel := ifname(t.tunnel)
	out := []match{
		all(is(outLink, tunnel), clampMSS()),
		all(answers(), accept()),
	}
	for _, f := range families {
		out = append(out,
			all(f.is(), among(f.within, inLink, f.to), accept()),
			all(f.is(), among(f.within, outLink, f.from), accept()))
	}
	out = append(out,
		all(among("internal", outLink), dnatted(expr.CmpOpNeq), drop()),
		all(among("bridges", outLink), ip4(), among("gateways", from4), notAmong("bridges", inLink), accept()), // a node itself
		all(among("internal", inLink), drop()),
		all(among("internal", outLink), drop()),
		all(ctMark(t.mark4()), dnatted(expr.CmpOpNeq), accept()),
		all(among("bridges", outLink), dnatted(expr.CmpOpNeq), accept()),
		all(among("bridges", outLink), drop()),
	)
	for _, f := range families { // to and from networks that are not on this host
		out = append(out,
			all(f.is(), among(f.pool, f.to), among("bridges", inLink), drop()),
			all(f.is(), among(f.pool, f.from), notAmong("bridges", inLink), drop()))
	}
	return append(out, all(is(outLink, tunnel), notAmong("bridges", inLink), drop()), all(is(inLink, tunnel), drop()))
}

// inputRules keep bridges' addresses to their networks.
func inputRules() []match {
	notLo := isNot(inLink, ifname("lo"))
	out := []match{all(answers(), accept())}
	for _, f := range families {
		out = append(out, all(f.is(), among(f.within, inLink, f.to), accept()))
	}
	out = append(out,
		all(among("bridges", inLink), ip6(), l4(unix.IPPROTO_ICMPV6), accept()),
		all(among("internal", inLink), drop()))
	for _, f := range families {
		out = append(out,
			all(f.is(), among(f.pool, f.to), notLo, among("bridges", inLink), drop()),
			all(f.is(), among(f.pool, f.to), notLo, among(f.pool, f.from), accept()))
	}
	return append(out,
		// Nodes ask by which way they are reached.
		all(ip4(), among("pool", to4), among("nodes", from4), l4(unix.IPPROTO_ICMP), accept()),
		all(ip4(), among("pool", to4), notLo, drop()),
		all(ip6(), among("pool6", to6), notLo, drop()))
}

// bridgeChain lets containers speak as themselves only, and of nothing but IP and ARP. A
// link is among those from before it is made until it is gone.
func (t *table) bridgeChain() chain {
	ours := among("links", inLink)
	arps, v4, v6 := etherType(unix.ETH_P_ARP), etherType(unix.ETH_P_IP), etherType(unix.ETH_P_IPV6)
	const (
		routerAdvertisement, neighbourSolicitation, neighbourAdvertisement, redirect = 134, 135, 136, 137
		listenerReport                                                               = 143
	)
	fromNobody := is(from6, make([]byte, 16)) // before a link has an address
	return base(t.bridges(), "ports", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300,
		all(ours, v4, among("ports", inLink, fromMAC, from4), accept()),
		all(ours, arps, among("ports", inLink, fromMAC, arpAddr), among("ports", inLink, arpMAC, arpAddr), accept()),
		all(ours, v6, icmp6(routerAdvertisement), drop()),
		all(ours, v6, icmp6(redirect), drop()),
		all(ours, v6, icmp6(neighbourAdvertisement), notAmong("ports6", inLink, fromMAC, ndTarget), drop()),
		all(ours, v6, among("ports6", inLink, fromMAC, from6), accept()),
		all(ours, v6, fromNobody, icmp6(neighbourSolicitation), accept()),
		all(ours, v6, fromNobody, icmp6(listenerReport), accept()),
		all(ours, drop()),
	)
}
