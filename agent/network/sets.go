package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

// elements are those of sets and maps, by name.
type elements map[string][]nftables.SetElement

// sets returns drover's sets and maps, without elements.
func (t *table) sets() (map[string]*nftables.Set, error) {
	inet, bridges := t.ours(), t.bridges()
	name, mac, v4, v6, port := nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr, nftables.TypeIP6Addr, nftables.TypeInetService
	out := map[string]*nftables.Set{}
	for _, s := range []struct {
		in    *nftables.Table
		names []string
		key   []nftables.SetDatatype
		kind  string
		to    []nftables.SetDatatype // of a map
	}{
		{inet, []string{"bridges", "internal"}, []nftables.SetDatatype{name}, "", nil},
		{inet, []string{"own"}, []nftables.SetDatatype{name, v4}, "interval", nil},
		{inet, []string{"own6"}, []nftables.SetDatatype{name, v6}, "interval", nil},
		{inet, []string{"pool"}, []nftables.SetDatatype{v4}, "interval", nil},
		{inet, []string{"pool6"}, []nftables.SetDatatype{v6}, "interval", nil},
		{inet, []string{"nodes", "gateways"}, []nftables.SetDatatype{v4}, "", nil},
		{inet, []string{"nodes6"}, []nftables.SetDatatype{v6}, "", nil},
		{inet, []string{"stations"}, []nftables.SetDatatype{name, mac}, "", nil},
		{inet, []string{"tunnels"}, []nftables.SetDatatype{port}, "", nil},
		{inet, named("any_"), []nftables.SetDatatype{port}, "map", []nftables.SetDatatype{v4, port}},
		{inet, named("one_"), []nftables.SetDatatype{v4, port}, "map", []nftables.SetDatatype{v4, port}},
		{inet, named("door_"), []nftables.SetDatatype{port}, "map", []nftables.SetDatatype{v4}},
		{inet, []string{"doorways"}, []nftables.SetDatatype{name, mac}, "map", []nftables.SetDatatype{nftables.TypeInteger}},
		{inet, []string{"doorzones"}, []nftables.SetDatatype{name, mac}, "map", []nftables.SetDatatype{port}}, // 16 bits
		{inet, []string{"marks"}, []nftables.SetDatatype{nftables.TypeMark}, "", nil},
		{bridges, []string{"links"}, []nftables.SetDatatype{name}, "", nil},
		{bridges, []string{"ports"}, []nftables.SetDatatype{name, mac, v4}, "", nil},
		{bridges, []string{"ports6"}, []nftables.SetDatatype{name, mac, v6}, "", nil},
	} {
		typ := s.key[0]
		var err error
		if len(s.key) > 1 {
			if typ, err = nftables.ConcatSetType(s.key...); err != nil {
				return nil, fmt.Errorf("making nftables sets: %w", err)
			}
		}
		for _, n := range s.names {
			out[n] = &nftables.Set{Table: s.in, Name: n, KeyType: typ, Concatenation: len(s.key) > 1, Interval: s.kind == "interval", IsMap: s.kind == "map"}
			if typ == name {
				out[n].KeyByteOrder = binaryutil.NativeEndian // for nft, which shows it else as ""
			}
			if s.kind != "map" {
				continue
			}
			if out[n].DataType = s.to[0]; len(s.to) == 1 {
				continue
			}
			if out[n].DataType, err = nftables.ConcatSetType(s.to...); err != nil {
				return nil, fmt.Errorf("making nftables maps: %w", err)
			}
		}
	}
	return out, nil
}

// elements returns what the sets hold of a topology.
func (f filter) elements() elements {
	out := elements{}
	add := func(set string, key ...[]byte) {
		out[set] = append(out[set], nftables.SetElement{Key: slices.Concat(key...)})
	}
	for _, b := range f.bridges {
		add("bridges", ifname(b))
	}
	for _, b := range f.internal {
		add("internal", ifname(b))
	}
	if f.tunnel != 0 {
		add("tunnels", binaryutil.BigEndian.PutUint16(f.tunnel))
	}
	for _, g := range f.gateways {
		add("gateways", g.AsSlice())
	}
	for _, n := range f.nodes {
		add("nodes"+suffix(n), n.AsSlice())
	}
	for _, s := range f.stations {
		add("stations", ifname(s.dev), s.mac[:], []byte{0, 0})
	}
	for _, d := range f.doors {
		out["door_"+d.proto] = append(out["door_"+d.proto], nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(d.port), Val: d.to.AsSlice()})
	}
	known := map[station]bool{}
	for _, d := range f.doorways {
		if known[d.station] {
			continue // a map leads to one
		}
		known[d.station] = true
		mark, key := binaryutil.NativeEndian.PutUint32(uint32(markOf(d.gateway))), slices.Concat(ifname(d.dev), d.mac[:], []byte{0, 0})
		out["doorways"] = append(out["doorways"], nftables.SetElement{Key: key, Val: mark})
		out["doorzones"] = append(out["doorzones"], nftables.SetElement{Key: key, Val: binaryutil.NativeEndian.PutUint16(zoneOf(d.gateway))})
		add("marks", mark)
	}
	pool, own := map[string][]netip.Prefix{}, map[string]map[string][]netip.Prefix{}
	for _, w := range f.within {
		s := suffix(w.prefix.Addr())
		pool[s] = append(pool[s], w.prefix)
		if own[s] == nil {
			own[s] = map[string][]netip.Prefix{}
		}
		own[s][w.bridge] = append(own[s][w.bridge], w.prefix)
	}
	for s, prefixes := range pool {
		for _, r := range spans(prefixes) {
			out["pool"+s] = append(out["pool"+s], nftables.SetElement{Key: r.first.AsSlice()})
			if end := r.last.Next(); end.IsValid() {
				out["pool"+s] = append(out["pool"+s], nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
			}
		}
		for bridge, prefixes := range own[s] {
			for _, r := range spans(prefixes) {
				out["own"+s] = append(out["own"+s], nftables.SetElement{
					Key: slices.Concat(ifname(bridge), r.first.AsSlice()), KeyEnd: slices.Concat(ifname(bridge), r.last.AsSlice()),
				})
			}
		}
	}
	return out
}

