package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/network/routes"
)

// frame is an Ethernet frame with a UDP datagram, of which everything can be a lie.
type frame struct {
	srcMAC, dstMAC routes.MAC
	src, dst       string
	port           uint16
	payload        []byte
	vlan           bool
}

func (f frame) bytes() []byte {
	src, dst := netip.MustParseAddr(f.src), netip.MustParseAddr(f.dst)
	b := append(append([]byte{}, f.dstMAC[:]...), f.srcMAC[:]...)
	if f.vlan {
		b = append(b, 0x81, 0, 0, 7)
	}
	udp := binary.BigEndian.AppendUint16([]byte{0x11, 0x5c}, f.port)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(f.payload)))
	udp = append(append(udp, 0, 0), f.payload...)
	if src.Is4() {
		b = append(b, 8, 0)
		ip := []byte{0x45, 0, byte((20 + len(udp)) >> 8), byte(20 + len(udp)), 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
		ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		return append(append(b, ip...), udp...)
	}
	pseudo := append(append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...), 0, 0, byte(len(udp)>>8), byte(len(udp)), 0, 0, 0, unix.IPPROTO_UDP)
	pseudo = append(pseudo, udp...)
	if len(pseudo)%2 == 1 {
		pseudo = append(pseudo, 0)
	}
	binary.BigEndian.PutUint16(udp[6:], checksum(pseudo))
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, byte(len(udp)>>8), byte(len(udp)), unix.IPPROTO_UDP, 64)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	return append(b, udp...)
}

// send sends a frame as it is, for which a container needs NET_RAW.
func (l *lab) send(from string, b []byte) {
	l.t.Helper()
	_, err := in(l.places[from], func() (struct{}, error) {
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return struct{}{}, err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
		if err != nil {
			return struct{}{}, err
		}
		defer unix.Close(fd)
		return struct{}{}, unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: eth.Index, Halen: 6})
	})
	must(l.t, err)
}

func (l *lab) mac(place, link string) (m routes.MAC) {
	l.t.Helper()
	l.at(place, func() {
		x, err := net.InterfaceByName(link)
		must(l.t, err)
		m = routes.MAC(x.HardwareAddr)
	})
	return m
}

// catch returns what arrives at a place's port 9 from now on, until it is asked: then an
// honest datagram, which is behind all others, ends it.
func (l *lab) catch(place, addr string) func(honest string) []string {
	l.t.Helper()
	c, err := in(l.places[place], func() (net.PacketConn, error) { return net.ListenPacket("udp", net.JoinHostPort(addr, "9")) })
	must(l.t, err)
	l.t.Cleanup(func() { _ = c.Close() })
	return func(honest string) []string {
		l.t.Helper()
		defer c.Close()
		_, err := in(l.places[honest], func() (struct{}, error) {
			d, err := net.Dial("udp", net.JoinHostPort(addr, "9"))
			if err != nil {
				return struct{}{}, err
			}
			defer d.Close()
			_, err = d.Write([]byte("honest"))
			return struct{}{}, err
		})
		must(l.t, err)
		var got []string
		b := make([]byte, 100)
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		for {
			n, _, err := c.ReadFrom(b)
			if err != nil {
				l.t.Fatalf("at %s, not even what is honest arrives: %v, after %q", place, err, got)
			}
			if string(b[:n]) == "honest" {
				return got
			}
			got = append(got, string(b[:n]))
		}
	}
}

