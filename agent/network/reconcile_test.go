package network

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/drover/drover/agent/network/routes"
)

// becomesAsItShould waits until a host's kernel has what it should.
func (l *lab) becomesAsItShould(host, what string) {
	l.t.Helper()
	var diff []string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		var err error
		l.at(host, func() { diff, err = l.nets[host].Check(l.t.Context()) })
		must(l.t, err)
		if len(diff) == 0 {
			return
		}
	}
	l.t.Fatalf("%s: on %s\n%s", what, host, strings.Join(diff, "\n"))
}

// reaches waits until who is wanted answers, for a link that was down needs its time.
func (l *lab) reaches(what, from, addr, want string) {
	l.t.Helper()
	var who string
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if who, _, err = l.ask(from, "tcp", addr); who == want {
			return
		}
	}
	l.t.Errorf("%s: from %s %s answers %q, %v; want %s", what, from, addr, who, err, want)
}

func TestWhatOthersBreakIsMended(t *testing.T) {
	l := newLab(t)
	for _, h := range []string{"a", "b", "c"} {
		l.run("red-"+h, h, l.to("red", h, 10))
	}
	l.run("bridge-a", "a", Connection{Network: Bridge})
	l.becomesAsItShould("a", "at first")
	for _, broken := range []string{
		"ip link del dvn1", "ip link del dvx", "ip link set dvn1 down", "ip link set drv0 down", "ip link del drv0",
		"ip addr del 10.220.0.1/32 dev dvn1", "ip link set dvn1 address 02:00:00:00:00:01", "ip link set dvx mtu 1400",
		"ip route del 10.220.0.0/26", "ip route del 10.220.0.128/26", "ip route del unreachable 10.220.0.0/20", "ip -6 route del fd20::80/122",
		"ip route replace 10.220.0.128/26 via 10.10.1.254 dev eth0 metric 77 proto 77", "ip route add 10.220.0.200/32 dev dvn1 metric 77 proto 77",
		"ip neigh del 10.210.3.1 dev dvx", "ip link set eth0 down; ip link set eth0 up; ip route add default via 10.10.1.254",
		"ip link add dvn9 type bridge", "nft flush ruleset", "nft delete table bridge drover_drv0", "nft flush chain inet drover_drv0 guard",
	} {
		l.sh("a", broken)
		l.becomesAsItShould("a", broken)
		for _, to := range []string{"red-c", "red-b"} {
			l.reaches(broken, "red-a", l.addr4(to, "red")+":80", to)
		}
		l.reaches(broken+", over IPv6", "red-b", "["+l.addr6("red-a", "red")+"]:80", "red-a")
		if who, _, err := l.ask("bridge-a", "tcp", "10.10.1.1:81"); who == "" && !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: the default bridge: %v", broken, err)
		}
	}
}

