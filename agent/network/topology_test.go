package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/drover/drover/agent/network/routes"
)

// three is a fleet of nodes a, b and c, as a knows it: red spans all of them.
func three() Topology {
	return Topology{
		Self: "a",
		Peers: []Peer{
			{ID: "a", Addr: netip.MustParseAddr("10.10.1.1"), Subnet: netip.MustParsePrefix("10.210.1.0/24")},
			{ID: "b", Addr: netip.MustParseAddr("10.10.1.2"), Subnet: netip.MustParsePrefix("10.210.2.0/24")},
			{ID: "c", Addr: netip.MustParseAddr("10.10.2.3"), Subnet: netip.MustParsePrefix("10.210.3.0/24")},
		},
		Networks: []Fleet{{
			ID: "red", Number: 1, Subnets: []Subnet{subnet("10.220.0.0/20", "10.220.0.1"), subnet("fd20::/64", "fd20::1")},
			Routes: []Route{
				{netip.MustParsePrefix("10.220.0.0/26"), "a"}, {netip.MustParsePrefix("10.220.0.64/26"), "b"}, {netip.MustParsePrefix("10.220.0.128/26"), "c"},
				{netip.MustParsePrefix("10.220.9.9/32"), "a"},
				{netip.MustParsePrefix("fd20::/122"), "a"}, {netip.MustParsePrefix("fd20::40/122"), "b"}, {netip.MustParsePrefix("fd20::80/122"), "c"},
			},
		}, {
			ID: "dark", Number: 2, Internal: true, Subnets: []Subnet{subnet("10.221.0.0/28", "10.221.0.1")},
			Routes: []Route{{netip.MustParsePrefix("10.221.0.0/28"), "a"}, {netip.MustParsePrefix("10.221.0.9/32"), "gone"}},
		}},
	}
}

