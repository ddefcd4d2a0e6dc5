package routes

import (
	"net"
	"net/netip"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"testing"

	vish "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/pkg/testenv"
)

// host moves the test into a namespace with one link that leads elsewhere, up0.
func host(t testing.TB) {
	t.Helper()
	testenv.Root(t)
	runtime.LockOSThread() // ends with the test's goroutine
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { _ = ns.Close() })
	must(t, vish.LinkAdd(&vish.Veth{LinkAttrs: vish.LinkAttrs{Name: "up0"}, PeerName: "up1"}))
	for _, name := range []string{"lo", "up0", "up1"} {
		l, err := vish.LinkByName(name)
		must(t, err)
		must(t, vish.LinkSetUp(l))
	}
	run(t, "ip", "addr", "add", "10.10.1.1/24", "dev", "up0")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// example has one of each.
func example() Picture {
	p := NewPicture()
	p.Links["dvn1"] = Link{MAC: MAC{2, 0x43, 0, 0, 0, 1}, Addrs: []netip.Prefix{prefix("10.220.0.1/32"), prefix("fe80::1/64")},
		Sysctls: map[string]string{"ipv4/conf/dvn1/proxy_arp": "1", "ipv6/conf/dvn1/disable_ipv6": "0"}}
	p.Links["dvx"] = Link{MAC: MAC{2, 0x44, 10, 210, 1, 1}, MTU: 1450, Port: 4789, Addrs: []netip.Prefix{prefix("10.210.1.1/32")}}
	p.Routes[prefix("10.220.0.0/20")] = Route{Unreachable: true}
	p.Routes[prefix("10.220.0.0/26")] = Route{Dev: "dvn1", Src: addr("10.220.0.1")}
	p.Routes[prefix("10.220.0.64/26")] = Route{Dev: "up0", Via: addr("10.10.1.2"), Src: addr("10.210.1.1")}
	p.Routes[prefix("10.220.0.128/26")] = Route{Dev: "dvx", Via: addr("10.210.3.1"), Src: addr("10.210.1.1"), To: addr("10.10.2.3"), From: addr("10.10.1.1")}
	p.Routes[prefix("10.220.0.192/26")] = Route{Dev: "dvx", Via: addr("10.210.3.1"), Src: addr("10.210.1.1"), To: addr("fd10::3")}
	p.Routes[prefix("10.220.9.9/32")] = Route{Dev: "dvn1", Src: addr("10.220.0.1")}
	p.Routes[prefix("fd20::/64")] = Route{Unreachable: true}
	p.Routes[prefix("fd20::40/122")] = Route{Dev: "dvn1"}
	p.Routes[prefix("fd20::80/122")] = Route{Dev: "dvx", Via: addr("fe80::44:0:0"), To: addr("10.10.2.3"), From: addr("10.10.1.1")}
	p.Returns[0x0ad20301] = Route{Dev: "dvx", Via: addr("10.210.3.1"), To: addr("10.10.2.3"), From: addr("10.10.1.1")}
	p.Returns[0x0ad20201] = Route{Dev: "up0", Via: addr("10.10.1.2")}
	p.Gated = true
	p.Neighbours[Place{"dvx", addr("10.210.3.1")}] = MAC{2, 0x44, 10, 210, 3, 1}
	p.Neighbours[Place{"dvx", addr("fe80::44:0:0")}] = MAC{2, 0x44, 10, 210, 3, 1}
	return p
}

// bring applies a picture, and checks that the kernel has it then.
func bring(t testing.TB, want Picture) Changes {
	t.Helper()
	have, err := Read(want, "dvn")
	must(t, err)
	c := Compare(have, want)
	must(t, c.Apply())
	if have, err = Read(want, "dvn"); err != nil || !Compare(have, want).None() {
		t.Fatalf("afterwards it lacks %+v, %v", Compare(have, want), err)
	}
	return c
}

func TestTheKernelBecomesWhatIsWanted(t *testing.T) {
	host(t)
	want := example()
	bring(t, want)
	have, err := Read(want, "dvn")
	must(t, err)
	if !reflect.DeepEqual(have.Returns, want.Returns) || !have.Gated {
		t.Errorf("it has %+v, want %+v", have.Returns, want.Returns)
	}
	if !reflect.DeepEqual(have.Routes, want.Routes) || !reflect.DeepEqual(have.Neighbours, want.Neighbours) {
		t.Errorf("it has\n%+v\n%+v\nwant\n%+v\n%+v", have.Routes, have.Neighbours, want.Routes, want.Neighbours)
	}
	if c := bring(t, want); !c.None() {
		t.Errorf("a second time it changes %+v", c)
	}
	for _, broken := range []string{
		"ip rule del pref 7700", "ip rule del pref 7702", "ip rule del fwmark 0xad20301", "ip route flush table 181535489", "ip route replace default dev lo table 181535489 metric 77 proto 77",
		"ip rule add fwmark 7 pref 7701 table 7 protocol 77", "ip route add default dev up0 table 7 metric 77 proto 77",
		"ip link del dvn1", "ip link del dvx", "ip link set dvn1 down", "ip link set dvx down", "ip addr del 10.220.0.1/32 dev dvn1",
		"ip route del 10.220.0.64/26", "ip route del unreachable 10.220.0.0/20", "ip -6 route del fd20::80/122", "ip neigh del 10.210.3.1 dev dvx",
		"ip route replace 10.220.0.64/26 via 10.10.1.9 dev up0 metric 77 proto 77", "ip link set dvn1 address 02:00:00:00:00:01", "ip link set dvx mtu 1400",
		"sysctl -qw net.ipv4.conf.dvn1.proxy_arp=0", "ip route add 10.220.1.0/24 dev dvn1 metric 77 proto 77", "ip link add dvn9 type bridge",
		"ip -6 route add fd20:1::/64 dev dvn1 metric 77 proto 77",
	} {
		run(t, strings.Fields(broken)...)
		if c := bring(t, want); c.None() {
			t.Errorf("%s: nothing was mended", broken)
		}
	}
}