// named returns the names of a kind of map, one for each protocol.
func named(kind string) []string {
	out := make([]string, 0, len(protocols))
	for _, p := range protocols {
		out = append(out, kind+p)
	}
	return out
}

func suffix(a netip.Addr) string {
	if a.Is6() {
		return "6"
	}
	return ""
}

// elementsOf returns what the sets hold of a sandbox.
func elementsOf(s *Sandbox) elements {
	out := elements{}
	for _, e := range s.Endpoints {
		out["links"] = append(out["links"], nftables.SetElement{Key: ifname(e.Link)})
		hw, err := net.ParseMAC(e.MAC)
		if err != nil {
			continue // it can't speak
		}
		own := []netip.Addr{}
		for _, a := range slices.Concat(e.Addresses, e.LinkLocal) {
			own = append(own, a.Addr())
		}
		if e.IPv6().IsValid() {
			own = append(own, linkLocal(hw))
		}
		for _, a := range own {
			set := "ports" + suffix(a)
			out[set] = append(out[set], nftables.SetElement{Key: slices.Concat(ifname(e.Link), hw, []byte{0, 0}, a.AsSlice())})
		}
	}
	for _, p := range destinations(s) {
		val := append(p.to.AsSlice(), pad(p.Container)...)
		name, key := "any_"+p.Proto, binaryutil.BigEndian.PutUint16(p.Host)
		if p.IP != "" {
			name, key = "one_"+p.Proto, append(netip.MustParseAddr(p.IP).AsSlice(), pad(p.Host)...)
		}
		out[name] = append(out[name], nftables.SetElement{Key: key, Val: val})
	}
	return out
}

// destination is a published port and its target.
type destination struct {
	Port
	to netip.Addr
}

func destinations(s *Sandbox) []destination {
	var out []destination
	for _, e := range s.Endpoints {
		for _, p := range e.Ports {
			if to := e.IPv4(); to.IsValid() {
				out = append(out, destination{Port: p, to: to.Addr()})
			}
		}
	}
	return out
}

// identity is what makes an element another one.
func identity(e nftables.SetElement) string {
	kind := byte(0)
	if e.IntervalEnd {
		kind = 1
	}
	return string(slices.Concat([]byte{kind, byte(len(e.KeyEnd))}, e.Key, e.KeyEnd, e.Val))
}

// difference returns the elements of a that are not in b, each once: nodes can have one
// address, behind a translation of addresses, or one hardware address.
func difference(a, b []nftables.SetElement) []nftables.SetElement {
	known := make(map[string]bool, len(a)+len(b))
	for _, e := range b {
		known[identity(e)] = true
	}
	return slices.DeleteFunc(slices.Clone(a), func(e nftables.SetElement) bool {
		id := identity(e)
		was := known[id]
		known[id] = true
		return was
	})
}

// same reports whether a set holds what it should. The kernel adds an end before the
// first interval to sets of them.
func same(have, want []nftables.SetElement) bool {
	have = slices.DeleteFunc(have, func(e nftables.SetElement) bool {
		return e.IntervalEnd && slices.Max(append([]byte{0}, e.Key...)) == 0
	})
	return len(have) == len(difference(want, nil)) && len(difference(want, have)) == 0
}

// perMessage keeps a message of elements below netlink's 64 KiB per attribute.
const perMessage = 400

func addElements(c *nftables.Conn, s *nftables.Set, elements []nftables.SetElement) error {
	for some := range slices.Chunk(elements, perMessage) {
		if err := c.SetAddElements(s, some); err != nil {
			return fmt.Errorf("adding to the nftables set %s: %w", s.Name, err)
		}
	}
	return nil
}

func deleteElements(c *nftables.Conn, s *nftables.Set, elements []nftables.SetElement) error {
	for some := range slices.Chunk(elements, perMessage) {
		if err := c.SetDeleteElements(s, some); err != nil {
			return fmt.Errorf("removing from the nftables set %s: %w", s.Name, err)
		}
	}
	return nil
}

// exchange makes one set of elements out of another, in c's batch. Intervals are
// replaced all at once: parts of one can't be.
func exchange(c *nftables.Conn, sets map[string]*nftables.Set, before, after elements) error {
	for name, s := range sets {
		gone, come := difference(before[name], after[name]), difference(after[name], before[name])
		if s.Interval && len(gone)+len(come) > 0 {
			c.FlushSet(s)
			gone, come = nil, after[name]
		}
		if err := deleteElements(c, s, gone); err != nil {
			return err
		}
		if err := addElements(c, s, come); err != nil {
			return err
		}
	}
	return nil
}