// A container that may send what it likes (NET_RAW, NET_ADMIN) is nobody but itself.
func TestContainersCannotPassForOthers(t *testing.T) {
	l := newLab(t)
	l.fleet()
	for _, to := range []string{"10.10.1.1:81", "10.10.1.2:81", l.addr4("red-b", "red") + ":80"} {
		_, _, _ = l.ask("red-a", "tcp", to) // a first packet waits for ARP, and others overtake it
	}
	bridge := l.mac("a", "dvn1")
	mine, other := l.mac("red-a", "eth0"), l.mac("red-a2", "eth0")
	red := func(name string) string { return l.addr4(name, "red") }
	red6 := func(name string) string { return l.addr6(name, "red") }
	tunnel := tunnelMAC(netip.MustParseAddr("10.210.3.1"))
	inTunnel := frame{srcMAC: tunnel, dstMAC: tunnelMAC(netip.MustParseAddr("10.210.2.1")), src: red("red-c"), dst: red("red-b"), port: 9, payload: []byte("out of the tunnel")}
	vxlan := append([]byte{8, 0, 0, 0, 0, 0, routes.VNI, 0}, inTunnel.bytes()...)
	for what, c := range map[string]struct {
		from, to, addr, honest string
		frame                  frame
		arrives                bool
	}{
		"itself":                     {"red-a", "red-b", red("red-b"), "red-a", frame{srcMAC: mine, dstMAC: bridge, src: red("red-a"), dst: red("red-b")}, true},
		"itself over IPv6":           {"red-a", "red-b", red6("red-b"), "red-a", frame{srcMAC: mine, dstMAC: bridge, src: red6("red-a"), dst: red6("red-b")}, true},
		"itself, on its node":        {"red-a", "red-a2", red("red-a2"), "red-a", frame{srcMAC: mine, dstMAC: other, src: red("red-a"), dst: red("red-a2")}, true},
		"a neighbour":                {"red-a", "red-b", red("red-b"), "red-a", frame{srcMAC: mine, dstMAC: bridge, src: red("red-a2"), dst: red("red-b")}, false},
		"a neighbour and its MAC":    {"red-a", "red-b", red("red-b"), "red-a", frame{srcMAC: other, dstMAC: bridge, src: red("red-a2"), dst: red("red-b")}, false},
		"itself with another MAC":    {"red-a", "red-b", red("red-b"), "red-a", frame{srcMAC: routes.MAC{2, 1, 1, 1, 1, 1}, dstMAC: bridge, src: red("red-a"), dst: red("red-b")}, false},
		"its gateway":                {"red-a", "red-a2", red("red-a2"), "red-a", frame{srcMAC: mine, dstMAC: other, src: "10.220.0.1", dst: red("red-a2")}, false},
		"its gateway's MAC":          {"red-a", "red-a2", red("red-a2"), "red-a", frame{srcMAC: bridge, dstMAC: other, src: red("red-a"), dst: red("red-a2")}, false},
		"one of another node":        {"red-a", "red-a2", red("red-a2"), "red-a", frame{srcMAC: mine, dstMAC: other, src: red("red-c"), dst: red("red-a2")}, false},
		"one of another network":     {"red-a", "blue-a", l.addr4("blue-a", "blue"), "both-a", frame{srcMAC: mine, dstMAC: bridge, src: "10.220.16.12", dst: l.addr4("blue-a", "blue")}, false},
		"one of another's node":      {"red-a", "blue-b", l.addr4("blue-b", "blue"), "blue-a", frame{srcMAC: mine, dstMAC: bridge, src: "10.220.16.10", dst: l.addr4("blue-b", "blue")}, false},
		"a host of the fleet":        {"red-a", "red-b", red("red-b"), "red-a", frame{srcMAC: mine, dstMAC: bridge, src: "10.10.1.1", dst: red("red-b")}, false},
		"a node's gateway":           {"red-a", "red-b", red("red-b"), "red-a", frame{srcMAC: mine, dstMAC: bridge, src: "10.210.1.1", dst: red("red-b")}, false},
		"one outside":                {"red-a", "red-b", red("red-b"), "red-a", frame{srcMAC: mine, dstMAC: bridge, src: "8.8.8.8", dst: red("red-b")}, false},
		"a neighbour over IPv6":      {"red-a", "red-b", red6("red-b"), "red-a", frame{srcMAC: mine, dstMAC: bridge, src: red6("red-a2"), dst: red6("red-b")}, false},
		"another network over IPv6":  {"red-a", "blue-a", l.addr6("blue-a", "blue"), "both-a", frame{srcMAC: mine, dstMAC: bridge, src: "fd20:0:0:1::c", dst: l.addr6("blue-a", "blue")}, false},
		"tagged":                     {"red-a", "red-a2", red("red-a2"), "red-a", frame{srcMAC: mine, dstMAC: other, src: red("red-c"), dst: red("red-a2"), vlan: true}, false},
		"the host's loopback":        {"red-a", "a", "127.0.0.1", "a", frame{srcMAC: mine, dstMAC: bridge, src: red("red-a"), dst: "127.0.0.1"}, false},
		"from loopback":              {"red-a", "red-b", red("red-b"), "red-a", frame{srcMAC: mine, dstMAC: bridge, src: "127.0.0.1", dst: red("red-b")}, false},
		"on the default bridge":      {"bridge-a", "bridge-b", l.addr4("bridge-b", Bridge), "bridge-a", frame{srcMAC: l.mac("bridge-a", "eth0"), dstMAC: l.mac("a", "drv0"), src: "10.210.1.99", dst: l.addr4("bridge-b", Bridge)}, false},
		"a node, in the tunnel":      {"red-a", "red-b", red("red-b"), "red-a", frame{srcMAC: mine, dstMAC: bridge, src: red("red-a"), dst: "10.10.1.2", port: 4789, payload: vxlan}, false},
		"its own node, in it":        {"red-a", "red-a2", red("red-a2"), "red-a", frame{srcMAC: mine, dstMAC: bridge, src: red("red-a"), dst: "10.10.1.1", port: 4789, payload: vxlan}, false},
		"a stranger in the tunnel":   {"stranger", "red-b", red("red-b"), "red-a", frame{srcMAC: l.mac("stranger", "eth0"), dstMAC: l.mac("b", "eth0"), src: "10.10.1.100", dst: "10.10.1.2", port: 4789, payload: vxlan}, false},
		"a stranger as a container":  {"stranger", "red-b", red("red-b"), "red-a", frame{srcMAC: l.mac("stranger", "eth0"), dstMAC: l.mac("b", "eth0"), src: red("red-a"), dst: red("red-b")}, false},
		"a stranger to a container":  {"stranger", "red-b", red("red-b"), "red-a", frame{srcMAC: l.mac("stranger", "eth0"), dstMAC: l.mac("b", "eth0"), src: "10.10.1.100", dst: red("red-b")}, false},
		"a stranger as one, IPv6":    {"stranger", "red-b", red6("red-b"), "red-a", frame{srcMAC: l.mac("stranger", "eth0"), dstMAC: l.mac("b", "eth0"), src: red6("red-a"), dst: red6("red-b")}, false},
		"a stranger to the loopback": {"stranger", "b", "127.0.0.1", "b", frame{srcMAC: l.mac("stranger", "eth0"), dstMAC: l.mac("b", "eth0"), src: "10.10.1.100", dst: "127.0.0.1"}, false},
	} {
		t.Run(what, func(t *testing.T) {
			if c.frame.port == 0 {
				c.frame.port, c.frame.payload = 9, []byte("a lie")
			}
			caught := l.catch(c.to, c.addr)
			l.send(c.from, c.frame.bytes())
			if got := caught(c.honest); (len(got) > 0) != c.arrives {
				t.Errorf("at %s arrives %q, want anything: %v", c.to, got, c.arrives)
			}
		})
	}
}