// What is not reported is found by a look.
func TestCheckNamesWhatIsWrong(t *testing.T) {
	l := newLab(t)
	l.run("red-a", "a", l.to("red", "a", 10))
	l.becomesAsItShould("a", "at first")
	l.at("a", func() { must(t, l.nets["a"].links.Close()); must(t, l.nets["a"].fire.Close()) }) // nothing is mended
	for broken, want := range map[string]string{
		"ip link set dvn2 down":                                      "link dvn2 is not as it should be: it is down, or of another kind",
		"ip link del dvn3":                                           "link dvn3 is missing",
		"ip link add dvn9 type bridge":                               "link dvn9 is left of a network that is not here",
		"sysctl -qw net.ipv4.conf.dvn1.proxy_arp=0":                  "link dvn1 is not as it should be: net/ipv4/conf/dvn1/proxy_arp is 0, not 1",
		"ip route del 10.220.0.128/26":                               "route 10.220.0.128/26 is missing: it should go by dvx to 10.10.2.3",
		"ip route add 10.220.0.200/32 dev dvn1 metric 77 proto 77":   "route 10.220.0.200/32 is left: it goes by dvn1",
		"ip route replace 10.220.0.0/20 dev drv0 metric 77 proto 77": "route 10.220.0.0/20 goes by drv0, not by nothing",
		"ip neigh del 10.210.3.1 dev dvx":                            "neighbour 10.210.3.1 on dvx is missing",
		"ip neigh add 10.210.9.1 lladdr 02:00:00:00:00:09 dev dvx":   "neighbour 10.210.9.1 on dvx is left",
		"ip link set dvrnoname nomaster":                             "is not on bridge dvn1",
		"nft add element inet drover_drv0 nodes '{ 10.9.9.9 }'":      "firewall: the set nodes holds 4 elements",
		"nft delete element bridge drover_drv0 ports '{ dvrnoname . 02:42:0a:dc:00:0a . 10.220.0.10 }'":    "firewall: the set ports holds 0 elements",
		"nft add table ip x; nft add chain ip x f '{ type filter hook forward priority 0; policy drop; }'": "firewall: chain f of table ip x has not drover's rules",
	} {
		l.sh("a", strings.ReplaceAll(broken, "dvrnoname", l.box["red-a"].Endpoints[0].Link))
		var diff []string
		var err error
		l.at("a", func() { diff, err = l.nets["a"].Check(t.Context()) })
		if err != nil || !slices.ContainsFunc(diff, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("%s: %v, %q; want %q", broken, err, diff, want)
		}
	}
	l.sh("a", "nft delete table ip x")
	l.at("a", func() { must(t, l.nets["a"].Apply(t.Context(), l.topo["a"])) })
	var diff []string
	l.at("a", func() {
		_, _ = l.nets["a"].fabric.repair()
		_, _ = l.nets["a"].nft.reconcile(false)
		diff, _ = l.nets["a"].Check(t.Context())
	})
	if len(diff) > 0 {
		t.Errorf("mended, and yet: %q", diff)
	}
}

// A container that goes on while its agent is away, and after it came back, also one that
// was told nothing yet.
func TestNetworksGoOnOverARestart(t *testing.T) {
	l := newLab(t)
	l.run("red-a", "a", l.to("red", "a", 10))
	l.run("red-c", "c", l.to("red", "c", 10))
	reached := func(when string) {
		t.Helper()
		for _, to := range []string{l.addr4("red-c", "red") + ":80", "[" + l.addr6("red-c", "red") + "]:80"} {
			if who, _, err := l.ask("red-a", "tcp", to); who != "red-c" {
				t.Errorf("%s: %s answers %q, %v", when, to, who, err)
			}
		}
	}
	reached("at first")
	before := l.sh("a", "ip route; ip -6 route show proto 77; ip -br link")
	l.at("a", func() { must(t, l.nets["a"].Close()) })
	reached("without an agent")
	l.open("a")
	reached("after a restart")
	if after := l.sh("a", "ip route; ip -6 route show proto 77; ip -br link"); after != before {
		t.Errorf("was\n%s\nis\n%s", before, after)
	}
	l.becomesAsItShould("a", "after a restart")
	l.at("a", func() { must(t, l.nets["a"].Close()) })
	o := l.opts["a"]
	o.Topology = Topology{}
	l.opts["a"] = o
	l.open("a")
	if after := l.sh("a", "ip route; ip -6 route show proto 77; ip -br link"); after != before {
		t.Errorf("told nothing, it has\n%s\nwas\n%s", after, before)
	}
	l.topo["a"] = l.topology("a")
	l.change(func(*Topology) {}, "a")
	reached("told again")
}

