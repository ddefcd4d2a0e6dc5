package network

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/agent/network/probe"
	"github.com/drover/drover/agent/network/routes"
)

func TestWaysFollowAnswers(t *testing.T) {
	mac, next := routes.MAC{2, 0, 0, 0, 0, 1}, routes.MAC{2, 0, 0, 0, 0, 2}
	taken, proven := way{dev: "eth0", mac: mac}, way{dev: "eth0", mac: mac, proven: true}
	type answer struct {
		probe.Answer
		ok bool
	}
	none, there, takes := answer{}, answer{probe.Answer{MAC: mac}, true}, answer{probe.Answer{MAC: mac, Takes: true}, true}
	for what, c := range map[string]struct {
		answers []answer
		want    way
	}{
		"nothing":                  {[]answer{none, none}, way{}},
		"it is there":              {[]answer{there}, taken},
		"it takes packets":         {[]answer{there, takes}, proven},
		"at once":                  {[]answer{takes}, proven},
		"two are lost":             {[]answer{takes, none, none}, proven},
		"two are lost, twice":      {[]answer{takes, none, none, takes, none, none}, proven},
		"it went":                  {[]answer{takes, none, none, none}, way{}},
		"it takes none any more":   {[]answer{takes, there, there, there}, way{}},
		"and is there again":       {[]answer{takes, there, there, there, there}, taken},
		"it has another link card": {[]answer{takes, {probe.Answer{MAC: next, Takes: true}, true}}, way{dev: "eth0", mac: next, proven: true}},
		"was there only":           {[]answer{there, none, none, none}, way{}},
	} {
		s := &scout{ways: map[string]way{}, misses: map[string]int{}}
		for _, a := range c.answers {
			s.heard("b", "eth0", a.Answer, a.ok)
		}
		if got := s.ways["b"]; got != c.want {
			t.Errorf("%s: %+v, want %+v", what, got, c.want)
		}
	}
}

// Nodes on one link use it, until what goes over it is lost, and from when it is not.
func TestALinkIsUsedWhileItCarriesPackets(t *testing.T) {
	l := newLab(t)
	for _, h := range []string{"a", "b", "c"} {
		l.sh(h, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
		l.run("red-"+h, h, l.to("red", h, 10))
	}
	reached := func(when string) {
		t.Helper()
		for _, from := range []string{"a", "b"} {
			to := map[string]string{"a": "red-b", "b": "red-a"}[from]
			if who, _, err := l.ask("red-"+from, "tcp", l.addr4(to, "red")+":80"); who != to {
				t.Errorf("%s: from %s %q answers, %v", when, from, who, err)
			}
		}
	}
	l.direct("a", "b")
	l.direct("b", "a")
	l.goes("a", "c", "dvx")
	reached("on the link")
	l.sh("r", "nft add table bridge cut; nft add chain bridge cut f '{ type filter hook forward priority 0; }'; nft add rule bridge cut f ip daddr 10.208.0.0/12 drop") // as clouds do
	l.goes("a", "b", "dvx")
	l.goes("b", "a", "dvx")
	reached("through the tunnel")
	l.sh("r", "nft delete table bridge cut")
	l.direct("a", "b")
	l.direct("b", "a")
	reached("on the link again")
	before := l.sh("a", "ip route show proto 77")
	l.at("a", func() { must(t, l.nets["a"].Close()) })
	l.open("a")
	if after := l.sh("a", "ip route show proto 77"); after != before {
		t.Errorf("a restart changes the ways to\n%s\nfrom\n%s", after, before)
	}
	reached("after a restart")
	l.becomesAsItShould("a", "after a restart")
}

// No packet is lost while ways change.
func TestWaysChangeWithoutLoss(t *testing.T) {
	l := newLab(t)
	for _, h := range []string{"a", "b"} {
		l.at(h, func() { must(t, l.nets[h].scout.Close()) })
		l.run("red-"+h, h, l.to("red", h, 10))
	}
	if who, _, err := l.ask("red-a", "udp", l.addr4("red-b", "red")+":80"); who != "red-b" {
		t.Fatalf("%q answers, %v", who, err)
	}
	l.goes("a", "b", "dvx")
	lost := l.pings("red-a", l.addr4("red-b", "red")+":80", func() {
		for _, h := range []string{"b", "a"} {
			l.at(h, func() {
				s, err := newScout(l.nets[h].fabric, l.opts[h].Log)
				must(t, err)
				l.nets[h].scout = s
			})
			time.Sleep(time.Second) // one knows of the other long before
		}
		l.direct("a", "b")
		l.direct("b", "a")
	})
	if lost > 0 {
		t.Errorf("%d datagrams were lost", lost)
	}
}

// pings sends a datagram every few milliseconds while f runs, and returns how many had no
// answer.
func (l *lab) pings(from, to string, f func()) (lost int) {
	l.t.Helper()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := in(l.places[from], func() (struct{}, error) {
			c, err := net.Dial("udp", to)
			if err != nil {
				return struct{}{}, err
			}
			defer c.Close()
			b := make([]byte, 100)
			for {
				select {
				case <-stop:
					return struct{}{}, nil
				case <-time.After(3 * time.Millisecond):
				}
				_, _ = io.WriteString(c, "?")
				_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				if _, err := c.Read(b); err != nil {
					lost++
				}
			}
		})
		done <- err
	}()
	f()
	close(stop)
	must(l.t, <-done)
	return lost
}

