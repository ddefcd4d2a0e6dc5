// Package routes brings the links, routes and neighbours of a network namespace to what
// is desired of them. What that is, and when to look again, is up to the caller.
//
// All functions act on the calling thread's network namespace.
package routes

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Protocol marks drover's routes in the kernel (rtm_protocol), as routing daemons do with
// theirs: others are never looked at, let alone changed.
const Protocol = 77

// VNI is the network identifier in the tunnel's packets. The inner MAC addresses say
// which nodes they are of.
const VNI = 1

// MAC is a hardware address.
type MAC [6]byte

// Picture is what a namespace should have, or has.
type Picture struct {
	Links      map[string]Link
	Routes     map[netip.Prefix]Route
	Neighbours map[Place]MAC // permanent ones
	// Returns are the routes of packets with a mark.
	Returns map[Mark]Route
	Gated   bool // whether packets without a mark jump over the rules for those with one
	// Ports are the bridges of containers' links, by link, with hairpin mode. Links that are
	// not there are not missed.
	Ports map[string]string
}

// Link is a bridge, or with a port a VXLAN device whose routes name the other end.
type Link struct {
	MAC     MAC
	MTU     int // 0: as it is
	Port    int
	Addrs   []netip.Prefix // further ones are left alone
	Sysctls map[string]string
}

// Route is one in the main table.
type Route struct {
	Unreachable bool // no other field counts
	Dev         string
	Via         netip.Addr // the zero Addr: on the link
	Src         netip.Addr
	// To is the other end of the tunnel, From this one (the zero Addr: any).
	To, From netip.Addr
}

// Place is an address on a link.
type Place struct {
	Dev  string
	Addr netip.Addr
}

// NewPicture returns one with nothing in it.
func NewPicture() Picture {
	return Picture{Links: map[string]Link{}, Routes: map[netip.Prefix]Route{}, Neighbours: map[Place]MAC{}, Ports: map[string]string{}, Returns: map[Mark]Route{}}
}

// Changes is what makes one picture out of another.
type Changes struct {
	AddLinks       []string // or configure
	DelLinks       []string
	Plug           []string // links into their bridges
	Set, Del       []netip.Prefix
	Learn, Unlearn []Place
	SetReturns     []Mark
	DelReturns     []Mark
	Gate, Ungate   bool

	want Picture
}

// None reports whether there is nothing to do.
func (c Changes) None() bool {
	return len(c.AddLinks)+len(c.DelLinks)+len(c.Plug)+len(c.Set)+len(c.Del)+len(c.Learn)+len(c.Unlearn)+len(c.SetReturns)+len(c.DelReturns) == 0 && !c.Gate && !c.Ungate
}

// Additions returns the changes without removals.
func (c Changes) Additions() Changes {
	c.DelLinks, c.Del, c.Unlearn, c.DelReturns, c.Ungate = nil, nil, nil, nil, false
	return c
}

// Compare returns what makes want out of have. Routes and neighbours on links that are
// made anew are made too, and ports are connected to them.
func Compare(have, want Picture) Changes {
	c := Changes{want: want}
	for name, l := range want.Links {
		if h, ok := have.Links[name]; !ok || !l.equal(h) {
			c.AddLinks = append(c.AddLinks, name)
		}
	}
	for name := range have.Links {
		if _, ok := want.Links[name]; !ok {
			c.DelLinks = append(c.DelLinks, name)
		}
	}
	for link, bridge := range want.Ports {
		on, there := have.Ports[link]
		if _, ok := have.Links[bridge]; there && (!ok || on != bridge) {
			c.Plug = append(c.Plug, link)
		}
	}
	c.Set, c.Del = compare(have.Routes, want.Routes)
	c.Learn, c.Unlearn = compare(have.Neighbours, want.Neighbours)
	c.SetReturns, c.DelReturns = compare(have.Returns, want.Returns)
	c.Gate, c.Ungate = want.Gated && !have.Gated, have.Gated && !want.Gated
	slices.Sort(c.SetReturns)
	slices.Sort(c.DelReturns)
	slices.Sort(c.AddLinks)
	slices.Sort(c.DelLinks)
	slices.Sort(c.Plug)
	byPrefix := func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) }
	byPlace := func(a, b Place) int { return cmp.Or(cmp.Compare(a.Dev, b.Dev), a.Addr.Compare(b.Addr)) }
	slices.SortFunc(c.Set, byPrefix)
	slices.SortFunc(c.Del, byPrefix)
	slices.SortFunc(c.Learn, byPlace)
	slices.SortFunc(c.Unlearn, byPlace)
	return c
}

func compare[K, V comparable](have, want map[K]V) (set, del []K) {
	for k, v := range want {
		if h, ok := have[k]; !ok || h != v {
			set = append(set, k)
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			del = append(del, k)
		}
	}
	return set, del
}

func (l Link) equal(o Link) bool {
	return l.MAC == o.MAC && (l.MTU == 0 || l.MTU == o.MTU) && l.Port == o.Port && maps.Equal(l.Sysctls, o.Sysctls) &&
		!slices.ContainsFunc(l.Addrs, func(a netip.Prefix) bool { return !slices.Contains(o.Addrs, a) })
}

// Unlike says what of a link is not as wanted.
func (l Link) Unlike(want Link) string {
	var out []string
	if l.Port != want.Port {
		out = append(out, "it is down, or of another kind")
	}
	if l.MAC != want.MAC {
		out = append(out, fmt.Sprintf("its hardware address is %v, not %v", l.MAC, want.MAC))
	}
	if want.MTU != 0 && l.MTU != want.MTU {
		out = append(out, fmt.Sprintf("its MTU is %d, not %d", l.MTU, want.MTU))
	}
	for _, a := range want.Addrs {
		if !slices.Contains(l.Addrs, a) {
			out = append(out, fmt.Sprintf("it lacks the address %v", a))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want.Sysctls)) {
		if l.Sysctls[key] != want.Sysctls[key] {
			out = append(out, fmt.Sprintf("net/%s is %s, not %s", key, l.Sysctls[key], want.Sysctls[key]))
		}
	}
	return strings.Join(out, ", ")
}

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

func (r Route) String() string {
	switch {
	case r.Unreachable:
		return "nothing"
	case r.To.IsValid():
		return fmt.Sprintf("%s to %v", r.Dev, r.To)
	case r.Via.IsValid():
		return fmt.Sprintf("%s via %v", r.Dev, r.Via)
	}
	return r.Dev
}