// Networks come and go, and leave nothing.
func TestNetworksComeAndGo(t *testing.T) {
	l := newLab(t)
	none := func(t *Topology) { t.Networks = nil }
	l.change(none, "a", "b", "c")
	l.becomesAsItShould("a", "without networks")
	if out := l.sh("a", "ip -br link; ip route show proto 77; ip -6 route show proto 77"); strings.Contains(out, "dvn") || strings.Contains(out, "10.220") || strings.Contains(out, "fd20") {
		t.Errorf("left is\n%s", out)
	}
	if _, err := l.nets["a"].Attach(t.Context(), name(1), []Connection{l.to("red", "a", 10)}); err == nil {
		t.Error("a container is connected to a network that is not here")
	}
	l.change(func(x *Topology) { x.Networks = l.topology(x.Self).Networks }, "a", "c")
	l.run("red-a", "a", l.to("red", "a", 10))
	l.run("red-c", "c", l.to("red", "c", 10))
	if who, _, err := l.ask("red-a", "tcp", l.addr4("red-c", "red")+":80"); who != "red-c" {
		t.Errorf("red-c answers %q, %v", who, err)
	}
	l.change(func(x *Topology) { x.Peers = x.Peers[:1]; x.Networks = nil }, "a") // the others left the fleet
	if out := l.sh("a", "ip -br link"); strings.Contains(out, "dvx") {
		t.Errorf("a node alone has a tunnel:\n%s", out)
	}
}

// A node that comes back at another address is reached there from the next topology on.
func TestANodeChangesItsAddress(t *testing.T) {
	l := newLab(t)
	l.run("red-a", "a", l.to("red", "a", 10))
	l.run("red-c", "c", l.to("red", "c", 10))
	l.sh("c", "ip addr add 10.10.2.33/24 dev eth0; ip addr del 10.10.2.3/24 dev eth0; ip addr show dev eth0 | grep -q 10.10.2.33 || ip addr add 10.10.2.33/24 dev eth0; ip route replace default via 10.10.2.254")
	l.change(func(x *Topology) { x.Peers[2].Addr = addrs("10.10.2.33")[0] }, "a", "b", "c")
	for _, from := range []string{"red-a", "red-c"} {
		to := map[string]string{"red-a": "red-c", "red-c": "red-a"}[from]
		if who, _, err := l.ask(from, "tcp", l.addr4(to, "red")+":80"); who != to {
			t.Errorf("from %s: %q, %v", from, who, err)
		}
	}
}

func TestContainersJoinAndLeaveNetworksWhileTheyRun(t *testing.T) {
	l := newLab(t)
	l.run("one", "a", l.to("red", "a", 10))
	l.run("red-c", "c", l.to("red", "c", 10))
	l.run("blue-c", "c", l.to("blue", "c", 10))
	l.run("dark-c", "c", l.to("dark", "c", 10))
	l.serve("outside", ":80")
	reaches := func(what string, want map[string]bool) {
		t.Helper()
		for to, ok := range want {
			addr := "198.51.100.1:80"
			if to != "outside" {
				addr = l.box[to].Endpoints[0].IPv4().Addr().String() + ":80"
			}
			if who, _, err := l.ask("one", "tcp", addr); (who == to) != ok {
				t.Errorf("%s: %s answers %q, %v; want an answer: %v", what, to, who, err, ok)
			}
		}
	}
	connect := func(c Connection) {
		t.Helper()
		l.at("a", func() {
			s, err := l.nets["a"].Connect(t.Context(), l.box["one"].ID, c)
			must(t, err)
			l.box["one"] = s
		})
	}
	leave := func(network string) {
		t.Helper()
		l.at("a", func() { must(t, l.nets["a"].Disconnect(t.Context(), l.box["one"].ID, network)) })
		l.box["one"] = l.nets["a"].Get(l.box["one"].ID)
	}
	reaches("in red", map[string]bool{"red-c": true, "blue-c": false, "dark-c": false, "outside": true})
	connect(l.to("blue", "a", 10))
	connect(l.to("dark", "a", 10))
	connect(l.to("dark", "a", 10)) // again
	reaches("in all", map[string]bool{"red-c": true, "blue-c": true, "dark-c": true, "outside": true})
	if got := l.sh("one", "ip -br link | cut -d@ -f1 | cut -d' ' -f1"); got != "lo\neth0\neth1\neth2\n" {
		t.Errorf("its links are %q", got)
	}
	leave("red")
	reaches("without red", map[string]bool{"red-c": false, "blue-c": true, "dark-c": true, "outside": true})
	leave("blue")
	leave("blue")
	reaches("in dark", map[string]bool{"red-c": false, "blue-c": false, "dark-c": true, "outside": false})
	connect(l.to("red", "a", 11))
	if e := l.box["one"].in("red"); e.Name != "eth0" || e.Link == l.box["one"].in("dark").Link {
		t.Errorf("it has %+v", e)
	}
	reaches("in red again", map[string]bool{"red-c": true, "blue-c": false, "dark-c": true, "outside": true})
	l.becomesAsItShould("a", "afterwards")
	// A restart of the agent finds it as it is.
	before := l.box["one"]
	l.at("a", func() { must(t, l.nets["a"].Close()) })
	l.open("a")
	l.at("a", func() {
		s, err := l.nets["a"].Attach(t.Context(), before.ID, nil)
		if err != nil || len(s.Endpoints) != 2 || s.Endpoints[1].Name != "eth0" {
			t.Errorf("after a restart it is %+v, %v", s, err)
		}
	})
	reaches("after a restart", map[string]bool{"red-c": true, "blue-c": false, "dark-c": true, "outside": true})
	connect(Connection{Network: Bridge, GatewayPriority: 1})
	if got := l.sh("one", "ip route show default"); !strings.Contains(got, "10.210.1.1") {
		t.Errorf("the default route with the highest priority is %s", got)
	}
	l.at("a", func() { must(t, l.nets["a"].Detach(t.Context(), before.ID)) })
	if out := l.sh("a", "ip -br link"); strings.Contains(out, vethPrefix) {
		t.Errorf("left is\n%s", out)
	}
}

