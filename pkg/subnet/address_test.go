package subnet

import (
	"math"
	"net/netip"
	"testing"
)

func TestAddressesAreNumbers(t *testing.T) {
	for _, c := range []struct {
		base, a string
		n       uint64
	}{
		{"10.0.0.0", "10.0.0.0", 0}, {"10.0.0.255", "10.0.1.0", 1}, {"0.0.0.0", "255.255.255.255", math.MaxUint32},
		{"fd00::", "fd00::1:0", 1 << 16}, {"fd00::ffff:ffff:ffff:ffff", "fd00:0:0:1::", 1}, {"fd00::1", "fd00::1:0:0:0", 1<<48 - 1},
	} {
		base, a := netip.MustParseAddr(c.base), netip.MustParseAddr(c.a)
		if got := Offset(base, a); got != c.n {
			t.Errorf("%s is %d above %s, want %d", a, got, base, c.n)
		}
		if got := Add(base, c.n); got != a {
			t.Errorf("%s + %d is %s, want %s", base, c.n, got, a)
		}
	}
	if Offset(netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.1")) != 0 {
		t.Error("an address below another one lies above it")
	}
	if Offset(netip.MustParseAddr("fd00::"), netip.MustParseAddr("fe00::")) != math.MaxUint64 {
		t.Error("what no number holds is held by one")
	}
}

func TestLast(t *testing.T) {
	for p, want := range map[string]string{
		"10.0.0.0/24": "10.0.0.255", "10.0.0.4/30": "10.0.0.7", "10.0.0.1/32": "10.0.0.1", "0.0.0.0/0": "255.255.255.255",
		"fd00::/64": "fd00::ffff:ffff:ffff:ffff", "fd00::1/128": "fd00::1", "fd00::/61": "fd00:0:0:7:ffff:ffff:ffff:ffff",
	} {
		if got := Last(netip.MustParsePrefix(p)); got != netip.MustParseAddr(want) {
			t.Errorf("%s ends with %s, want %s", p, got, want)
		}
	}
}

func TestFreeFrom(t *testing.T) {
	taken := []uint32{5, 6, 8, 9}
	for _, c := range []struct {
		first, last, want uint32
		ok                bool
	}{{5, 9, 7, true}, {0, 9, 0, true}, {8, 9, 0, false}, {8, 10, 10, true}, {6, 6, 0, false}, {7, 7, 7, true}} {
		p, ok := FreeFrom(c.first, c.last, len(taken), func(i int) uint32 { return taken[i] })
		if ok != c.ok || ok && Number(p) != c.want {
			t.Errorf("from %d to %d: %s %v, want %d %v", c.first, c.last, p, ok, c.want, c.ok)
		}
	}
}
