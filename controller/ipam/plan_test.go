package ipam

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/subnet"
)

func id(of string) []byte { return fmt.Appendf(nil, "%-32s", of)[:32] }

func network(name string, subnets ...*dv1.Subnet) *dv1.Network {
	n := &dv1.Network{Id: id(name), Name: name, Number: 1, Subnets: subnets}
	for _, s := range subnets {
		if p := netip.MustParsePrefix(s.Prefix); p.Addr().Is6() {
			n.Ipv6 = true
		} else {
			n.Ipv4 = true
		}
		if s.Gateway == "" {
			s.Gateway = Gateway(s).String()
		}
	}
	return n
}

// fleet applies what a plan chose.
type fleet struct {
	t testing.TB
	x *state.Txn
}

func newFleet(t testing.TB, networks ...*dv1.Network) *fleet {
	f := &fleet{t, state.NewTxn(state.NewStore().Snapshot())}
	for _, n := range networks {
		f.put(&dv1.Effect{Of: &dv1.Effect_Network{Network: n}})
	}
	return f
}

func (f *fleet) put(effects ...*dv1.Effect) {
	f.t.Helper()
	if err := f.x.Apply(effects...); err != nil {
		f.t.Fatal(err)
	}
}

// add puts endpoints of as many tasks on a node, chosen by one plan.
func (f *fleet) add(n *dv1.Network, asked ...*dv1.Endpoint) {
	f.t.Helper()
	p := New(f.x.View())
	var effects []*dv1.Effect
	for _, e := range asked {
		e.NetworkId = n.Id
		if s := p.Assign(n, e); s != nil {
			effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Slice{Slice: proto.CloneOf(s)}})
		}
		effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Endpoint{Endpoint: e}})
	}
	f.put(effects...)
}

func (f *fleet) remove(e *dv1.Endpoint) {
	f.put(&dv1.Effect{Of: &dv1.Effect_DeleteEndpoint{DeleteEndpoint: append(append([]byte{}, e.TaskId...), e.NetworkId...)}})
	if !f.x.HasEndpoints(e.NetworkId, e.NodeId, 1) {
		f.put(&dv1.Effect{Of: &dv1.Effect_DeleteSlice{DeleteSlice: append(append([]byte{}, e.NetworkId...), e.NodeId...)}})
	}
}

// Whatever comes and goes, with several endpoints in one entry: no two have an address
// (the state refuses that), none has a reserved one or one outside, slices don't overlap,
// and an endpoint has its node's addresses or is routed by itself. An endpoint without
// an address means that no address is left.
func TestAddressesOfAnyHistory(t *testing.T) {
	for name, subnets := range map[string][]*dv1.Subnet{
		"a default one":   {{Prefix: "10.220.0.0/20"}},
		"a small one":     {{Prefix: "10.1.1.0/26", Reserved: map[string]string{"router": "10.1.1.9"}}},
		"a tiny one":      {{Prefix: "10.1.1.0/29", Gateway: "10.1.1.5"}},
		"of a range":      {{Prefix: "10.1.0.0/16", IpRange: "10.1.7.0/27", Gateway: "10.1.0.1"}},
		"point to point":  {{Prefix: "10.1.1.0/31"}},
		"of two subnets":  {{Prefix: "10.1.1.0/28"}, {Prefix: "10.9.0.0/28"}},
		"of both":         {{Prefix: "10.1.1.0/26"}, {Prefix: "fd00::/64"}},
		"a small of IPv6": {{Prefix: "fd00::40/123"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 4))
			n := network("net", subnets...)
			f := newFleet(t, n)
			live := []*dv1.Endpoint{}
			for step := range 400 {
				if r.IntN(3) == 0 && len(live) > 0 {
					i := r.IntN(len(live))
					f.remove(live[i])
					live = append(live[:i], live[i+1:]...)
					continue
				}
				var several []*dv1.Endpoint
				for k := range 1 + r.IntN(3) {
					e := &dv1.Endpoint{TaskId: id(fmt.Sprint(step, "-", k)), NodeId: fmt.Sprint("n", r.IntN(5))}
					if r.IntN(8) == 0 && n.Ipv4 {
						p := netip.MustParsePrefix(subnets[0].Prefix)
						e.AskedIp = subnet.Add(p.Addr(), uint64(r.IntN(1<<min(8, 32-p.Bits())))).String()
					}
					several = append(several, e)
				}
				f.add(n, several...)
				live = append(live, several...)
				check(t, f.x.View(), n)
			}
		})
	}
}

