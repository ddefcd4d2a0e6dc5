package network

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/network/routes"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// ported is a connection with published ports.
func ported(c Connection, ports ...string) Connection {
	c.Ports = publish(ports...)
	return c
}

// doors runs published containers: 8080 is red-a's on a, 8082 bridge-b's on b, 8083 red-c's
// on c, behind the router. Every node is a door to the others'.
func (l *lab) doors() {
	l.t.Helper()
	l.fleet()
	l.run("pub-a", "a", ported(l.to("red", "a", 20), " tcp 8080 80", " udp 8080 80"))
	l.run("pub-b", "b", ported(Connection{Network: Bridge}, " tcp 8082 80", " udp 8082 80"))
	l.run("pub-c", "c", ported(l.to("red", "c", 20), " tcp 8083 80", " udp 8083 80"))
	l.change(func(x *Topology) {
		x.Doors = nil
		for _, proto := range []string{"tcp", "udp"} {
			x.Doors = append(x.Doors, Door{proto, 8080, "a"}, Door{proto, 8082, "b"}, Door{proto, 8083, "c"})
		}
	}, "a", "b", "c")
}

// settle waits until a and b reach each other by their link.
func (l *lab) settle() {
	l.t.Helper()
	l.direct("a", "b")
	l.direct("b", "a")
	l.goes("a", "c", "dvx")
}

func TestAPublishedPortAnswersOnEveryNode(t *testing.T) {
	l := newLab(t)
	for _, h := range []string{"a", "b", "c"} { // strict hosts
		l.sh(h, "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1")
	}
	l.doors()
	l.settle()
	holder := map[string]string{"8080": "pub-a", "8082": "pub-b", "8083": "pub-c"}
	own := map[string]string{"stranger": "10.10.1.100", "outside": "198.51.100.1"}
	type question struct{ from, proto, host, port string }
	var all []question
	for _, from := range []string{"stranger", "outside", "a", "b", "c", "red-a", "red-b", "red-c", "blue-a", "blue-b", "bridge-a", "bridge-c", "pub-a", "pub-c"} {
		for _, host := range []string{"a", "b", "c"} {
			for port := range holder {
				all = append(all, question{from, "tcp", labHosts[host], port}, question{from, "udp", labHosts[host], port})
			}
		}
	}
	for _, host := range []string{"a", "b", "c"} {
		for port := range holder {
			all = append(all, question{host, "tcp", "127.0.0.1", port}, question{host, "udp", "127.0.0.1", port}, question{host, "tcp", l.opts[host].Subnet.Addr().Next().String(), port})
		}
	}
	all = append(all, question{"red-b", "tcp", "10.220.0.1", "8080"}, question{"red-b", "tcp", "10.220.0.1", "8083"}) // by its own gateway
	for _, q := range all {
		addr := net.JoinHostPort(q.host, q.port)
		who, sees, err := l.ask(q.from, q.proto, addr)
		if who != holder[q.port] {
			who, sees, err = l.ask(q.from, q.proto, addr) // a first packet may wait for ARP
		}
		if who != holder[q.port] {
			t.Errorf("from %s to %s %s answers %q, %v; want %s", q.from, q.proto, addr, who, err, holder[q.port])
			continue
		}
		if want := own[q.from]; want != "" && sees != want {
			t.Errorf("%s at %s %s is seen as %s, not as %s", q.from, q.proto, addr, sees, want)
		}
	}
	for _, h := range []string{"a", "b", "c"} {
		l.becomesAsItShould(h, "with doors")
	}
}

// What is not published, or on one address only, is not opened by any node.
func TestADoorOpensNothingElse(t *testing.T) {
	l := newLab(t)
	l.doors()
	l.run("one-a", "a", ported(l.to("red", "a", 21), "10.10.1.1 tcp 8090 80", "127.0.0.1 tcp 8091 80"))
	l.run("dark-pub", "a", ported(l.to("dark", "a", 20), " tcp 8092 80"))
	l.change(func(x *Topology) {
		x.Doors = append(x.Doors, Door{"tcp", 8092, "a"}, Door{"tcp", 8093, "a"}, Door{"tcp", 8094, "gone"}) // internal, not published, of nobody
	}, "a", "b", "c")
	for _, addr := range []string{
		"10.10.1.2:8090", "10.10.1.2:8091", "127.0.0.1:8091", "10.10.1.2:8092", "10.10.2.3:8092", "10.10.1.2:8093", "10.10.2.3:8094", "10.10.1.2:80", "10.10.1.2:9999",
		"10.210.1.1:80",
	} {
		for _, from := range []string{"stranger", "outside", "b", "red-b", "bridge-c"} {
			if who, _, err := l.ask(from, "tcp", addr); err == nil && who != "" {
				t.Errorf("from %s at %s answers %q", from, addr, who)
			}
		}
	}
	if who, _, err := l.ask("dark-a", "tcp", "10.10.1.2:8083"); err == nil {
		t.Errorf("out of an internal network through a door: %q", who)
	}
	if who, _, err := l.ask("stranger", "tcp", "10.10.1.1:8090"); who != "one-a" {
		t.Errorf("on its own node: %q, %v", who, err)
	}
}