func TestTopologies(t *testing.T) {
	if err := three().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Topology){
		"Self is missing":        func(t *Topology) { t.Self = "" },
		`a peer has the id "a"`:  func(t *Topology) { t.Peers[1].ID = "a" },
		`a peer has the id ""`:   func(t *Topology) { t.Peers[1].ID = "" },
		"b has the subnet 10.2":  func(t *Topology) { t.Peers[1].Subnet = netip.MustParsePrefix("10.210.2.1/24") },
		"b has the subnet fd":    func(t *Topology) { t.Peers[1].Subnet = netip.MustParsePrefix("fd00::/64") },
		"b has the subnet inval": func(t *Topology) { t.Peers[1].Subnet = netip.Prefix{} },
		`network "red" has`:      func(t *Topology) { t.Networks[1].ID = "red" },
		`network "bridge" has`:   func(t *Topology) { t.Networks[1].ID = Bridge },
		"has the number 0":       func(t *Topology) { t.Networks[1].Number = 0 },
		"has the number 1:":      func(t *Topology) { t.Networks[1].Number = 1 },
		"has the number 1000000": func(t *Topology) { t.Networks[1].Number = 1_000_000_000 },
		"red: it has no subnet":  func(t *Topology) { t.Networks[0].Subnets = nil },
		"several subnets of one": func(t *Topology) {
			t.Networks[0].Subnets = append(t.Networks[0].Subnets, subnet("10.1.0.0/24", "10.1.0.1"))
		},
		"10.220.0.1/20 is no":        func(t *Topology) { t.Networks[0].Subnets[0].Prefix = netip.MustParsePrefix("10.220.0.1/20") },
		"the gateway 10.9.9.9":       func(t *Topology) { t.Networks[0].Subnets[0].Gateway = netip.MustParseAddr("10.9.9.9") },
		"its MTU is 12":              func(t *Topology) { t.Networks[0].MTU = 12 },
		"route for 10.9.0.0/24":      func(t *Topology) { t.Networks[0].Routes[0].Prefix = netip.MustParsePrefix("10.9.0.0/24") },
		"route for 10.220.0.0/8":     func(t *Topology) { t.Networks[0].Routes[0].Prefix = netip.MustParsePrefix("10.220.0.0/8") },
		"route for 10.220.0.1/2":     func(t *Topology) { t.Networks[0].Routes[0].Prefix = netip.MustParsePrefix("10.220.0.1/26") },
		"10.220.0.64/26 to node":     func(t *Topology) { t.Networks[0].Routes[0].Prefix = netip.MustParsePrefix("10.220.0.64/26") },
		`10.220.0.0/26 to node "": `: func(t *Topology) { t.Networks[0].Routes[0].Node = "" },
	} {
		x := three()
		change(&x)
		if err := x.Validate(); err == nil || !strings.Contains(err.Error()+": ", want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	unknown := three()
	unknown.Peers[1].Addr = netip.Addr{} // it is not reached, and others are
	if err := unknown.Validate(); err != nil {
		t.Error(err)
	}
}

func testOptions() Options {
	o := Options{Dir: "x", NetnsDir: "x", Bridge: "drv0", Subnet: netip.MustParsePrefix("10.210.1.0/24")}
	if err := o.validate(); err != nil {
		panic(err)
	}
	return o
}

func TestPlans(t *testing.T) {
	me := netip.MustParseAddr("10.10.1.1")
	bAt := routes.MAC{2, 0xaa, 0, 0, 0, 2}
	tunnel := func(gateway, to string) routes.Route {
		r := routes.Route{Dev: "dvx", Via: netip.MustParseAddr(gateway), To: netip.MustParseAddr(to), From: me}
		if r.Via.Is4() {
			r.Src = netip.MustParseAddr("10.210.1.1")
		}
		return r
	}
	direct := routes.Route{Dev: "eth0", Via: netip.MustParseAddr("10.10.1.2"), Src: netip.MustParseAddr("10.210.1.1")}
	// Which way packets go to b, and from where they are taken.
	for what, c := range map[string]struct {
		way      way
		to       routes.Route
		stations int
	}{
		"nothing known":      {way{}, tunnel("10.210.2.1", "10.10.1.2"), 2},
		"seen on the link":   {way{dev: "eth0", mac: bAt}, tunnel("10.210.2.1", "10.10.1.2"), 3},
		"proven on the link": {way{dev: "eth0", mac: bAt, proven: true}, direct, 3},
	} {
		p := planFor(testOptions(), three(), map[string]way{"b": c.way}, host{addr: me})
		for dst, want := range map[string]routes.Route{
			"10.210.2.0/24":   c.to,
			"10.220.0.64/26":  c.to,
			"10.210.3.0/24":   tunnel("10.210.3.1", "10.10.2.3"),
			"10.210.2.0/32":   tunnel("10.210.2.1", "10.10.1.2"), // in any case
			"10.210.3.0/32":   tunnel("10.210.3.1", "10.10.2.3"),
			"10.220.0.0/26":   {Dev: "dvn1", Src: netip.MustParseAddr("10.220.0.1")},
			"10.220.0.128/26": tunnel("10.210.3.1", "10.10.2.3"),
			"10.220.9.9/32":   {Dev: "dvn1", Src: netip.MustParseAddr("10.220.0.1")},
			"10.220.0.0/20":   {Unreachable: true},
			"fd20::/122":      {Dev: "dvn1"},
			"fd20::40/122":    tunnel("fe80::44:ad2:201", "10.10.1.2"),
			"fd20::80/122":    tunnel("fe80::44:ad2:301", "10.10.2.3"),
			"fd20::/64":       {Unreachable: true},
			"10.221.0.0/28":   {Dev: "dvn2", Src: netip.MustParseAddr("10.221.0.1")}, // the slice is the whole
		} {
			if got := p.Routes[netip.MustParsePrefix(dst)]; got != want {
				t.Errorf("%s: %s goes by %+v, want %+v", what, dst, got, want)
			}
		}
		if len(p.Routes) != 14 || len(p.filter.stations) != c.stations {
			t.Errorf("%s: %d routes, stations %v", what, len(p.Routes), p.filter.stations)
		}
		if len(p.Links) != 4 || !slices.Equal(p.filter.bridges, []string{"drv0", "dvn1", "dvn2"}) || !slices.Equal(p.filter.internal, []string{"dvn2"}) {
			t.Errorf("%s: links %v, bridges %v, internal %v", what, p.Links, p.filter.bridges, p.filter.internal)
		}
	}
	alone := Topology{Self: "a", Peers: three().Peers[:1]}
	if p := planFor(testOptions(), alone, nil, host{addr: me}); len(p.Links) != 1 || len(p.Routes) != 0 {
		t.Errorf("a node alone has %+v", p.Picture)
	}
	// Where a node's /24 is in use on this host, its containers are reached by networks only.
	p := planFor(testOptions(), three(), nil, host{addr: me, nets: prefixes("10.210.2.77/28")})
	if r, ok := p.Routes[three().Peers[1].Subnet]; ok || p.Routes[prefixes("10.220.0.64/26")[0]].Dev != "dvx" || len(p.left) > 0 {
		t.Errorf("a host with addresses of 10.210.2.0/24 routes them by %v, of %v; left out is %v", r, p.Routes, p.left)
	}
	// A node's bridge has the same hardware address everywhere, others' tunnels have not.
	b := three()
	b.Self = "b"
	o := testOptions()
	o.Subnet = b.Peers[1].Subnet
	here, there := planFor(testOptions(), three(), nil, host{addr: me}), planFor(o, b, nil, host{addr: netip.MustParseAddr("10.10.1.2")})
	if here.Links["dvn1"].MAC != there.Links["dvn1"].MAC || here.Links["dvx"].MAC == there.Links["dvx"].MAC {
		t.Errorf("a has %+v, b has %+v", here.Links, there.Links)
	}
	if here.Neighbours[routes.Place{Dev: "dvx", Addr: netip.MustParseAddr("10.210.2.1")}] != there.Links["dvx"].MAC {
		t.Errorf("b's tunnel is known to a as %v", here.Neighbours)
	}
}

func TestSpans(t *testing.T) {
	for want, in := range map[string][]netip.Prefix{
		"":                    nil,
		"10.0.0.0-10.0.1.255": prefixes("10.0.1.0/24", "10.0.0.0/24"),
		"10.0.0.0-10.0.0.255 10.0.2.0-10.0.2.255":           prefixes("10.0.2.0/24", "10.0.0.0/24", "10.0.0.64/26"),
		"10.0.0.0-10.0.3.255":                               prefixes("10.0.0.0/22", "10.0.1.0/24", "10.0.3.255/32"),
		"fd00::-fd00::7f":                                   prefixes("fd00::40/122", "fd00::/122"),
		"0.0.0.0-255.255.255.255":                           prefixes("0.0.0.0/0", "255.255.255.0/24"),
		"10.0.0.9-10.0.0.9 255.255.255.255-255.255.255.255": prefixes("10.0.0.9/32", "255.255.255.255/32"),
	} {
		var got []string
		for _, s := range spans(in) {
			got = append(got, s.first.String()+"-"+s.last.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%v: %v, want %s", in, got, want)
		}
	}
}
