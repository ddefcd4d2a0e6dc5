package network

import (
	"fmt"
	"net/netip"
	"testing"
)

// big is a fleet of 100 nodes with 50 networks, in which each node has a slice, and 5,000
// addresses that are routed by themselves: 10,000 routes.
func big() Topology {
	t := Topology{Self: "0"}
	for i := range 100 {
		t.Peers = append(t.Peers, Peer{ID: fmt.Sprint(i), Addr: netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)}), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 210, byte(i), 0}), 24)})
	}
	for n := range 50 {
		base := netip.AddrFrom4([4]byte{10, byte(220 + n/16), byte(n % 16 * 16), 0})
		f := Fleet{ID: fmt.Sprint("net", n), Number: uint32(n + 1), Subnets: []Subnet{{Prefix: netip.PrefixFrom(base, 20), Gateway: base.Next()}}}
		b := base.As4()
		for i := range 50 {
			f.Routes = append(f.Routes, Route{netip.PrefixFrom(netip.AddrFrom4([4]byte{b[0], b[1], b[2] + byte(i/4), byte(i % 4 * 64)}), 26), fmt.Sprint(i)})
		}
		for i := range 150 {
			f.Routes = append(f.Routes, Route{netip.PrefixFrom(netip.AddrFrom4([4]byte{b[0], b[1], b[2] + 13, byte(i)}), 32), fmt.Sprint(i % 100)})
		}
		t.Networks = append(t.Networks, f)
	}
	return t
}

// What a topology of 10,000 routes costs a node from nothing, and one change in it. Each
// benchmark has a goroutine of its own, and so a host of its own.
func BenchmarkApply(b *testing.B) {
	full := big()
	b.Run("from nothing", func(b *testing.B) {
		w := newWorld(b)
		for b.Loop() {
			b.StopTimer()
			must(b, w.n.Apply(b.Context(), Topology{Self: "0", Peers: full.Peers[:1]}))
			b.StartTimer()
			must(b, w.n.Apply(b.Context(), full))
		}
	})
	b.Run("one change", func(b *testing.B) {
		w := newWorld(b)
		must(b, w.n.Apply(b.Context(), full))
		for i := 0; b.Loop(); i++ {
			rs := full.Networks[7].Routes
			rs[len(rs)-1].Node = fmt.Sprint(1 + i%2)
			must(b, w.n.Apply(b.Context(), full))
		}
	})
	b.Run("a look", func(b *testing.B) {
		w := newWorld(b)
		must(b, w.n.Apply(b.Context(), full))
		for b.Loop() {
			if diff, err := w.n.Check(b.Context()); err != nil || len(diff) > 0 {
				b.Fatal(len(diff), err)
			}
		}
	})
}
