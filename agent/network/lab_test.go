package network

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/drover/drover/pkg/testenv"
)

// lab is a fleet of hosts a and b on one link, c behind the router r, a stranger on the
// link of a and b, and a server outside behind the router. The router refuses containers'
// addresses.
type lab struct {
	*world
	places map[string]netns.NsHandle
	nets   map[string]*Network // by host
	topo   map[string]Topology // as each host was told last
	opts   map[string]Options
	box    map[string]*Sandbox // containers by name
	home   map[string]string   // and their hosts
}

var labHosts = map[string]string{"a": "10.10.1.1", "b": "10.10.1.2", "c": "10.10.2.3"}

func newLab(t *testing.T) *lab {
	t.Helper()
	testenv.Root(t)
	runtime.LockOSThread() // ends with the test's goroutine
	l := &lab{world: &world{t: t}, places: map[string]netns.NsHandle{}, nets: map[string]*Network{}, topo: map[string]Topology{},
		opts: map[string]Options{}, box: map[string]*Sandbox{}, home: map[string]string{}}
	for _, name := range []string{"r", "a", "b", "c", "stranger", "outside"} {
		ns, err := netns.New()
		must(t, err)
		t.Cleanup(func() { _ = ns.Close() })
		l.places[name] = ns
		l.sh(name, "ip link set lo up")
	}
	l.sh("r", `sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 || true
ip link add A type bridge; ip link set A up; ip addr add 10.10.1.254/24 dev A
ip link add B type bridge; ip link set B up; ip addr add 10.10.2.254/24 dev B
ip link add C type bridge; ip link set C up; ip addr add 198.51.100.254/24 dev C
nft add table ip guard; nft add chain ip guard f '{ type filter hook forward priority 0; }'
nft add rule ip guard f ip saddr 10.208.0.0/12 drop; nft add rule ip guard f ip daddr 10.208.0.0/12 drop`)
	for _, w := range []struct{ at, link, addr string }{
		{"a", "A", "10.10.1.1/24"}, {"b", "A", "10.10.1.2/24"}, {"c", "B", "10.10.2.3/24"}, {"stranger", "A", "10.10.1.100/24"}, {"outside", "C", "198.51.100.1/24"},
	} {
		l.wire(w.at, w.link, w.addr)
	}
	dir := t.TempDir()
	for name, ip := range labHosts {
		i := netip.MustParseAddr(ip).As4()[3]
		l.opts[name] = Options{Dir: filepath.Join(dir, name, "net"), NetnsDir: filepath.Join(dir, name, "ns"), Bridge: "drv0",
			Subnet: netip.MustParsePrefix(fmt.Sprintf("10.210.%d.0/24", i)), Topology: l.topology(name)}
		l.open(name)
		t.Cleanup(func() {
			l.at(name, func() { _ = l.nets[name].Close(); must(t, l.nets[name].Destroy(t.Context())) })
			if left := l.left(name); left != "" {
				t.Errorf("on %s there is left:\n%s", name, left)
			}
		})
	}
	return l
}

// at runs f on a thread of a place.
func (l *lab) at(place string, f func()) {
	l.t.Helper()
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = netns.Set(l.places[place]); err == nil {
			f()
		}
	}()
	<-done
	must(l.t, err)
}

// sh runs a script at a place, and returns what it says.
func (l *lab) sh(place, script string) string {
	l.t.Helper()
	var out []byte
	var err error
	l.at(place, func() { out, err = exec.Command("sh", "-ec", script).CombinedOutput() })
	if err != nil {
		l.t.Fatalf("%s: %v\n%s\n%s", place, err, script, out)
	}
	return string(out)
}

// wire connects a place's eth0 to a link of the router.
func (l *lab) wire(place, link, addr string) {
	l.t.Helper()
	l.at("r", func() {
		br, err := netlink.LinkByName(link)
		must(l.t, err)
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = "to-"+place, br.Attrs().Index
		v := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(l.places[place])}
		must(l.t, netlink.LinkAdd(v))
		must(l.t, netlink.LinkSetUp(v))
	})
	gateway := strings.Join(strings.Split(addr, ".")[:3], ".") + ".254"
	l.sh(place, "ip addr add "+addr+" dev eth0; ip link set eth0 up; ip route add default via "+gateway)
}