// A route changes from any kind to any other.
func TestRoutesChangePlaces(t *testing.T) {
	host(t)
	for _, dst := range []string{"10.220.0.0/26", "fd20::/122"} {
		want := example()
		var kinds []Route
		for p, r := range want.Routes {
			if p.Addr().Is4() == prefix(dst).Addr().Is4() && p.IsSingleIP() == false {
				kinds = append(kinds, r)
			}
		}
		for _, a := range kinds {
			for _, b := range kinds {
				want.Routes[prefix(dst)] = a
				bring(t, want)
				want.Routes[prefix(dst)] = b
				bring(t, want)
			}
		}
	}
}

// The host's own routes are never touched, not even where a user's network has the same
// addresses.
func TestOthersRoutesStay(t *testing.T) {
	host(t)
	run(t, "ip", "route", "add", "10.50.0.0/16", "via", "10.10.1.9")
	run(t, "ip", "link", "add", "dvnic0", "type", "bridge")
	run(t, "ip", "link", "add", "dvn7", "type", "veth", "peer", "name", "other7")
	before := run(t, "ip", "route")
	want := example()
	want.Routes[prefix("10.10.1.0/24")] = Route{Unreachable: true}
	want.Routes[prefix("10.50.0.0/16")] = Route{Dev: "dvn1", Src: addr("10.220.0.1")}
	bring(t, want)
	for _, to := range []string{"10.10.1.7", "10.50.1.1"} {
		if got := run(t, "ip", "route", "get", to); !strings.Contains(got, "dev up0") {
			t.Errorf("%s goes by %s", to, got)
		}
	}
	bring(t, NewPicture())
	if after := run(t, "ip", "route"); after != before {
		t.Errorf("routes were\n%s\nare\n%s", before, after)
	}
	for _, others := range []string{"dvnic0", "dvn7"} {
		if _, err := net.InterfaceByName(others); err != nil {
			t.Errorf("%s of somebody else is gone", others)
		}
	}
	if _, err := net.InterfaceByName("dvn1"); err == nil {
		t.Error("the bridge is left")
	}
}

func TestALinkOfAnotherKindIsNotTakenOver(t *testing.T) {
	host(t)
	run(t, "ip", "link", "add", "dvn1", "type", "veth", "peer", "name", "other")
	want := example()
	have, err := Read(want, "dvn")
	must(t, err)
	if err := Compare(have, want).Apply(); err == nil || !strings.Contains(err.Error(), "dvn1 is a veth, not a bridge") {
		t.Errorf("got %v", err)
	}
	// What does not need it is there.
	if have, err = Read(want, "none"); err != nil || have.Routes[prefix("10.220.0.64/26")].Dev != "up0" {
		t.Errorf("other routes are %v, %v", have.Routes, err)
	}
}

func FuzzDecode(f *testing.F) {
	index, name := map[string]int{"dvn1": 1, "dvx": 2, "up0": 3}, map[int]string{1: "dvn1", 2: "dvx", 3: "up0"}
	for dst, r := range example().Routes {
		b, err := r.encode(dst, index)
		must(f, err)
		if d, got, ok, err := decodeRoute(b, name); d != dst || got != r || !ok || err != nil {
			f.Errorf("%v %+v became %v %+v, %v %v", dst, r, d, got, ok, err)
		}
		f.Add(b)
	}
	for p, m := range example().Neighbours {
		b, err := p.encode(m, index)
		must(f, err)
		if q, got, ok, err := decodeNeighbour(b, name); p != q || got != m || !ok || err != nil {
			f.Errorf("%v %v became %v %v, %v %v", p, m, q, got, ok, err)
		}
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _, _, _ = decodeRoute(b, name)
		_, _, _, _ = decodeNeighbour(b, name)
	})
}

// What 10,000 routes cost from nothing, and a look at them.
func BenchmarkRoutes(b *testing.B) {
	want := example()
	for i := range 10_000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + i>>10), byte(i >> 2), byte(i << 6)}), 26)
		want.Routes[p] = Route{Dev: "dvx", Via: addr("10.210.3.1"), Src: addr("10.210.1.1"), To: addr("10.10.2.3"), From: addr("10.10.1.1")}
	}
	b.Run("from nothing", func(b *testing.B) {
		host(b)
		for b.Loop() {
			b.StopTimer()
			bring(b, example())
			b.StartTimer()
			have, err := Read(want, "dvn")
			must(b, err)
			must(b, Compare(have, want).Apply())
		}
	})
	b.Run("a look", func(b *testing.B) {
		host(b)
		bring(b, want)
		for b.Loop() {
			if have, err := Read(want, "dvn"); err != nil || !Compare(have, want).None() {
				b.Fatal("it is not as it should be", err)
			}
		}
	})
}

// On a kernel without IPv6, and on links too small for it, there is nothing to set.
func TestAHostWithoutIPv6(t *testing.T) {
	host(t)
	must(t, unix.Unshare(unix.CLONE_NEWNS)) // of this thread, which ends with the test
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(t, unix.Mount("none", "/proc/sys/net/ipv6", "tmpfs", 0, ""))
	want := example()
	bring(t, want)
	if c := bring(t, want); !c.None() {
		t.Errorf("a second time it changes %+v", c)
	}
}