// A container that keeps its address on another node is found there at once by those of
// its network, also on the node where it was.
func TestAnAddressMoves(t *testing.T) {
	l := newLab(t)
	for _, h := range []string{"a", "b", "c"} {
		l.run("red-"+h, h, l.to("red", h, 10))
	}
	moving := Connection{Network: "red", Addresses: addrs("10.220.9.9", "fd20::9:9"), MAC: "02:42:0a:dc:09:09"}
	at := func(node string) func(*Topology) {
		return func(x *Topology) {
			rs := x.Networks[0].Routes
			for i := range rs {
				if rs[i].Prefix.IsSingleIP() {
					rs[i].Node = node
					if i+1 < len(rs) {
						rs[i+1].Node = node
					}
					return
				}
			}
			x.Networks[0].Routes = append(rs, Route{prefixes("10.220.9.9/32")[0], node}, Route{prefixes("fd20::9:9/128")[0], node})
		}
	}
	l.change(at("a"), "a", "b", "c")
	l.run("on-a", "a", moving)
	asks := func(want string) {
		t.Helper()
		for _, from := range []string{"red-a", "red-b", "red-c"} {
			for _, to := range []string{"10.220.9.9:80", "[fd20::9:9]:80"} {
				if who, _, err := l.ask(from, "tcp", to); who != want {
					t.Errorf("from %s to %s: %q answers, %v; want %s", from, to, who, err, want)
				}
			}
		}
	}
	asks("on-a")
	home := "a"
	for _, next := range []string{"c", "b", "a"} {
		l.at(home, func() { must(t, l.nets[home].Detach(t.Context(), l.box["on-"+home].ID)) })
		l.change(at(next), "a", "b", "c")
		l.run("on-"+next, next, moving)
		asks("on-" + next)
		home = next
	}
	// It also moves while no agent of its old node runs.
	l.direct("a", "b")
	l.direct("b", "a")
	l.at(home, func() { must(t, l.nets[home].Detach(t.Context(), l.box["on-"+home].ID)); must(t, l.nets[home].Close()) })
	l.change(at("b"), "b", "c")
	l.run("back-on-b", "b", moving)
	o := l.opts[home]
	o.Topology = l.topo[home]
	at("b")(&o.Topology)
	l.opts[home] = o
	l.open(home)
	asks("back-on-b")
}

func TestWaysAreShown(t *testing.T) {
	l := newLab(t)
	l.direct("a", "b")
	l.change(func(x *Topology) {
		x.Peers = append(x.Peers, Peer{ID: "d", Name: "d", Addr: addrs("10.10.1.77")[0], Subnet: prefixes("10.210.77.0/24")[0]}, Peer{ID: "e", Name: "e", Subnet: prefixes("10.210.78.0/24")[0]})
	}, "a")
	l.direct("b", "a")
	var ways []Way
	var err error
	l.at("a", func() { ways, err = l.nets["a"].Ways(t.Context()) })
	must(t, err)
	var got []string
	for _, w := range ways {
		if w.MTU > 0 && w.RTT <= 0 {
			t.Errorf("%s: it took %v", w.Peer, w.RTT)
		}
		got = append(got, fmt.Sprintf("%s by %s, %d", w.Peer, w.Link, w.MTU))
	}
	if s := strings.Join(got, "; "); s != "b by eth0, 1500; c by dvx, 1450; d by dvx, 0; e by , 0" {
		t.Errorf("ways are %s", s)
	}
	// Less fits on the way than the links say.
	l.sh("r", "ip link set to-c mtu 1400")
	l.at("a", func() { ways, err = l.nets["a"].Ways(t.Context()) })
	if err != nil || ways[1].MTU < 1280 || ways[1].MTU > 1350 {
		t.Errorf("%+v, %v", ways, err)
	}
}

// Nodes that can't be reached are shown too.
func TestWaysOfAHostThatReachesNobody(t *testing.T) {
	w := newWorld(t)
	must(t, w.n.Apply(t.Context(), Topology{Self: "a", Peers: []Peer{{ID: "b", Subnet: prefixes("10.210.2.0/24")[0]}}}))
	if ways, err := w.n.Ways(t.Context()); err != nil || len(ways) != 1 || ways[0].MTU != 0 || ways[0].Link != "" {
		t.Errorf("%+v, %v", ways, err)
	}
}