// open begins a host's network, as an agent does.
func (l *lab) open(name string) {
	l.t.Helper()
	var err error
	l.at(name, func() { l.nets[name], err = Open(l.t.Context(), l.opts[name]) })
	must(l.t, err)
	l.topo[name] = l.opts[name].Topology
}

// topology is what a node of the lab is told: red and blue span all nodes, dark is
// internal. Node i has the i-th slice of each.
func (l *lab) topology(self string) Topology {
	t := Topology{Self: self}
	for _, name := range []string{"a", "b", "c"} {
		ip := netip.MustParseAddr(labHosts[name])
		t.Peers = append(t.Peers, Peer{ID: name, Name: name, Addr: ip, Subnet: netip.MustParsePrefix(fmt.Sprintf("10.210.%d.0/24", ip.As4()[3])), Door: true})
	}
	for i, id := range []string{"red", "blue", "dark"} {
		f := Fleet{ID: id, Number: uint32(i + 1), Internal: id == "dark", Subnets: []Subnet{
			subnet(fmt.Sprintf("10.220.%d.0/20", i*16), fmt.Sprintf("10.220.%d.1", i*16)), subnet(fmt.Sprintf("fd20:0:0:%d::/64", i), fmt.Sprintf("fd20:0:0:%d::1", i)),
		}}
		for j, name := range []string{"a", "b", "c"} {
			f.Routes = append(f.Routes, Route{netip.MustParsePrefix(fmt.Sprintf("10.220.%d.%d/26", i*16, j*64)), name},
				Route{netip.MustParsePrefix(fmt.Sprintf("fd20:0:0:%d::%x/122", i, j*64)), name})
		}
		t.Networks = append(t.Networks, f)
	}
	return t
}

// change tells hosts of a change.
func (l *lab) change(f func(*Topology), hosts ...string) {
	l.t.Helper()
	for _, name := range hosts {
		t := l.topo[name]
		t.Peers, t.Networks = slices.Clone(t.Peers), slices.Clone(t.Networks)
		for i := range t.Networks {
			t.Networks[i].Routes = slices.Clone(t.Networks[i].Routes)
		}
		f(&t)
		l.topo[name] = t
		l.at(name, func() { must(l.t, l.nets[name].Apply(l.t.Context(), t)) })
	}
}

// to is a connection to a network of the lab, with the n-th address of the host's slice.
func (l *lab) to(network, host string, n int) Connection {
	i := slices.Index([]string{"red", "blue", "dark"}, network)
	j := slices.Index([]string{"a", "b", "c"}, host)
	return Connection{Network: network, Addresses: addrs(fmt.Sprintf("10.220.%d.%d", i*16, j*64+n), fmt.Sprintf("fd20:0:0:%d::%x", i, j*64+n))}
}

// run starts a container, which answers with its name on port 80 over all protocols.
func (l *lab) run(name, host string, to ...Connection) {
	l.t.Helper()
	id := fmt.Sprintf("%012x", len(l.box)+0xabc) + strings.Repeat("0", 52)
	var err error
	l.at(host, func() { l.box[name], err = l.nets[host].Attach(l.t.Context(), id, to) })
	must(l.t, err)
	l.home[name] = host
	ns, err := netns.GetFromPath(l.box[name].Netns)
	must(l.t, err)
	l.t.Cleanup(func() { _ = ns.Close() })
	l.places[name] = ns
	l.at(host, carried)
	l.at(name, carried)
	l.serve(name, ":80")
}

// serve answers with the name of the place, over TCP and UDP.
func (l *lab) serve(place, addr string) {
	l.t.Helper()
	said := place
	tcp, err := in(l.places[place], func() (net.Listener, error) { return net.Listen("tcp", addr) })
	must(l.t, err)
	udp, err := in(l.places[place], func() (net.PacketConn, error) { return net.ListenPacket("udp", addr) })
	must(l.t, err)
	done := make(chan struct{}, 2)
	l.t.Cleanup(func() { _, _ = tcp.Close(), udp.Close(); <-done; <-done })
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, said+" "+c.RemoteAddr().(*net.TCPAddr).IP.String())
			_ = c.Close()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 2000)
		for {
			_, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo([]byte(said+" "+from.(*net.UDPAddr).IP.String()), from)
		}
	}()
}