// Connections from one port of a client through several doors are several.
func TestOnePortThroughSeveralDoors(t *testing.T) {
	l := newLab(t)
	l.run("echo-a", "a", ported(l.to("red", "a", 22), " tcp 8085 90"))
	l.change(func(x *Topology) { x.Doors = []Door{{"tcp", 8085, "a"}} }, "a", "b", "c")
	l.settle()
	l.echo("echo-a", ":90")
	for _, place := range []string{"stranger", "outside"} {
		from := map[string]string{"stranger": "10.10.1.100:5555", "outside": "198.51.100.1:5555"}[place]
		open := map[string]net.Conn{}
		for door, host := range labHosts {
			c, err := in(l.places[place], func() (net.Conn, error) {
				local, err := net.ResolveTCPAddr("tcp", from)
				if err != nil {
					return nil, err
				}
				return (&net.Dialer{LocalAddr: local, Timeout: 3 * time.Second, Control: reuse}).Dial("tcp", host+":8085")
			})
			if err != nil {
				t.Errorf("from %s through %s: %v", from, door, err)
				continue
			}
			defer c.Close()
			open[door] = c
		}
		for door, c := range open {
			_ = c.SetDeadline(time.Now().Add(3 * time.Second))
			b := make([]byte, 100)
			if _, err := c.Write([]byte("through " + door)); err != nil {
				t.Error(err)
			}
			if n, err := c.Read(b); string(b[:n]) != "through "+door {
				t.Errorf("from %s through %s: %q, %v", from, door, b[:n], err)
			}
		}
	}
}

// echo answers with what it hears, for as long as the other end likes.
func (l *lab) echo(place, addr string) {
	l.t.Helper()
	listener, err := in(l.places[place], func() (net.Listener, error) { return net.Listen("tcp", addr) })
	must(l.t, err)
	var serving sync.WaitGroup
	l.t.Cleanup(func() { _ = listener.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { _, _ = io.Copy(c, c); _ = c.Close() })
		}
	})
}

// A door closes when its container ends, with its connections, and follows it to another
// node. Senders of datagrams go along.
func TestDoorsFollowTheirContainers(t *testing.T) {
	l := newLab(t)
	l.doors()
	sender, err := in(l.places["stranger"], func() (net.Conn, error) { return net.Dial("udp", "10.10.1.2:8080") })
	must(t, err)
	defer sender.Close()
	answers := func(want string) {
		t.Helper()
		var got string
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
			if got, _ = answered(sender); strings.HasPrefix(got, want+" ") {
				return
			}
		}
		t.Errorf("the sender hears %q, want %s", got, want)
	}
	answers("pub-a")
	tell := func(holder string) {
		l.change(func(x *Topology) {
			x.Doors = nil
			if holder != "" {
				x.Doors = []Door{{"tcp", 8080, holder}, {"udp", 8080, holder}}
			}
		}, "a", "b", "c")
	}
	l.at("a", func() { must(t, l.nets["a"].Detach(t.Context(), l.box["pub-a"].ID)) })
	tell("")
	if who, _, err := l.ask("stranger", "tcp", "10.10.1.2:8080"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("after its end answers %q, %v", who, err)
	}
	if n := strings.TrimSpace(l.sh("b", "cat /proc/net/nf_conntrack 2>/dev/null | grep -c 'dport=8080.*mark=1' || true")); n != "0" && n != "" {
		t.Errorf("%s connections are left", n)
	}
	l.run("next-c", "c", ported(l.to("red", "c", 21), " tcp 8080 80", " udp 8080 80"))
	tell("c")
	l.reaches("on another node", "stranger", "10.10.1.2:8080", "next-c")
	answers("next-c")
	l.reaches("where it was", "stranger", "10.10.1.1:8080", "next-c")
	l.at("c", func() { must(t, l.nets["c"].Detach(t.Context(), l.box["next-c"].ID)) })
	l.run("next-b", "b", ported(l.to("red", "b", 21), " tcp 8080 80", " udp 8080 80"))
	tell("b")
	l.reaches("at home", "stranger", "10.10.1.2:8080", "next-b")
	l.reaches("from another door", "stranger", "10.10.1.1:8080", "next-b")
	answers("next-b")
	l.at("b", func() { must(t, l.nets["b"].Close()); must(t, l.nets["a"].Close()) })
	l.open("b")
	l.open("a")
	l.reaches("after the holder's restart", "stranger", "10.10.2.3:8080", "next-b")
	tell("b")
	l.reaches("and the door's", "stranger", "10.10.1.1:8080", "next-b")
	l.becomesAsItShould("a", "after restarts")
}