// A tunnel that can't be made takes only those with it that need it.
func TestWhatCannotBeMadeKeepsNoNodeFromWorking(t *testing.T) {
	w := newWorld(t)
	must(t, w.n.Destroy(t.Context()))
	must(t, w.n.Close())
	w.sh("ip link add other type vxlan id 9 remote 10.99.0.2 dstport 4789; ip link set other up")
	w.o.Topology, w.o.Subnet = three(), netip.MustParsePrefix("10.210.1.0/24")
	for i := range 50 {
		w.o.Topology.Networks[0].Routes = append(w.o.Topology.Networks[0].Routes, Route{netip.MustParsePrefix(fmt.Sprintf("10.220.8.%d/32", i)), "c"})
	}
	w.open()
	a, err := w.n.Attach(t.Context(), name(1), []Connection{{Network: Bridge, Ports: publish(" tcp 8080 80")}, {Network: "red", Addresses: addrs("10.220.0.10")}})
	must(t, err)
	w.answer(a, 80)
	w.reached("without a tunnel", a, hostIP+":8080")
	err = w.n.Apply(t.Context(), w.o.Topology)
	if err == nil || len(err.Error()) > 1000 || !strings.Contains(err.Error(), "dvx") {
		t.Errorf("got %v", err)
	}
	w.sh("ip link del other")
	must(t, w.n.Apply(t.Context(), w.o.Topology))
	if diff, err := w.n.Check(t.Context()); err != nil || len(diff) > 0 {
		t.Errorf("with a tunnel there differs %q, %v", diff, err)
	}
}

func (w *world) sh(script string) {
	w.t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		w.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func TestASandboxWithoutNetworksHasOnlyItsLoopback(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), nil)
	must(t, err)
	links, err := in(w.ns(a), func() (int, error) { l, err := net.Interfaces(); return len(l), err })
	if err != nil || links != 1 {
		t.Errorf("%d links, %v", links, err)
	}
	must(t, w.n.Close())
	w.open()
	if again, err := w.n.Attach(t.Context(), name(1), nil); err != nil || !linked(again) {
		t.Errorf("after a restart: %+v, %v", again, err)
	}
}

