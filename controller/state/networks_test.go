package state

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func putAll(t testing.TB, x *Txn, effects ...*dv1.Effect) {
	t.Helper()
	if err := x.Apply(effects...); err != nil {
		t.Fatal(err)
	}
}

func endpoint(task, network int, node, ip, ip6 string) *dv1.Effect {
	return &dv1.Effect{Of: &dv1.Effect_Endpoint{Endpoint: &dv1.Endpoint{TaskId: bytes32("task", task), NetworkId: bytes32("net", network), NodeId: node, Ip: ip, Ip6: ip6}}}
}

// FreeAddress is the first address that a walk over all of them would find, wherever
// other networks' addresses lie.
func TestFreeAddressIsTheLowest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		x := NewTxn(NewStore().Snapshot())
		taken := map[string]bool{}
		for i := range r.IntN(40) {
			ip, ip6 := fmt.Sprintf("10.0.0.%d", r.IntN(24)), fmt.Sprintf("fd00::%x", 0xfff0+r.IntN(24))
			network := r.IntN(3)
			if taken[fmt.Sprint(network, ip)] || taken[fmt.Sprint(network, ip6)] {
				continue
			}
			taken[fmt.Sprint(network, ip)], taken[fmt.Sprint(network, ip6)] = true, true
			putAll(t, x, endpoint(i, network, "a", ip, ip6))
		}
		for _, base := range []string{"10.0.0.0", "fd00::fff0"} {
			from, to := r.IntN(24), r.IntN(24)
			if from > to {
				from, to = to, from
			}
			first, last := netip.MustParseAddr(base), netip.MustParseAddr(base)
			for range from {
				first = first.Next()
			}
			for range to {
				last = last.Next()
			}
			want, n := netip.Addr{}, 0
			for a := first; a.Compare(last) <= 0; a = a.Next() {
				if taken[fmt.Sprint(1, a.String())] {
					n++
				} else if !want.IsValid() {
					want = a
				}
			}
			got, ok := x.FreeAddress(bytes32("net", 1), first, last)
			if got != want || ok != want.IsValid() {
				t.Fatalf("from %s to %s %v (%v) is free, want %v; taken: %v", first, last, got, ok, want, taken)
			}
			if got := x.AddressesIn(bytes32("net", 1), first, last); got != n {
				t.Fatalf("from %s to %s %d are counted, want %d", first, last, got, n)
			}
		}
	}
}

func TestNetworksAreFound(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	for i, name := range []string{"web", "db", "old"} {
		putAll(t, x, &dv1.Effect{Of: &dv1.Effect_Network{Network: &dv1.Network{Id: bytes32("net", i), Name: name, Number: uint32(3 - i), Removing: name == "old"}}})
	}
	if x.NetworkByName("web").GetNumber() != 3 || x.NetworkByName("old") != nil || x.NetworkByName("we") != nil {
		t.Error("names find other networks than theirs")
	}
	var numbers []uint32
	for n := range x.NetworksByNumber() {
		numbers = append(numbers, n.Number)
	}
	if fmt.Sprint(numbers) != "[1 2 3]" {
		t.Errorf("by number they are %v", numbers)
	}
	id := hex.EncodeToString(bytes32("net", 1))
	for prefix, want := range map[string]int{id: 1, id[:7]: 1, id[:2]: len(x.NetworksByPrefix(id[:2])), "": 0, "xyz": 0} {
		if got := x.NetworksByPrefix(prefix); len(got) != want {
			t.Errorf("%q finds %d networks, want %d", prefix, len(got), want)
		}
	}
	// The name of a network that is being removed is free, its number isn't.
	again := &dv1.Network{Id: bytes32("net", 7), Name: "old", Number: 9}
	putAll(t, x, &dv1.Effect{Of: &dv1.Effect_Network{Network: again}})
	again = &dv1.Network{Id: bytes32("net", 8), Name: "new", Number: 1}
	if x.Apply(&dv1.Effect{Of: &dv1.Effect_Network{Network: again}}) == nil {
		t.Error("two networks have a number")
	}
}

func TestEndpointsAreCountedByPlace(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	putAll(t, x, endpoint(1, 1, "a", "10.0.0.1", ""), endpoint(2, 1, "a", "10.0.0.2", ""), endpoint(3, 1, "ab", "", ""), endpoint(1, 2, "a", "10.0.0.1", ""))
	for _, c := range []struct {
		network int
		node    string
		n       int
	}{{1, "", 3}, {1, "a", 2}, {1, "ab", 1}, {1, "b", 0}, {2, "", 1}, {2, "ab", 0}, {3, "", 0}} {
		id := bytes32("net", c.network)
		if c.n > 0 && !x.HasEndpoints(id, c.node, c.n) || x.HasEndpoints(id, c.node, c.n+1) {
			t.Errorf("network %d has not %d endpoints on %q", c.network, c.n, c.node)
		}
		on := 0
		for e := range x.EndpointsOn(id, c.node) {
			if on++; e.NodeId != c.node {
				t.Errorf("an endpoint on %s is yielded for %s", e.NodeId, c.node)
			}
		}
		if c.node != "" && on != c.n {
			t.Errorf("network %d yields %d endpoints on %q", c.network, on, c.node)
		}
	}
	if x.Apply(endpoint(9, 1, "b", "10.0.0.2", "")) == nil {
		t.Error("two endpoints of a network have one address")
	}
	if x.EndpointAt(bytes32("net", 2), netip.MustParseAddr("10.0.0.1")) == nil || x.EndpointAt(bytes32("net", 2), netip.MustParseAddr("10.0.0.2")) != nil {
		t.Error("addresses of networks are mixed up")
	}
}

func TestNodesOfSubnets(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	for _, i := range []int{1, 2, 5} {
		putAll(t, x, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprint("n", i), Subnet: fmt.Sprintf("10.0.%d.0/24", i)}}})
	}
	for _, c := range []struct {
		first, last uint32
		want        string
	}{{0, 9, "n1 n2 n5 "}, {2, 4, "n2 "}, {3, 4, ""}, {5, 5, "n5 "}} {
		got := ""
		for n := range x.NodesOfSubnets(10<<16+c.first, 10<<16+c.last) {
			got += n.Id + " "
		}
		if got != c.want {
			t.Errorf("%d to %d: %q, want %q", c.first, c.last, got, c.want)
		}
	}
}