// Containers and processes of a node have its ports first; doors open when these are free.
func TestWhatANodeUsesItselfIsNoDoor(t *testing.T) {
	l := newLab(t)
	l.doors()
	l.reaches("as a door", "stranger", "10.10.1.2:8080", "pub-a")
	l.run("local-b", "b", ported(l.to("red", "b", 30), " tcp 8080 80"))
	l.reaches("its own container", "stranger", "10.10.1.2:8080", "local-b")
	if got := fmt.Sprint(l.nets["b"].Closed()); got != "[{ tcp 8080 0}]" {
		t.Errorf("closed are %s", got)
	}
	l.at("b", func() { must(t, l.nets["b"].Detach(t.Context(), l.box["local-b"].ID)) })
	l.reaches("a door again", "stranger", "10.10.1.2:8080", "pub-a")
	if got := l.nets["b"].Closed(); len(got) != 0 {
		t.Errorf("closed are %v", got)
	}
	l.run("local-b1", "b", ported(l.to("red", "b", 31), "10.10.1.2 tcp 8080 80")) // one address takes the number
	l.reaches("on one address", "stranger", "10.10.1.2:8080", "local-b1")
	l.change(func(x *Topology) { x.Doors = nil }, "c")
	process, err := in(l.places["c"], func() (net.Listener, error) { return net.Listen("tcp", ":8080") })
	must(t, err)
	l.change(func(x *Topology) { x.Doors = l.topo["a"].Doors }, "c")
	if who, _, err := l.ask("stranger", "tcp", "10.10.2.3:8080"); who == "pub-a" {
		t.Errorf("a process of the host lost its port: %q, %v", who, err)
	}
	must(t, process.Close())
	l.at("c", func() { l.nets["c"].links.again() })
	l.reaches("after the process ended", "stranger", "10.10.2.3:8080", "pub-a")
}

// An attempt without a free number takes none that is a door here.
func TestFreeNumbersAreNoDoors(t *testing.T) {
	l := newLab(t)
	l.change(func(x *Topology) {
		for p := uint16(49152); p < 49352; p++ {
			x.Doors = append(x.Doors, Door{"tcp", p, "b"})
		}
	}, "a")
	l.sh("a", "sysctl -qw net.ipv4.ip_local_port_range='49152 49400'")
	l.at("a", func() {
		for i := range 40 {
			s, err := l.nets["a"].Attach(t.Context(), name(i), on([]*dv1.Port{{Proto: "tcp", Container: 80}}))
			if err != nil {
				break // none is left
			}
			if p := s.Ports()[0].Host; p < 49352 {
				t.Errorf("it has the port %d of another node's container", p)
			}
		}
	})
	if n := len(l.nets["a"].Closed()); n != 0 {
		t.Errorf("%d doors were closed", n)
	}
}

// Other firewalls let through what goes through doors, and nothing else.
func TestDoorsBesideOtherFirewalls(t *testing.T) {
	l := newLab(t)
	l.doors()
	l.settle()
	for _, h := range []string{"a", "b"} {
		l.sh(h, "nft -f - <<'E'\ntable inet fw { chain forward { type filter hook forward priority filter + 10; policy drop; }; }\nE\n")
	}
	l.reaches("over the link", "stranger", "10.10.1.2:8080", "pub-a")
	l.reaches("through the tunnel", "stranger", "10.10.1.2:8083", "pub-c")
	l.sh("stranger", "ip route add 198.51.100.0/24 via 10.10.1.2")
	if who, _, err := l.ask("stranger", "tcp", "198.51.100.1:80"); err == nil {
		t.Errorf("the host routes for a stranger: %q", who)
	}
	l.change(func(x *Topology) { x.Doors = nil }, "b")
	defer func() { l.sh("a", "nft delete table inet fw"); l.sh("b", "nft delete table inet fw") }()
	if got := l.sh("b", "nft list chain inet fw forward"); strings.Contains(got, "ct mark") {
		t.Errorf("without doors there is left\n%s", got)
	}
}