func check(t *testing.T, s *state.Snapshot, n *dv1.Network) {
	t.Helper()
	var blocks []netip.Prefix
	owned := map[string][]netip.Prefix{}
	for slice := range s.Slices(n.Id) {
		for _, text := range slice.Prefixes {
			p := netip.MustParsePrefix(text)
			for _, other := range blocks {
				if other.Overlaps(p) {
					t.Fatalf("slices %s and %s overlap", p, other)
				}
			}
			blocks, owned[slice.NodeId] = append(blocks, p), append(owned[slice.NodeId], p)
		}
	}
	lacks4 := false
	for e := range s.EndpointsOfNetwork(n.Id) {
		for _, text := range []string{e.Ip, e.Ip6} {
			a, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			if !Contains(n, a) || Reserved(n, a) {
				t.Fatalf("%s is no address for an endpoint", a)
			}
			own := false
			for _, p := range owned[e.NodeId] {
				own = own || p.Contains(a)
			}
			if !own && !e.Asked {
				t.Fatalf("%s on %s is in none of %v", a, e.NodeId, owned[e.NodeId])
			}
		}
		if n.Ipv6 && e.Ip6 == "" && n.Subnets[len(n.Subnets)-1].Prefix == "fd00::/64" {
			t.Fatal("of 2^64 addresses none was free")
		}
		lacks4 = lacks4 || n.Ipv4 && e.Ip == "" && e.AskedIp == ""
		if (e.Ip != "" || e.Ip6 != "") != (e.Mac != "") {
			t.Fatalf("the MAC address of %s %s is %q", e.Ip, e.Ip6, e.Mac)
		}
	}
	if !lacks4 {
		return
	}
	// Some endpoint once found none: later removals may have freed some, so that only a
	// new one tells.
	e := &dv1.Endpoint{TaskId: id("probe"), NetworkId: n.Id, NodeId: "n9"}
	New(s).Assign(n, e)
	free := false
	for _, sub := range n.Subnets {
		r := Range(sub)
		for a := r.Addr(); r.Contains(a) && r.Addr().Is4(); a = a.Next() {
			free = free || s.EndpointAt(n.Id, a) == nil && !Reserved(n, a)
		}
	}
	if free != (e.Ip != "") {
		t.Fatalf("an address is free: %v, and chosen is %q", free, e.Ip)
	}
}

func TestWhatIsChosen(t *testing.T) {
	n := network("net", &dv1.Subnet{Prefix: "10.220.0.0/20"}, &dv1.Subnet{Prefix: "fd00::/64"})
	f := newFleet(t, n)
	a1 := &dv1.Endpoint{TaskId: id("a1"), NodeId: "a"}
	b1 := &dv1.Endpoint{TaskId: id("b1"), NodeId: "b"}
	a2 := &dv1.Endpoint{TaskId: id("a2"), NodeId: "a"}
	fixed := &dv1.Endpoint{TaskId: id("f"), NodeId: "a", AskedIp: "10.220.15.200", AskedIp6: "fd00::beef:0:1", AskedMac: "0a:00:00:00:00:01"}
	again := &dv1.Endpoint{TaskId: id("g"), NodeId: "b", AskedIp: "10.220.15.200"}
	gateway := &dv1.Endpoint{TaskId: id("h"), NodeId: "b", AskedIp: "10.220.0.1"}
	f.add(n, a1, b1, a2, fixed, again, gateway)
	for _, c := range []struct {
		e                *dv1.Endpoint
		ip, ip6, mac     string
		routed, complete bool
	}{
		{a1, "10.220.0.2", "fd00::2", "02:42:0a:dc:00:02", false, true},
		{a2, "10.220.0.3", "fd00::3", "02:42:0a:dc:00:03", false, true},
		{b1, "10.220.0.64", "fd00::1:0", "02:42:0a:dc:00:40", false, true},
		{fixed, "10.220.15.200", "fd00::beef:0:1", "0a:00:00:00:00:01", true, true},
		{again, "", "fd00::1:1", "02:42:00:01:00:01", false, false},
		{gateway, "", "fd00::1:2", "02:42:00:01:00:02", false, false},
	} {
		if e := c.e; e.Ip != c.ip || e.Ip6 != c.ip6 || e.Mac != c.mac || e.Asked != c.routed || Lacks(n, e) == c.complete {
			t.Errorf("%s has %s %s %s, routed by itself: %v", e.TaskId, e.Ip, e.Ip6, e.Mac, e.Asked)
		}
	}
}

