package scheduler

import (
	"slices"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Conflicts reports whether a held port keeps want from being bound.
func Conflicts(held []*dv1.Port, want *dv1.Port) bool {
	return slices.ContainsFunc(held, func(h *dv1.Port) bool { return Overlap(h, want) })
}

// Reserved returns the ports that drover itself uses on a node, for Conflicts.
func Reserved(n *dv1.Node) []*dv1.Port {
	var out []*dv1.Port
	for _, p := range n.GetReservedPorts() {
		out = append(out, &dv1.Port{Proto: "tcp", Host: p}, &dv1.Port{Proto: "udp", Host: p})
	}
	return out
}

// Overlap reports whether two host ports can't be bound at the same time. A wildcard
// address overlaps every other. Port 0 is chosen later and overlaps nothing.
func Overlap(a, b *dv1.Port) bool {
	if a.Host == 0 || a.Host != b.Host || a.Proto != b.Proto {
		return false
	}
	return Wildcard(a.Ip) || Wildcard(b.Ip) || a.Ip == b.Ip
}

// Wildcard reports whether a host address stands for all addresses.
func Wildcard(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }
