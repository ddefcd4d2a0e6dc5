package probe

import (
	"context"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/drover/drover/pkg/testenv"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pair is this host and another one on a link eth0; the test's thread lives in the first.
type pair struct {
	t           *testing.T
	here, there netns.NsHandle
}

func newPair(t *testing.T) *pair {
	t.Helper()
	testenv.Root(t)
	runtime.LockOSThread() // ends with the test's goroutine
	p := &pair{t: t}
	var err error
	p.there, err = netns.New()
	must(t, err)
	p.here, err = netns.New()
	must(t, err)
	t.Cleanup(func() { _, _ = p.here.Close(), p.there.Close() })
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.there)}))
	p.run("ip addr add 10.10.1.1/24 dev eth0; ip link set eth0 up; ip link set lo up; ip addr add 10.210.1.1/24 dev lo; ip route add 10.210.2.0/24 via 10.10.1.2")
	p.on("ip addr add 10.10.1.2/24 dev eth0; ip link set eth0 up; ip link set lo up; ip addr add 10.210.2.1/24 dev lo; ip route add 10.210.1.0/24 via 10.10.1.1")
	return p
}

func (p *pair) run(script string) {
	p.t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// on runs a script on the other host.
func (p *pair) on(script string) {
	p.t.Helper()
	must(p.t, netns.Set(p.there))
	p.run(script)
	must(p.t, netns.Set(p.here))
}

// other is the other host as a node.
var other = Target{Link: "eth0", Source: netip.MustParseAddr("10.10.1.1"), Addr: netip.MustParseAddr("10.10.1.2"), Behind: netip.MustParseAddr("10.210.2.1"), Inside: netip.MustParseAddr("10.210.1.1")}

func (p *pair) ask(within time.Duration, targets ...Target) (map[Target]Answer, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), within)
	defer cancel()
	return Ask(ctx, targets)
}

func TestANodeOnTheLinkAnswers(t *testing.T) {
	p := newPair(t)
	must(t, netns.Set(p.there))
	l, err := netlink.LinkByName("eth0")
	must(t, err)
	must(t, netns.Set(p.here))
	nobody := Target{Link: "eth0", Source: other.Source, Addr: netip.MustParseAddr("10.10.1.9"), Behind: netip.MustParseAddr("10.210.9.1"), Inside: other.Inside}
	got, err := p.ask(2*time.Second, other)
	if err != nil || len(got) != 1 || got[other] != (Answer{MAC(l.Attrs().HardwareAddr), true}) {
		t.Fatalf("%v, %v", got, err)
	}
	if got, err = p.ask(500*time.Millisecond, other, nobody); err != nil || len(got) != 1 || !got[other].Takes {
		t.Errorf("beside one that is not there: %v, %v", got, err)
	}
}

func TestWhatDoesNotProveAnything(t *testing.T) {
	for what, script := range map[string]string{
		"its address is another host's": "ip addr del 10.210.2.1/24 dev lo",
		"a router answers for it":       "ip addr del 10.210.2.1/24 dev lo; ip addr del 10.10.1.2/24 dev eth0; ip addr add 10.10.1.254/24 dev eth0; ip link add far type veth peer name other; ip link set far up; ip link set other up; ip route add 10.10.1.2 dev far; sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.eth0.proxy_arp=1 net.ipv4.neigh.eth0.proxy_delay=0",
		"what is sent there is dropped": "nft add table ip f; nft add chain ip f i '{ type filter hook prerouting priority 0; }'; nft add rule ip f i ip daddr 10.208.0.0/12 drop",
		"what it sends is dropped":      "nft add table ip f; nft add chain ip f o '{ type filter hook output priority 0; }'; nft add rule ip f o ip saddr 10.208.0.0/12 drop",
		"only small packets arrive":     "nft add table ip f; nft add chain ip f i '{ type filter hook prerouting priority 0; }'; nft add rule ip f i meta length \\> 1400 drop",
	} {
		t.Run(what, func(t *testing.T) {
			p := newPair(t)
			p.on(script)
			if got, err := p.ask(300*time.Millisecond, other); err != nil || len(got) != 0 {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

// A node that does not take containers' packets from the link is on it nevertheless. How
// its answer comes does not matter.
func TestWhetherANodeTakesContainersPackets(t *testing.T) {
	for what, c := range map[string]struct {
		script string
		want   bool
	}{
		"it takes none":          {"nft add table ip f; nft add chain ip f i '{ type filter hook prerouting priority 0; }'; nft add rule ip f i ip saddr 10.210.1.0/24 drop", false},
		"it answers another way": {"ip route del 10.210.1.0/24; ip link add tun type vxlan id 1 remote 10.10.1.1 dstport 4789; ip link set tun up; ip addr add 172.16.0.2/24 dev tun; ip route add 10.210.1.0/24 via 172.16.0.1", true},
		"it has no route back":   {"ip route del 10.210.1.0/24; ip route add unreachable 10.210.1.0/24", false},
	} {
		t.Run(what, func(t *testing.T) {
			p := newPair(t)
			p.on(c.script)
			p.run("ip link add tun type vxlan id 1 remote 10.10.1.2 dstport 4789; ip link set tun up; ip addr add 172.16.0.1/24 dev tun; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.tun.rp_filter=0")
			got, err := p.ask(500*time.Millisecond, other)
			if a, ok := got[other]; err != nil || !ok || a.Takes != c.want {
				t.Errorf("%v, %v; want %v", got, err, c.want)
			}
		})
	}
}

func TestLinksThatAreNone(t *testing.T) {
	p := newPair(t)
	for link, want := range map[string]string{"gone": "no such network interface", "lo": "it is no Ethernet link"} {
		x := other
		x.Link = link
		got, err := p.ask(2*time.Second, x, other)
		if err == nil || !strings.Contains(err.Error(), want) || len(got) != 1 {
			t.Errorf("%s: %v, %v", link, got, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	nobody := other
	nobody.Addr = netip.MustParseAddr("10.10.1.9")
	start := time.Now()
	if got, err := Ask(ctx, []Target{nobody}); err != nil || len(got) != 0 || time.Since(start) > 5*time.Second {
		t.Errorf("canceled: %v, %v after %v", got, err, time.Since(start))
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 60))
	c := &conversation{answers: map[Target]Answer{}}
	l := &link{}
	f.Fuzz(func(_ *testing.T, b []byte) {
		c.take(frame{on: l, b: b})
		c.take(frame{b: b})
	})
}