// ask asks an address from a place who is there, and whom it sees.
func (l *lab) ask(from, proto, addr string) (who, sees string, err error) {
	answer, err := in(l.places[from], func() (string, error) {
		c, err := net.DialTimeout(proto, addr, 400*time.Millisecond)
		if err != nil {
			return "", err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(400 * time.Millisecond))
		if proto == "udp" {
			_, _ = io.WriteString(c, "?")
		}
		b := make([]byte, 200)
		n, err := c.Read(b)
		return string(b[:n]), err
	})
	who, sees, _ = strings.Cut(answer, " ")
	return who, sees, err
}

// addr4 and addr6 are addresses of a container in a network.
func (l *lab) addr4(name, network string) string {
	return l.box[name].in(network).IPv4().Addr().String()
}

func (l *lab) addr6(name, network string) string {
	return l.box[name].in(network).IPv6().Addr().String()
}

// left is what a host should not have when drover is gone.
func (l *lab) left(host string) string {
	out := l.sh(host, "ip -br link; ip route show proto 77; ip -6 route show proto 77; nft list tables | grep -v filter || true; ip neigh show nud permanent; ip rule show | grep -v -e '^0:' -e '^3276[67]:' || true")
	var left []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line)[0]; f != "lo" && !strings.HasPrefix(f, "eth0") {
			left = append(left, line)
		}
	}
	return strings.Join(left, "")
}

// fleet runs containers of all networks on all hosts, and services of the hosts.
func (l *lab) fleet() {
	for _, h := range []string{"a", "b", "c"} {
		l.run("red-"+h, h, l.to("red", h, 10))
		l.run("blue-"+h, h, l.to("blue", h, 10))
		l.run("dark-"+h, h, l.to("dark", h, 10))
		l.run("bridge-"+h, h, Connection{Network: Bridge})
		l.serve(h, ":81")
	}
	l.run("red-a2", "a", l.to("red", "a", 11))
	l.run("both-a", "a", l.to("red", "a", 12), l.to("blue", "a", 12))
	l.serve("outside", ":80")
	l.serve("stranger", ":80")
}

func TestWhoReachesWhom(t *testing.T) {
	l := newLab(t)
	l.fleet()
	l.sh("stranger", "ip route replace 10.220.0.0/14 via 10.10.1.1; ip route replace 10.210.0.0/16 via 10.10.1.1")
	l.whoReachesWhom("through the tunnel or on a link")
	l.direct("a", "b")
	l.direct("b", "a")
	l.whoReachesWhom("on a link, where there is one")
}

// direct waits until a host sends another one's packets over the link that both share.
func (l *lab) direct(from, to string) {
	l.t.Helper()
	l.goes(from, to, "eth0")
}

// goes waits until the way from one host to another is by a link.
func (l *lab) goes(from, to, link string) {
	l.t.Helper()
	subnet, got := l.opts[to].Subnet.Addr().Next().String(), ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if got = l.sh(from, "ip route get "+subnet); strings.Contains(got, " dev "+link+" ") {
			return
		}
	}
	l.t.Fatalf("%s goes to %s by %s, want %s", from, to, got, link)
}