// The tunnel's packets do what the attack above does, if a node sends them: else that
// would prove nothing.
func TestTheTunnelsPacketsAreBelievedFromNodes(t *testing.T) {
	l := newLab(t)
	l.run("red-a", "a", l.to("red", "a", 10))
	l.run("red-b", "b", l.to("red", "b", 10))
	inner := frame{srcMAC: tunnelMAC(netip.MustParseAddr("10.210.3.1")), dstMAC: tunnelMAC(netip.MustParseAddr("10.210.2.1")), src: "10.220.0.138", dst: l.addr4("red-b", "red"), port: 9, payload: []byte("inner")}
	outer := frame{srcMAC: l.mac("a", "eth0"), dstMAC: l.mac("b", "eth0"), src: "10.10.1.1", dst: "10.10.1.2", port: 4789, payload: append([]byte{8, 0, 0, 0, 0, 0, routes.VNI, 0}, inner.bytes()...)}
	caught := l.catch("red-b", l.addr4("red-b", "red"))
	l.send("a", outer.bytes())
	if got := caught("red-a"); len(got) != 1 {
		t.Errorf("arrived is %q", got)
	}
}

// neighbours returns which hardware addresses a place knows of others.
func (l *lab) neighbours(place, link string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(l.sh(place, "ip neigh show dev "+link)) {
		f := strings.Fields(line)
		if i := slices.Index(f, "lladdr"); i > 0 {
			out[f[0]] = f[i+1]
		}
	}
	return out
}

func TestContainersCannotTakeOthersAddressesOver(t *testing.T) {
	l := newLab(t)
	l.fleet()
	mine, other := l.mac("red-a", "eth0"), l.mac("red-a2", "eth0")
	victim, gateway := l.box["red-a2"].in("red"), netip.MustParseAddr("10.220.0.1")
	_, _, _ = l.ask("red-a2", "tcp", "10.220.0.1:81") // they know each other
	_, _, _ = l.ask("a", "tcp", "["+victim.IPv6().Addr().String()+"]:80")
	for what, b := range map[string][]byte{
		"the gateway to all":    arp(arpRequest, mine, broadcast, gateway, gateway),
		"the gateway to one":    arp(2, mine, other, gateway, victim.IPv4().Addr()),
		"a neighbour to all":    arp(arpRequest, mine, broadcast, victim.IPv4().Addr(), victim.IPv4().Addr()),
		"a neighbour to a node": arp(2, mine, l.mac("a", "dvn1"), victim.IPv4().Addr(), gateway),
		"a neighbour over IPv6": advertisement(mine, l.mac("a", "dvn1"), l.box["red-a"].in("red").IPv6().Addr(), victim.IPv6().Addr()),
		"another's MAC":         append(append(slices.Clone(broadcast[:]), mine[:]...), arp(arpRequest, other, broadcast, netip.MustParseAddr(l.addr4("red-a", "red")), gateway)[12:]...),
		"the gateway over IPv6": advertisement(mine, other, l.box["red-a"].in("red").IPv6().Addr(), gateway6),
	} {
		l.send("red-a", b)
		if who, _, err := l.ask("red-a2", "tcp", l.addr4("red-b", "red")+":80"); who != "red-b" {
			t.Errorf("%s: the neighbour reaches %q, %v", what, who, err)
		}
		if got := l.neighbours("red-a2", "eth0"); got["10.220.0.1"] != l.mac("a", "dvn1").String() || got["fe80::1"] != "" && got["fe80::1"] != l.mac("a", "dvn1").String() {
			t.Errorf("%s: the neighbour's gateway is at %s", what, got)
		}
		if got := l.neighbours("a", "dvn1"); got[victim.IPv4().Addr().String()] != other.String() || got[victim.IPv6().Addr().String()] != other.String() {
			t.Errorf("%s: the node has the neighbour at %s", what, got)
		}
	}
}

