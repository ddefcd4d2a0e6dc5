package network

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestEndpoints(t *testing.T) {
	id := strings.Repeat("ab", 32)
	n := &Network{fabric: &fabric{}, o: Options{Bridge: "drv0", Prefix: "dvn", Subnet: netip.MustParsePrefix("10.1.2.0/24")}, taken: map[netip.Addr]string{}}
	n.last = n.gateway()
	n.nets = byID(Topology{Networks: []Fleet{
		{ID: "red", Number: 7, Subnets: []Subnet{subnet("10.220.0.0/20", "10.220.0.1"), subnet("fd20::/64", "fd20::1")}},
		{ID: "dark", Number: 8, Internal: true, Subnets: []Subnet{subnet("10.221.0.0/20", "10.221.0.1")}},
	}})
	ports := []*dv1.Port{{Ip: "0.0.0.0", Host: 8080, Container: 80}, {Ip: "127.0.0.1", Proto: "udp", Container: 53}}
	s := &Sandbox{}
	for i, c := range []struct {
		Connection
		want Endpoint
	}{
		{Connection{Network: Bridge, GatewayPriority: 3, Ports: ports}, Endpoint{
			Network: "bridge", Bridge: "drv0", Name: "eth0", Link: "dvrabababababab", Addresses: prefixes("10.1.2.2/24"), Gateway: netip.MustParseAddr("10.1.2.1"),
			GatewayPriority: 3, MAC: "02:42:0a:01:02:02", Ports: []Port{{Proto: "tcp", Host: 8080, Container: 80}, {IP: "127.0.0.1", Proto: "udp", Container: 53}},
		}},
		{Connection{Network: "red", Addresses: addrs("10.220.0.9", "fd20::9"), LinkLocal: addrs("169.254.7.7"), MAC: "02:00:00:00:00:09", Options: map[string]string{
			optionName: "wan0", optionSysctls: "net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.neigh.IFNAME.anycast_delay=2", "else": "ignored",
		}}, Endpoint{
			Network: "red", Bridge: "dvn7", Name: "wan0", Link: "dvrababababa-1", Addresses: prefixes("10.220.0.9/20", "fd20::9/64"), LinkLocal: prefixes("169.254.7.7/16"),
			Gateway: netip.MustParseAddr("10.220.0.1"), Gateway6: gateway6, MAC: "02:00:00:00:00:09",
			Sysctls: map[string]string{"ipv4/conf/wan0/log_martians": "1", "ipv6/neigh/wan0/anycast_delay": "2"},
		}},
		{Connection{Network: "dark", Addresses: addrs("10.221.0.9"), GatewayPriority: 9}, Endpoint{
			Network: "dark", Bridge: "dvn8", Name: "eth1", Link: "dvrababababa-2", Addresses: prefixes("10.221.0.9/20"), GatewayPriority: 9, MAC: "02:42:0a:dd:00:09",
		}},
	} {
		e, err := n.endpoint(id, c.Connection, s.Endpoints)
		if err != nil || !reflect.DeepEqual(e, c.want) || len(e.Link) > maxName {
			t.Errorf("%d: %+v, %v; want %+v", i, e, err, c.want)
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	if d := s.Default(); d.Network != "bridge" {
		t.Errorf("the default route is by %s", d.Network)
	}
	s.Endpoints[1].GatewayPriority = 4
	if d := s.Default(); d.Network != "red" {
		t.Errorf("the default route is by %s, which has less of a priority", d.Network)
	}
	if p := s.Ports(); len(p) != 2 || p[1].Proto != "udp" || p[0].Host != 8080 {
		t.Errorf("published are %v", p)
	}
	if a := (Endpoint{Addresses: prefixes("fd00::1/64")}).IPv4(); a.IsValid() {
		t.Errorf("one without IPv4 has %v", a)
	}
	if d := (&Sandbox{}).Default(); d.Name != "" {
		t.Errorf("without endpoints, the default route is by %v", d)
	}
}

func subnet(prefix, gateway string) Subnet {
	return Subnet{Prefix: netip.MustParsePrefix(prefix), Gateway: netip.MustParseAddr(gateway)}
}

func prefixes(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addrs(all ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestConnectionsThatNoNodeCanMakeAreRefused(t *testing.T) {
	red := Connection{Network: "red", Addresses: addrs("10.220.0.9")}
	with := func(change func(*Connection)) Connection {
		c := red
		change(&c)
		return c
	}
	named := func(name string) Connection {
		return with(func(c *Connection) { c.Options = map[string]string{optionName: name} })
	}
	for want, to := range map[string][]Connection{
		"twice":                                    {red, red},
		"this node was not told":                   {{Network: "other", Addresses: addrs("10.220.0.9")}},
		"it has no address there":                  {{Network: "red"}},
		"can't have the address 10.9":              {{Network: "red", Addresses: addrs("10.9.0.9")}},
		"can't have the address 10.220.0.1":        {{Network: "red", Addresses: addrs("10.220.0.1")}},
		"can't have the address 10.220.0.8":        {{Network: "red", Addresses: addrs("10.220.0.9", "10.220.0.8")}},
		"10.220.0.7 is that of container somebody": {{Network: "red", Addresses: addrs("10.220.0.7")}},
		`invalid MAC address "01:00:00:00:00:00"`:  {with(func(c *Connection) { c.MAC = "01:00:00:00:00:00" })},
		`invalid MAC address "x"`:                  {with(func(c *Connection) { c.MAC = "x" })},
		`"lo" can't be the name`:                   {named("lo")},
		`"a/b" can't be`:                           {named("a/b")},
		`"0123456789abcdef" can't be`:              {named("0123456789abcdef")},
		`"eth0" can't be the name`:                 {{Network: Bridge}, named("eth0")},
		`"net.ipv4.ip_forward=1" is not a sysctl`:  {with(func(c *Connection) { c.Options = map[string]string{optionSysctls: "net.ipv4.ip_forward=1"} })},
		`"net.ipv4.conf.IFNAME.x" is not`:          {with(func(c *Connection) { c.Options = map[string]string{optionSysctls: "net.ipv4.conf.IFNAME.x"} })},
		`"net.ipv4.conf.IFNAME./../x=1" is not`:    {with(func(c *Connection) { c.Options = map[string]string{optionSysctls: "net.ipv4.conf.IFNAME./../x=1"} })},
		`"net.ipv4.conf.eth9.x=1" is not`:          {with(func(c *Connection) { c.Options = map[string]string{optionSysctls: "net.ipv4.conf.eth9.x=1"} })},
		"10.0.0.1 is not a link-local address":     {with(func(c *Connection) { c.LinkLocal = addrs("10.0.0.1") })},
	} {
		n := &Network{fabric: &fabric{}, o: Options{Bridge: "drv0", Prefix: "dvn", Subnet: netip.MustParsePrefix("10.1.2.0/24")}, sandboxes: map[string]*Sandbox{}}
		n.nets = byID(Topology{Networks: []Fleet{{ID: "red", Number: 7, Subnets: []Subnet{subnet("10.220.0.0/20", "10.220.0.1")}}}})
		n.taken, n.last = map[netip.Addr]string{netip.MustParseAddr("10.220.0.7"): "somebody"}, n.gateway()
		_, err := n.Attach(t.Context(), name(1), to)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", to, err, want)
		}
		if len(n.List()) > 0 || len(n.taken) != 1 {
			t.Errorf("%v: left %v, %v", to, n.List(), n.taken)
		}
	}
}

// What this build writes it reads, and so it does what the build before wrote.
func TestSandboxesOnDisk(t *testing.T) {
	dir := t.TempDir()
	n := &Network{o: Options{Dir: dir, NetnsDir: "/run/ns", Subnet: netip.MustParsePrefix("10.1.2.0/24")}}
	s := &Sandbox{Version: sandboxVersion, ID: name(1), Netns: "/run/ns/x", Boot: "b", Endpoints: []Endpoint{{
		Network: Bridge, Name: "eth0", Link: linkName(name(1), 0), Addresses: prefixes("10.1.2.9/24"), Gateway: n.gateway(), MAC: "02:42:0a:01:02:09",
		Ports: []Port{{Proto: "tcp", Host: 8080, Container: 80}},
	}}}
	if err := n.save(s); err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprintf(`{"Version":1,"ID":%q,"Netns":"/run/ns/x","IP":"10.1.2.9","Gateway":"10.1.2.1","PrefixLen":24,`+
		`"MAC":"02:42:0a:01:02:09","Ports":[{"IP":"","Proto":"tcp","Host":8080,"Container":80}],"Boot":"b"}`, name(1))
	old := filepath.Join(t.TempDir(), name(1)+".json")
	if err := os.WriteFile(old, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	two := filepath.Join(t.TempDir(), name(1)+".json")
	before = fmt.Sprintf(`{"Version":2,"ID":%q,"Netns":"/run/ns/x","Endpoints":[{"Network":"bridge","Name":"eth0","Link":%q,"Addresses":["10.1.2.9/24"],`+
		`"Gateway":"10.1.2.1","GatewayPriority":0,"MAC":"02:42:0a:01:02:09","Ports":[{"IP":"","Proto":"tcp","Host":8080,"Container":80}]}],"Boot":"b"}`, name(1), linkName(name(1), 0))
	if err := os.WriteFile(two, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{n.file(name(1)), old, two} {
		if got, err := readSandbox(file); err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%s: %+v, %v; want %+v", file, got, err, s)
		}
	}
}

// A container that runs when its agent is replaced by this build keeps its network.
func TestASandboxOfTheBuildBeforeGoesOn(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
	must(t, err)
	w.answer(a, 80)
	must(t, w.n.Close())
	e := a.Endpoints[0]
	b, err := json.Marshal(map[string]any{"Version": 1, "ID": a.ID, "Netns": a.Netns, "IP": e.IPv4().Addr(), "Gateway": e.Gateway,
		"PrefixLen": e.IPv4().Bits(), "MAC": e.MAC, "Ports": e.Ports, "Boot": a.Boot})
	must(t, err)
	must(t, os.WriteFile(w.n.file(a.ID), b, 0o600))
	w.open()
	w.reached("after the update", a, hostIP+":8080")
	a.Endpoints[0].Bridge = "" // which it was not told
	if again, err := w.n.Attach(t.Context(), name(1), on(nil)); err != nil || !reflect.DeepEqual(again, a) {
		t.Errorf("it is %+v (%v), was %+v", again, err, a)
	}
	must(t, w.n.Detach(t.Context(), name(1)))
	if linked(a) {
		t.Error("its cable is left")
	}
}

// A container that is started again keeps its address and its ports, even if its agent was
// replaced meanwhile. Its namespace stays only if it is as good as a new one: a port that
// a connection still occupies, or what the container has configured, would be in the way.
func TestASandboxIsRenewed(t *testing.T) {
	for _, c := range []struct {
		name    string
		changed bool
		used    bool // a connection waits for its end to be forgotten
		reopen  bool
		stays   bool
	}{
		{name: "as good as new", stays: true},
		{name: "by the next agent", reopen: true, stays: true},
		{name: "configured", changed: true},
		{name: "used", used: true},
		{name: "used, by the next agent", used: true, reopen: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 0 80")))
			must(t, err)
			addr, port, was := ip(a), a.Endpoints[0].Ports[0].Host, inode(t, a.Netns)
			open, err := netns.GetFromPath(a.Netns) // else another one could get its number
			must(t, err)
			defer func() { _ = open.Close() }()
			if c.used {
				w.leaveConnection(a, 80)
			}
			must(t, w.n.Renew(t.Context(), name(1), c.changed))
			if c.reopen {
				must(t, w.n.Close())
				w.open()
			}
			b, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 0 80")))
			must(t, err)
			if ip(b) != addr || b.Endpoints[0].Ports[0].Host != port {
				t.Errorf("it is %+v, was at %v and %d", b, addr, port)
			}
			if stays := inode(t, b.Netns) == was; stays != c.stays {
				t.Errorf("its namespace stays: %v", stays)
			}
			w.answer(b, 80)
			w.reached("started again", b, fmt.Sprintf("%s:%d", hostIP, port))
			must(t, w.n.Detach(t.Context(), name(1)))
		})
	}
	w := newWorld(t)
	must(t, w.n.Renew(t.Context(), name(9), true)) // there is none
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Ino
}

// leaveConnection leaves a connection to a port in TIME_WAIT.
func (w *world) leaveConnection(s *Sandbox, port int) {
	w.t.Helper()
	ns, err := netns.GetFromPath(s.Netns)
	must(w.t, err)
	defer func() { _ = ns.Close() }()
	_, err = in(ns, func() (struct{}, error) {
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return struct{}{}, err
		}
		defer l.Close()
		client, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return struct{}{}, err
		}
		server, err := l.Accept()
		if err != nil {
			return struct{}{}, err
		}
		_ = server.Close() // who closes first waits
		_, _ = io.ReadAll(client)
		return struct{}{}, client.Close()
	})
	must(w.t, err)
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"Version":1,"IP":"10.0.0.1","PrefixLen":99}`))
	f.Add([]byte(`{"Version":2,"Endpoints":[{"Addresses":["10.0.0.1/24"]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decode(b); err == nil && s.Version != sandboxVersion {
			t.Errorf("version %d", s.Version)
		}
	})
}