func TestSliceSizes(t *testing.T) {
	for p, want := range map[string]int{"10.0.0.0/8": 26, "10.0.0.0/20": 26, "10.0.0.0/23": 27, "10.0.0.0/24": 28, "10.0.0.0/29": 32, "fd00::/64": 112, "fd00::/112": 128, "fd00::/96": 112, "fd00::/120": 128} {
		if got := sliceBits(netip.MustParsePrefix(p)); got != want {
			t.Errorf("slices of %s are of /%d, want /%d", p, got, want)
		}
	}
}

func TestGateways(t *testing.T) {
	for _, c := range []struct {
		s    *dv1.Subnet
		want string
	}{
		{&dv1.Subnet{Prefix: "10.0.0.0/24"}, "10.0.0.1"},
		{&dv1.Subnet{Prefix: "10.0.0.0/24", Reserved: map[string]string{"a": "10.0.0.1"}}, "10.0.0.2"},
		{&dv1.Subnet{Prefix: "10.0.0.0/16", IpRange: "10.0.5.0/24"}, "10.0.5.0"},
		{&dv1.Subnet{Prefix: "10.0.0.0/31"}, "10.0.0.0"},
		{&dv1.Subnet{Prefix: "fd00::/64"}, "fd00::1"},
	} {
		if got := Gateway(c.s); got.String() != c.want {
			t.Errorf("the gateway of %v is %s, want %s", c.s, got, c.want)
		}
	}
}

func TestFreeSubnets(t *testing.T) {
	f := newFleet(t)
	f.put(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: &dv1.Cluster{Id: "fleet"}}},
		&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "a", Subnet: "10.220.20.0/24"}}})
	taken := []netip.Prefix{netip.MustParsePrefix("10.220.0.0/20"), netip.MustParsePrefix("10.220.32.0/19")}
	if p, ok := FreeSubnet(f.x.View(), taken, 0); !ok || p.String() != "10.220.64.0/20" {
		t.Errorf("behind a network, a node and a larger network: %s %v", p, ok)
	}
	if p, ok := FreeSubnet(f.x.View(), taken, 24); !ok || p.String() != "10.220.16.0/24" {
		t.Errorf("of a /24: %s %v", p, ok)
	}
	if p, ok := FreeSubnet(f.x.View(), []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, 0); ok {
		t.Errorf("of nothing: %s", p)
	}
	f.put(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "b", Addr: "10.220.64.7:7444"}}}, &dv1.Effect{Of: &dv1.Effect_Controller{Controller: &dv1.Controller{Id: "c", Addr: "[::ffff:10.220.80.9]:7443"}}})
	if p, ok := FreeSubnet(f.x.View(), taken, 0); !ok || p.String() != "10.220.96.0/20" {
		t.Errorf("behind the hosts' own addresses: %s %v", p, ok)
	}
	if used := Used(f.x.View(), subnet.DefaultNetworkPool); used != 3 { // of a node's containers, and of two hosts
		t.Errorf("%d subnets of the pool are used", used)
	}
	own := Prefix6("fleet")
	first, ok := FreeSubnet6(f.x.View(), nil, 7, 0)
	if !ok || !own.Contains(first.Addr()) || first.Bits() != 64 || first.Addr().As16()[7] != 7 {
		t.Errorf("of number 7 in %s: %s %v", own, first, ok)
	}
	if next, ok := FreeSubnet6(f.x.View(), []netip.Prefix{first}, 7, 0); !ok || next.Addr() != subnet.Last(first).Next() {
		t.Errorf("behind %s: %s %v", first, next, ok)
	}
	if own == Prefix6("other") || !netip.MustParsePrefix("fd00::/8").Overlaps(own) {
		t.Errorf("the fleet's prefix is %s", own)
	}
}

// Pools are used one after the other, each with its own size.
func TestPoolsOfAFleet(t *testing.T) {
	pools := []string{"base=10.64.0.0/23,size=24", "not a pool", "base=10.9.0.0/28,size=29"}
	b := network("b", &dv1.Subnet{Prefix: "10.9.0.4/30"})
	b.Number = 2
	f := newFleet(t, network("a", &dv1.Subnet{Prefix: "10.64.0.128/25"}), b)
	f.put(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: &dv1.Cluster{Id: "fleet", NetworkPools: pools}}})
	taken := Subnets(f.x.View())
	for _, want := range []string{"10.64.1.0/24", "10.9.0.8/29", ""} {
		p, ok := FreeSubnet(f.x.View(), taken, 0)
		if ok != (want != "") || ok && p.String() != want {
			t.Errorf("%s %v is chosen, not %s", p, ok, want)
		}
		taken = append(taken, p)
	}
	if p, ok := FreeSubnet(f.x.View(), taken, 30); !ok || p.String() != "10.64.0.0/30" {
		t.Errorf("of a /30: %s %v", p, ok)
	}
	for text, want := range map[string]int{
		pools[0]: 1, pools[2]: 1, "base=10.64.0.0/23,size=30": 32, "base=10.64.0.192/26,size=30": 16, "base=10.64.0.0/16,size=16": 1, "base=10.65.0.0/16,size=24": 0, "base=10.0.0.0/8,size=9": 1,
	} {
		if p, err := subnet.ParseNetworkPool(text); err != nil || Used(f.x.View(), p) != want {
			t.Errorf("of %s %d are used, not %d: %v", text, Used(f.x.View(), p), want, err)
		}
	}
}

// One address in a network of 10,000 endpoints on 100 nodes, among 50 networks.
func BenchmarkAssign(b *testing.B) {
	var networks []*dv1.Network
	for i := range 50 {
		n := network(fmt.Sprint("net", i), &dv1.Subnet{Prefix: fmt.Sprintf("10.%d.0.0/16", i)})
		n.Number = uint32(i + 1)
		networks = append(networks, n)
	}
	f := newFleet(b, networks...)
	for i := range 10000 {
		f.add(networks[0], &dv1.Endpoint{TaskId: id(fmt.Sprint(i)), NodeId: fmt.Sprint("n", i%100)})
		f.add(networks[1+i%49], &dv1.Endpoint{TaskId: id(fmt.Sprint(i)), NodeId: fmt.Sprint("n", i%100)})
	}
	for _, c := range []struct{ name, node string }{{"of the node's slice", "n7"}, {"of a new slice", "another"}} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				e := &dv1.Endpoint{TaskId: id("new"), NodeId: c.node}
				if New(f.x.View()).Assign(networks[0], e); e.Ip == "" {
					b.Fatal("none")
				}
			}
		})
	}
}

// The last subnet of a pool of 4,096, which networks have the others of.
func BenchmarkFreeSubnet(b *testing.B) {
	f := newFleet(b)
	f.put(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: &dv1.Cluster{Id: "fleet", NetworkPools: []string{"base=10.64.0.0/12,size=24"}}}})
	var taken []netip.Prefix
	for i := range 4095 {
		taken = append(taken, netip.PrefixFrom(subnet.Add(netip.MustParseAddr("10.64.0.0"), uint64(i)<<8), 24))
	}
	for b.Loop() {
		if p, ok := FreeSubnet(f.x.View(), taken, 0); !ok || p.String() != "10.79.255.0/24" {
			b.Fatal(p)
		}
	}
}