func (l *lab) whoReachesWhom(ways string) {
	t := l.t
	t.Helper()
	var asking sync.WaitGroup
	at := func(a string) string { return net.JoinHostPort(a, "80") }
	for _, c := range []struct {
		from, to string
		want     string // who answers; "" is nobody
	}{
		// Inside a network: on one node, over one link, through a router.
		{"red-a", at(l.addr4("red-a2", "red")), "red-a2"},
		{"red-a", at(l.addr4("red-b", "red")), "red-b"},
		{"red-a", at(l.addr4("red-c", "red")), "red-c"},
		{"red-c", at(l.addr4("red-a", "red")), "red-a"},
		{"red-b", at(l.addr4("red-c", "red")), "red-c"},
		{"red-a", at(l.addr6("red-a2", "red")), "red-a2"},
		{"red-a", at(l.addr6("red-b", "red")), "red-b"},
		{"red-a", at(l.addr6("red-c", "red")), "red-c"},
		{"red-c", at(l.addr6("red-b", "red")), "red-b"},
		{"dark-a", at(l.addr4("dark-c", "dark")), "dark-c"},
		{"dark-a", at(l.addr4("dark-b", "dark")), "dark-b"},
		{"dark-c", at(l.addr6("dark-a", "dark")), "dark-a"},
		{"bridge-a", at(l.addr4("bridge-b", Bridge)), "bridge-b"},
		{"bridge-a", at(l.addr4("bridge-c", Bridge)), "bridge-c"},
		{"bridge-c", at(l.addr4("bridge-a", Bridge)), "bridge-a"},
		// In two networks at once.
		{"both-a", at(l.addr4("red-c", "red")), "red-c"},
		{"both-a", at(l.addr4("blue-c", "blue")), "blue-c"},
		{"both-a", at(l.addr6("blue-b", "blue")), "blue-b"},
		{"blue-c", at(l.addr4("both-a", "blue")), "both-a"},
		{"red-b", at(l.addr4("both-a", "red")), "both-a"},
		// Other networks.
		{"blue-a", at(l.addr4("red-a", "red")), ""},
		{"blue-a", at(l.addr4("red-b", "red")), ""},
		{"blue-a", at(l.addr4("red-c", "red")), ""},
		{"blue-a", at(l.addr6("red-a", "red")), ""},
		{"blue-a", at(l.addr6("red-c", "red")), ""},
		{"bridge-a", at(l.addr4("red-a", "red")), ""},
		{"bridge-a", at(l.addr4("red-c", "red")), ""},
		{"red-a", at(l.addr4("bridge-a", Bridge)), ""},
		{"red-a", at(l.addr4("bridge-c", Bridge)), ""},
		{"dark-a", at(l.addr4("red-a", "red")), ""},
		{"red-a", at(l.addr4("dark-a", "dark")), ""},
		{"red-a", at(l.addr4("dark-c", "dark")), ""},
		// Addresses that nobody has.
		{"red-a", at("10.220.0.60"), ""},
		{"red-a", at("10.220.9.9"), ""},
		// Outside, and hosts.
		{"red-a", "198.51.100.1:80", "outside"},
		{"red-c", "198.51.100.1:80", "outside"},
		{"bridge-a", "198.51.100.1:80", "outside"},
		{"dark-a", "198.51.100.1:80", ""},
		{"red-a", "10.10.1.2:81", "b"},
		{"red-a", "10.10.2.3:81", "c"},
		{"red-a", "10.10.1.1:81", "a"},
		{"red-a", at("10.10.1.100"), "stranger"},
		{"dark-a", "10.10.1.1:81", ""},
		{"dark-a", "10.10.1.2:81", ""},
		// A node's own processes.
		{"a", at(l.addr4("red-a", "red")), "red-a"},
		{"a", at(l.addr4("red-b", "red")), "red-b"},
		{"a", at(l.addr4("red-c", "red")), "red-c"},
		{"c", at(l.addr4("bridge-a", Bridge)), "bridge-a"},
		// Strangers, by a route through a node.
		{"stranger", at(l.addr4("red-a", "red")), ""},
		{"stranger", at(l.addr4("bridge-a", Bridge)), ""},
		{"stranger", "10.220.0.1:81", ""},
		{"stranger", "10.210.1.1:81", ""},
		// Gateways, of one's own and others' networks.
		{"red-a", "10.220.0.1:81", "a"},
		{"red-c", "10.220.0.1:81", "c"},
		{"red-a", "[fd20::1]:81", "a"},
		{"bridge-a", "10.210.1.1:81", "a"},
		{"red-a", "10.220.16.1:81", ""},
		{"red-a", "10.210.1.1:81", ""},
		{"bridge-a", "10.220.0.1:81", ""},
		{"red-a", "[fd20:0:0:1::1]:81", ""},
	} {
		for _, proto := range []string{"tcp", "udp"} {
			if proto == "udp" && strings.HasSuffix(c.to, ":81") {
				continue // a host with several addresses answers from another one than was asked
			}
			asking.Go(func() {
				if who, _, err := l.ask(c.from, proto, c.to); who != c.want {
					t.Errorf("%s: %s to %s over %s: %q answers (%v), want %q", ways, c.from, c.to, proto, who, err, c.want)
				}
			})
		}
	}
	asking.Wait()
}