// advertisement is an IPv6 neighbour's that says that target is at its own hardware
// address.
func advertisement(from, to routes.MAC, src, target netip.Addr) []byte {
	dst := netip.MustParseAddr("ff02::1")
	na := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, target.AsSlice()...)
	na = append(append(na, 2, 1), from[:]...)
	return icmpv6(from, to, src, dst, na)
}

func icmpv6(from, to routes.MAC, src, dst netip.Addr, icmp []byte) []byte {
	pseudo := append(append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...), 0, 0, 0, byte(len(icmp)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(icmp[2:], checksum(append(pseudo, icmp...)))
	b := append(append(slices.Clone(to[:]), from[:]...), 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), unix.IPPROTO_ICMPV6, 255)
	return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), icmp...)
}

// Bridges of IPv6 networks take no router either, and pass none on to containers.
func TestContainersCannotBecomeRouters(t *testing.T) {
	l := newLab(t)
	l.fleet()
	l.sh("red-a2", "sysctl -qw net.ipv6.conf.eth0.accept_ra=1 net.ipv6.conf.eth0.accept_redirects=1") // as one that cares for itself
	mine := l.mac("red-a", "eth0")
	prefix := netip.MustParseAddr("2001:db8:bad::").As16()
	ra := append([]byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, 3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0)
	ra = append(ra, prefix[:]...)
	for _, src := range []netip.Addr{linkLocal(net.HardwareAddr(mine[:])), gateway6, netip.MustParseAddr("fe80::bad")} {
		l.send("red-a", icmpv6(mine, routes.MAC{0x33, 0x33, 0, 0, 0, 1}, src, netip.MustParseAddr("ff02::1"), slices.Clone(ra)))
	}
	if who, _, err := l.ask("red-a", "tcp", "["+l.addr6("red-a2", "red")+"]:80"); who != "red-a2" { // behind the others
		t.Errorf("%q, %v", who, err)
	}
	for _, place := range []string{"a", "red-a2"} {
		if got := l.sh(place, "ip -6 route; ip -6 addr"); strings.Contains(got, "2001:db8") || strings.Contains(got, "proto ra") {
			t.Errorf("%s has taken a container for its router:\n%s", place, got)
		}
	}
}

// A host that takes its router's advertisements goes on doing so when it forwards.
func TestAHostKeepsItsIPv6Router(t *testing.T) {
	w := newWorld(t)
	must(t, w.n.Close())
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0))
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/up0/accept_ra", []byte("1"), 0))
	w.o.Topology = three()
	w.o.Subnet = netip.MustParsePrefix("10.210.1.0/24")
	w.open()
	for key, want := range map[string]string{"all/forwarding": "1", "up0/accept_ra": "2", "dvn1/accept_ra": "0"} {
		if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + key); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s is %q, %v; want %s", key, b, err, want)
		}
	}
	if got := nft(t, "list chain ip6 filter FORWARD\n"); !strings.Contains(got, "policy drop") || strings.Count(got, "drover:") != 4 {
		t.Errorf("the host is its neighbours' router:\n%s", got)
	}
}

// A host without other nodes has no tunnel, and leaves others' alone.
func TestANodeAloneTakesNobodysTunnel(t *testing.T) {
	w := newWorld(t)
	c, err := net.ListenPacket("udp4", ":4789")
	must(t, err)
	defer c.Close()
	d, err := in(w.nbr, func() (net.Conn, error) { return net.Dial("udp4", hostIP+":4789") })
	must(t, err)
	defer d.Close()
	hears := func() bool {
		_, err := d.Write([]byte("?"))
		must(t, err)
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		_, _, err = c.ReadFrom(make([]byte, 9))
		return err == nil
	}
	carried()
	if !hears() {
		t.Error("another program's tunnel is cut off")
	}
	must(t, c.Close())
	must(t, w.n.Apply(t.Context(), three()))
	if got := nft(t, "list set inet drover_drv0 tunnels\n"); !strings.Contains(got, "4789") {
		t.Errorf("a node of several takes the tunnel's packets from everybody:\n%s", got)
	}
}
