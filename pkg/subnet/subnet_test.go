package subnet

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestPools(t *testing.T) {
	for s, say := range map[string]string{
		"": "no network", "10.0.0.0": "no network", "fd00::/64": "no IPv4", "10.0.0.0/7": "from /8 to /24", "10.0.0.0/25": "from /8 to /24",
		"10.1.0.0/12": "10.0.0.0/12 is the network", "127.0.0.0/16": "not for hosts", "224.0.0.0/8": "not for hosts",
	} {
		if p, err := ParsePool(s); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%q is %v, %v; want %q", s, p, err, say)
		}
	}
	for s, n := range map[string]int{"10.208.0.0/12": 4096, "192.168.7.0/24": 1, "10.0.0.0/8": 65536} {
		if p, err := ParsePool(s); err != nil || Nodes(p) != n {
			t.Errorf("%s is for %d nodes, %v", s, Nodes(p), err)
		}
	}
	for s, want := range map[string]bool{"10.0.1.0/24": true, "10.0.1.1/24": false, "10.0.0.0/23": false, "x": false, "fd00::/24": false} {
		if _, ok := Of(s); ok != want {
			t.Errorf("%s is a node's subnet: %v", s, ok)
		}
	}
}

// Free is what a walk over the pool finds.
func TestFreeIsTheLowest(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	pool := netip.MustParsePrefix("10.16.0.0/20") // 16 nodes
	for range 2000 {
		taken := map[uint32]bool{}
		for range r.IntN(40) {
			taken[Number(pool)-8+uint32(r.IntN(32))] = true
		}
		var all []uint32
		for k := range taken {
			all = append(all, k)
		}
		slices.Sort(all)
		at := func(i int) uint32 { return all[i] }
		want, in := Number(pool), 0
		for k := range taken {
			if pool.Contains(numbered(k).Addr()) {
				in++
			}
		}
		for taken[want] {
			want++
		}
		got, ok := Free(pool, len(all), at)
		if fits := want < Number(pool)+16; ok != fits || ok && got != numbered(want) {
			t.Fatalf("of %v: %v %v, want %v", all, got, ok, numbered(want))
		}
		if n := Taken(pool, len(all), at); n != in {
			t.Fatalf("of %v %d are in the pool, want %d", all, n, in)
		}
	}
}

// What a full fleet's next node costs.
func TestFreeLooksAtFew(t *testing.T) {
	pool := netip.MustParsePrefix("10.0.0.0/8")
	for _, n := range []int{0, 1, 5000, 65536} {
		asked := 0
		Free(pool, n, func(i int) uint32 { asked++; return Number(pool) + uint32(i) })
		if asked > 40 {
			t.Errorf("with %d subnets taken, %d were looked at", n, asked)
		}
	}
}