// Where a network has addresses of the host's own links, or of hosts of the fleet, the
// host wins: it stays reachable, and says what it does not carry.
func TestANetworkDoesNotTakeTheHostsOwnAddresses(t *testing.T) {
	l := newLab(t)
	l.run("red-a", "a", l.to("red", "a", 10))
	l.run("red-c", "c", l.to("red", "c", 10))
	l.serve("a", ":81")
	l.serve("c", ":81")
	l.serve("outside", ":80")
	lan := subnet("10.10.1.0/24", "10.10.1.9")
	for i, s := range []Subnet{
		lan, subnet("10.10.1.128/25", "10.10.1.129"), subnet("10.10.0.0/16", "10.10.0.1"), subnet("0.0.0.0/0", "10.0.0.1"),
		subnet("10.10.2.0/29", "10.10.2.1"), subnet("10.210.3.128/25", "10.210.3.129"), subnet("10.220.1.0/24", "10.220.1.1"), subnet("fe80::/64", "fe80::9"),
	} {
		l.change(func(x *Topology) {
			x.Networks = append(x.Networks[:3:3], Fleet{ID: "hostile", Number: uint32(10 + i), Subnets: []Subnet{s}, Routes: []Route{{s.Prefix, "a"}}})
		}, "a")
		for _, c := range []struct{ from, to, want string }{
			{"stranger", "10.10.1.1:81", "a"}, {"a", "10.10.2.3:81", "c"}, {"c", "10.10.1.1:81", "a"}, {"a", "198.51.100.1:80", "outside"},
			{"red-a", l.addr4("red-c", "red") + ":80", "red-c"}, {"red-a", "198.51.100.1:80", "outside"},
		} {
			if who, _, err := l.ask(c.from, "tcp", c.to); who != c.want {
				t.Errorf("%v: from %s %s answers %q, %v", s.Prefix, c.from, c.to, who, err)
			}
		}
		l.at("a", func() {
			_, err := l.nets["a"].Attach(t.Context(), name(1), []Connection{{Network: "hostile", Addresses: []netip.Addr{s.Gateway.Next()}}})
			if err == nil || !strings.Contains(err.Error(), s.Prefix.String()) || len(err.Error()) > 250 {
				t.Errorf("%v: a container is connected to it: %v", s.Prefix, err)
			}
			diff, err := l.nets["a"].Check(t.Context())
			if err != nil || len(diff) != 1 || !strings.Contains(diff[0], s.Prefix.String()) {
				t.Errorf("%v: there differs %q, %v", s.Prefix, diff, err)
			}
		})
	}
	// A host that gets such addresses while the network is there wins too.
	l.change(func(x *Topology) {
		x.Networks = append(x.Networks[:3:3], Fleet{ID: "late", Number: 30, Subnets: []Subnet{subnet("10.10.7.0/24", "10.10.7.9")}, Routes: []Route{{prefixes("10.10.7.0/24")[0], "a"}}})
	}, "a")
	l.sh("a", "ip link show dvn30; ip addr add 10.10.7.1/24 dev eth0")
	l.sh("stranger", "ip addr add 10.10.7.100/24 dev eth0")
	l.reaches("the host's new address", "stranger", "10.10.7.1:81", "a")
	l.change(func(x *Topology) { x.Networks = x.Networks[:3] }, "a")
	l.becomesAsItShould("a", "without them")
	// A stranger's router advertisement takes no network from the fleet.
	l.sh("a", "ip addr add fd20::99:1/64 dev eth0 valid_lft 900 preferred_lft 900")
	l.at("a", func() { must(t, l.nets["a"].Apply(t.Context(), l.topo["a"])) })
	l.becomesAsItShould("a", "with an advertised prefix")
}

// Two nodes behind one address, and an address that a container has anyway: a set holds
// each once, and is as it should be.
func TestWhatIsNamedTwiceIsInASetOnce(t *testing.T) {
	w := newWorld(t)
	x := three()
	x.Peers[2].Addr = x.Peers[1].Addr
	must(t, w.n.Apply(t.Context(), x))
	must(t, w.n.fabric.setWays(map[string]way{"b": {dev: "up0", mac: routes.MAC{2}}, "c": {dev: "up0", mac: routes.MAC{2}}}))
	hw := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	_, err := w.n.Attach(t.Context(), name(1), []Connection{{Network: "red", Addresses: addrs("10.220.0.10", "fd20::10"), MAC: hw.String(), LinkLocal: []netip.Addr{linkLocal(hw)}}})
	must(t, err)
	for _, when := range []string{"at first", "built anew"} {
		if changed, err := w.n.nft.reconcile(false); changed || err != nil {
			t.Errorf("%s: what is as it should be is changed: %v, %v", when, changed, err)
		}
		nft(t, "flush ruleset\n")
		_, err = w.n.nft.reconcile(false)
		must(t, err)
	}
}