// What a stranger sends as a door leads its answers to the door, which drops them.
func TestAStrangerAsADoor(t *testing.T) {
	l := newLab(t)
	l.doors()
	l.settle()
	_, _, _ = l.ask("stranger", "tcp", "10.10.1.2:8080")
	lie := frame{srcMAC: l.mac("b", "eth0"), dstMAC: l.mac("a", "eth0"), src: "10.10.1.100", dst: "10.210.1.1", port: 8080, payload: []byte("?")}
	caught := l.catch("stranger", "10.10.1.100")
	l.send("stranger", lie.bytes())
	if got := caught("red-a"); len(got) != 0 {
		t.Errorf("a stranger gets %q", got)
	}
	mine := l.mac("red-b", "eth0")
	for what, f := range map[string]frame{
		"a client of the door":    {srcMAC: mine, dstMAC: l.mac("b", "dvn1"), src: "10.10.1.100", dst: "10.210.1.1", port: 8080, payload: []byte("?")},
		"another node's own port": {srcMAC: mine, dstMAC: l.mac("b", "dvn1"), src: l.addr4("red-b", "red"), dst: "10.210.1.1", port: 9, payload: []byte("?")},
	} {
		caught := l.catch("a", "10.210.1.1")
		l.send("red-b", f.bytes())
		if got := caught("a"); len(got) != 0 {
			t.Errorf("%s: arrives %q", what, got)
		}
	}
}

// reuse lets connections to several destinations have one port.
func reuse(_, _ string, c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	return errors.Join(cerr, err)
}

func TestPlansOfDoors(t *testing.T) {
	top := three()
	for i := range top.Peers {
		top.Peers[i].Door = top.Peers[i].ID != "c"
	}
	top.Doors = []Door{{"tcp", 80, "b"}, {"udp", 53, "c"}, {"tcp", 81, "gone"}}
	mac := routes.MAC{2, 0xaa, 0, 0, 0, 2}
	p := planFor(testOptions(), top, map[string]way{"b": {dev: "eth0", mac: mac, proven: true}}, host{})
	b, c := netip.MustParseAddr("10.210.2.1"), netip.MustParseAddr("10.210.3.1")
	if got := fmt.Sprint(p.filter.doors); got != fmt.Sprint([]entry{{doorKey{"tcp", 80}, b}, {doorKey{"udp", 53}, c}}) {
		t.Errorf("doors %s", got)
	}
	if want := map[routes.Mark]routes.Route{0x0ad20201: {Dev: "eth0", Via: netip.MustParseAddr("10.10.1.2")}}; !maps.Equal(p.Returns, want) || !p.Gated {
		t.Errorf("returns %v, want %v", p.Returns, want)
	}
	if got := fmt.Sprint(p.filter.doorways); got != fmt.Sprint([]doorway{{station{"dvx", tunnelMAC(b)}, b}, {station{"eth0", mac}, b}}) {
		t.Errorf("doorways %s", got)
	}
	// A node whose containers are reached by other networks is neither door nor holder.
	p = planFor(testOptions(), top, nil, host{nets: prefixes("10.210.2.77/28")})
	if len(p.filter.doors) != 1 || len(p.Returns) != 0 || p.Gated {
		t.Errorf("doors %v, returns %v", p.filter.doors, p.Returns)
	}
	for bad, want := range map[Door]string{{"icmp", 1, "b"}: "1/icmp", {"tcp", 0, "b"}: "0/tcp", {"tcp", 1, ""}: `node ""`} {
		top.Doors = []Door{bad}
		if err := top.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if zoneOf(netip.MustParseAddr("10.0.0.1")) != 1 || zoneOf(b) == zoneOf(c) {
		t.Error("zones are 0, or alike")
	}
}

// SCTP's ports are published as others, with or without sockets of it in the kernel.
func TestSCTPIsPublished(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" sctp 2905 80", hostIP+" sctp 2906 80", " sctp 0 81")))
	must(t, err)
	if p := a.Ports()[2]; p.Host == 0 {
		t.Errorf("no number was chosen: %v", p)
	}
	for set, want := range map[string]string{"any_sctp": "2905 : " + ip(a).String() + " . 80", "one_sctp": hostIP + " . 2906 : " + ip(a).String() + " . 80"} {
		if got := nft(t, "list map inet drover_drv0 "+set+"\n"); !strings.Contains(got, want) {
			t.Errorf("%s holds %s, want %s", set, got, want)
		}
	}
	var taken *PortError
	if _, err := w.n.Attach(t.Context(), name(2), on(publish(" sctp 2905 80"))); !errors.As(err, &taken) {
		t.Errorf("a second one: %v", err)
	}
}

// A container gets the port of a door although programs are started at the same time, which
// have copies of all sockets for a moment.
func TestAContainerTakesADoorsPortWhileProgramsStart(t *testing.T) {
	w := newWorld(t)
	var starting sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		starting.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command("true").Run()
				}
			}
		})
	}
	defer func() { close(stop); starting.Wait() }()
	k := doorKey{"udp", 8080}
	for range 200 {
		for !w.n.openDoor(k) { // as long as a program has a copy
		}
		h, err := w.n.hold(&Port{Proto: "udp", Host: 8080})
		if err != nil {
			t.Fatal(err)
		}
		if w.n.openDoor(k) {
			t.Fatal("a door has the port of a container")
		}
		must(t, h.Close())
	}
}