// An agent that dies while it connects a container leaves an endpoint in its file, and of
// the link nothing or a part. Who asks again gets all of it.
func TestAnInterruptedConnectionIsMadeAnew(t *testing.T) {
	l := newLab(t)
	l.run("one", "a", l.to("red", "a", 10))
	l.run("blue-c", "c", l.to("blue", "c", 10))
	for _, half := range []bool{false, true} {
		n := l.nets["a"]
		before := n.Get(l.box["one"].ID)
		n.mu.Lock()
		e, err := n.endpoint(before.ID, l.to("blue", "a", 10), before.Endpoints)
		n.mu.Unlock()
		must(t, err)
		e.Unfinished = true
		after := *before
		after.Endpoints = append(slices.Clone(before.Endpoints), e)
		must(t, n.save(&after))
		if half {
			l.at("a", func() {
				must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: e.Link}, PeerName: e.Name, PeerNamespace: netlink.NsFd(l.places["one"])}))
			})
		}
		l.at("a", func() { must(t, n.Close()) })
		l.open("a")
		n = l.nets["a"]
		l.at("a", func() {
			s, err := n.Connect(t.Context(), before.ID, l.to("blue", "a", 10))
			must(t, err)
			l.box["one"] = s
		})
		l.at("one", carried)
		if who, _, err := l.ask("one", "tcp", l.addr4("blue-c", "blue")+":80"); who != "blue-c" {
			t.Errorf("a part of the link was there: %v: %q answers, %v", half, who, err)
		}
		l.at("a", func() { must(t, n.Disconnect(t.Context(), before.ID, "blue")) })
		l.box["one"] = n.Get(before.ID)
	}
	l.becomesAsItShould("a", "afterwards")
}

// What another program does to a container's link while no agent runs is mended, even if
// something else can't be.
func TestLinksReturnToTheirBridges(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
	must(t, err)
	w.answer(a, 80)
	must(t, w.n.Close())
	w.sh("ip link set " + a.Endpoints[0].Link + " nomaster; ip link add other type vxlan id 9 remote 10.99.0.2 dstport 4789; ip link set other up")
	w.o.Topology = three() // whose tunnel can't be made
	w.open()
	w.reached("after a restart", a, hostIP+":8080")
	w.sh("ip link del drv0")
	w.reached("on a bridge made anew", a, hostIP+":8080")
}

// A start needs nothing of what a look at the host's network, or a change of it, holds.
func TestAStartDoesNotWaitForChangesOfTheHostsNetwork(t *testing.T) {
	w := newWorld(t)
	w.n.fabric.mu.Lock()
	defer w.n.fabric.mu.Unlock()
	_, err := w.n.Attach(t.Context(), name(1), on(nil))
	must(t, err)
}

// Over a link with less room than IPv6 needs, as VPNs have, nodes have a tunnel for IPv4.
func TestATunnelOverALinkWithLittleRoom(t *testing.T) {
	w := newWorld(t)
	w.sh("ip link set up0 mtu 1280")
	x := three()
	x.Peers[1].Addr, x.Peers[2].Addr = addrs("10.99.0.2")[0], addrs("10.99.0.3")[0]
	x.Networks = x.Networks[1:]
	must(t, w.n.Apply(t.Context(), x))
	if diff, err := w.n.Check(t.Context()); err != nil || len(diff) > 0 {
		t.Errorf("there differs %q, %v", diff, err)
	}
	if got := w.n.fabric.mtu(Fleet{}); got != 1230 {
		t.Errorf("what fits is %d", got)
	}
}
