package command

import (
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/ipam"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

const plainSpec = `{"Image":"alpine"}`

func newNetwork(name string, subnets ...*dv1.Subnet) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_CreateNetwork{CreateNetwork: &dv1.CreateNetwork{Network: &dv1.Network{Id: id("net-" + name), Name: name, Ipv4: true, Subnets: subnets}}}}
}

func with6(c *dv1.Command) *dv1.Command {
	c.GetCreateNetwork().Network.Ipv6 = true
	return c
}

func rmNetwork(name string) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_RemoveNetwork{RemoveNetwork: &dv1.RemoveNetwork{Id: id("net-" + name)}}}
}

func in(network string) *dv1.Endpoint { return &dv1.Endpoint{NetworkId: id("net-" + network)} }

func at(network, ip string) *dv1.Endpoint {
	return &dv1.Endpoint{NetworkId: id("net-" + network), AskedIp: ip}
}

// createIn creates a task on a node, with endpoints.
func createIn(name, node string, endpoints ...*dv1.Endpoint) *dv1.Command {
	c := create(name, plainSpec, "node=="+node)
	c.GetCreate().Endpoints = endpoints
	return c
}

func connect(task string, e *dv1.Endpoint) *dv1.Command {
	e.TaskId = id(task)
	return &dv1.Command{Of: &dv1.Command_Connect{Connect: &dv1.Connect{NetworkId: e.NetworkId, Endpoint: e}}}
}

func disconnect(task, network string) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_Disconnect{Disconnect: &dv1.Disconnect{TaskId: id(task), NetworkId: id("net-" + network)}}}
}

func rm(task string) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: id(task), Force: true}}}
}

func ackRemoved(node string, tasks ...string) *dv1.Command {
	c := &dv1.AckTombstones{NodeId: node}
	for _, t := range tasks {
		c.TaskIds = append(c.TaskIds, id(t))
	}
	return &dv1.Command{Of: &dv1.Command_AckTombstones{AckTombstones: c}}
}

func leftNetwork(node, task, network string) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_LeftNetworks{LeftNetworks: &dv1.LeftNetworks{NodeId: node, TaskIds: [][]byte{id(task)}, NetworkIds: [][]byte{id("net-" + network)}}}}
}

func (f *fleet) network(name string) *dv1.Network { return f.store.Snapshot().NetworkByName(name) }

func (f *fleet) endpoint(task, network string) *dv1.Endpoint {
	return f.store.Snapshot().Endpoint(id(task), id("net-"+network))
}

func (f *fleet) ended(node, task string, attempt int32) {
	f.t.Helper()
	f.report(node, &dv1.TaskReport{TaskId: id(task), Attempt: attempt, Started: 1, Exit: &dv1.Exit{Attempt: attempt}})
}

func TestNetworksAreMade(t *testing.T) {
	f := current(t, "a", "b")
	f.ok(newNetwork("web"))
	f.ok(with6(newNetwork("db")))
	f.ok(newNetwork("own", &dv1.Subnet{Prefix: "172.30.0.0/16", IpRange: "172.30.5.0/24", Gateway: "172.30.5.254"}, &dv1.Subnet{Prefix: "fd00::/64"}))
	f.ok(newNetwork("sized", &dv1.Subnet{Prefix: "0.0.0.0/24"}))
	for name, want := range map[string]struct {
		number  uint32
		subnets string
	}{
		"web":   {1, "10.220.0.0/20 via 10.220.0.1 chosen"},
		"db":    {2, "10.220.16.0/20 via 10.220.16.1 chosen, " + ipv6(f, 2)},
		"own":   {3, "172.30.0.0/16 via 172.30.5.254"}, // without IPv6, its subnet is left out
		"sized": {4, "10.220.32.0/24 via 10.220.32.1 chosen"},
	} {
		n := f.network(name)
		if n.Number != want.number || subnets(n) != want.subnets || n.Driver != "bridge" || n.Created == 0 || n.Principal == "" {
			t.Errorf("%s is %v\nwant %d %s", name, n, want.number, want.subnets)
		}
	}
	// The least number is used again.
	f.ok(rmNetwork("db"))
	f.ok(newNetwork("next"))
	if n := f.network("next"); n.Number != 2 || n.Subnets[0].Prefix != "10.220.16.0/20" {
		t.Errorf("the next one is %v", n)
	}
	// A node's subnet is none that a network has.
	f.ok(newNetwork("pool", &dv1.Subnet{Prefix: "10.0.2.0/23"}))
	f.ok(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{Id: "n2", Name: "c"}}}})
	if n := f.store.Snapshot().Node("n2"); n.Subnet != "10.0.4.0/24" {
		t.Errorf("behind a network a node has %s", n.Subnet)
	}
}

func ipv6(f *fleet, number byte) string {
	b := ipam.Prefix6(f.store.Snapshot().Cluster().Id).Addr().As16()
	b[7] = number
	p := netip.PrefixFrom(netip.AddrFrom16(b), 64)
	return fmt.Sprintf("%s via %s chosen", p, p.Addr().Next())
}

func subnets(n *dv1.Network) string {
	var out []string
	for _, s := range n.Subnets {
		text := s.Prefix + " via " + s.Gateway
		if s.Chosen {
			text += " chosen"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func TestNetworksAreRefused(t *testing.T) {
	f := current(t, "a", "b")
	f.ok(newNetwork("web"))
	f.ok(newNetwork("own", &dv1.Subnet{Prefix: "172.30.0.0/16"}))
	f.ok(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{Id: "n2", Name: "c", Addr: "192.168.7.7:7444"}}}})
	for _, c := range []struct {
		cmd   *dv1.Command
		kind  dv1.Error_Kind
		words string
	}{
		{newNetwork("web"), dv1.Error_INVALID, "new id of 32 bytes"},
		{&dv1.Command{Of: &dv1.Command_CreateNetwork{CreateNetwork: &dv1.CreateNetwork{Network: &dv1.Network{Id: id("x"), Name: "web", Ipv4: true}}}}, dv1.Error_CONFLICT, "network with name web already exists"},
		{newNetwork("bridge"), dv1.Error_FORBIDDEN, "operation is not permitted on predefined bridge network"},
		{newNetwork("none"), dv1.Error_FORBIDDEN, "predefined none network"},
		{newNetwork("default"), dv1.Error_FORBIDDEN, "predefined default network"},
		{newNetwork(" "), dv1.Error_INVALID, "invalid name: name is empty"},
		{newNetwork("a\x00b"), dv1.Error_INVALID, "control characters"},
		{driver("macvlan"), dv1.Error_NOT_FOUND, `plugin "macvlan" not found`},
		{driver("host"), dv1.Error_FORBIDDEN, `only one instance of "host" network is allowed`},
		{newNetwork("x", &dv1.Subnet{Prefix: "172.30.7.0/24"}), dv1.Error_FORBIDDEN, "invalid pool request: Pool overlaps with other one on this address space"},
		{newNetwork("x", &dv1.Subnet{Prefix: "172.0.0.0/8"}), dv1.Error_FORBIDDEN, "Pool overlaps"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.0.0/16"}, &dv1.Subnet{Prefix: "10.9.1.0/24"}), dv1.Error_FORBIDDEN, "Pool overlaps"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.0.0.0/24"}), dv1.Error_FORBIDDEN, "Pool overlaps with other one on this address space: 10.0.0.0/24 is a node's"},
		{newNetwork("x", &dv1.Subnet{Prefix: "192.168.0.0/16"}), dv1.Error_FORBIDDEN, "address space: node c is at 192.168.7.7"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.7/24"}), dv1.Error_INVALID, "invalid network config:\ninvalid subnet 10.9.1.7/24: it should be 10.9.1.0/24"},
		{newNetwork("x", &dv1.Subnet{Prefix: "127.0.0.0/8"}), dv1.Error_INVALID, "127.0.0.0/8: it is not for hosts"},
		{newNetwork("x", &dv1.Subnet{Prefix: "ten"}), dv1.Error_INVALID, "invalid subnet ten"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.0/24", Gateway: "10.9.2.1"}), dv1.Error_INVALID, "invalid gateway 10.9.2.1: parent subnet 10.9.1.0/24 doesn't contain this address"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.0/24", Gateway: "fd00::1"}), dv1.Error_INVALID, "invalid gateway fd00::1: parent subnet is an IPv4 block"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.0/24", Gateway: "x"}), dv1.Error_INVALID, "invalid gateway x: it is no address"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.0/24", Reserved: map[string]string{"host": "10.9.2.1"}}), dv1.Error_INVALID, "invalid auxiliary address host"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.0/24", IpRange: "10.9.0.0/16"}), dv1.Error_INVALID, "invalid ip-range 10.9.0.0/16: CIDR block is bigger than its parent subnet 10.9.1.0/24"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.0/24", IpRange: "10.8.1.0/26"}), dv1.Error_INVALID, "parent subnet 10.9.1.0/24 doesn't contain ip-range"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.0/24", IpRange: "10.9.1.1/26"}), dv1.Error_INVALID, "ip-range 10.9.1.1/26: it should be 10.9.1.0/26"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.0/24", IpRange: "fd00::/80"}), dv1.Error_INVALID, "parent subnet is an IPv4 block"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.1/24", Gateway: "1.1.1.1"}), dv1.Error_INVALID, "invalid network config:\n* invalid subnet"},
		{newNetwork("x", &dv1.Subnet{Prefix: "0.0.0.0/0", Gateway: "10.0.0.1"}), dv1.Error_INVALID, "can't be chosen without the subnet"},
		{newNetwork("x", &dv1.Subnet{Prefix: "0.0.0.0/8"}), dv1.Error_INVALID, "all predefined address pools have been fully subnetted"},
		{newNetwork("x", &dv1.Subnet{Prefix: "10.9.1.1/32", Reserved: map[string]string{"x": "10.9.1.1"}}), dv1.Error_UNAVAILABLE, "failed to allocate gateway"},
		{family(false, false), dv1.Error_INVALID, "IPv4 or IPv6 must be enabled"},
		{large(), dv1.Error_INVALID, "bytes; 65536 at most"},
		{rmNetwork("nope"), dv1.Error_NOT_FOUND, "network " + hex.EncodeToString(id("net-nope")) + " not found"},
	} {
		f.no(c.cmd, c.kind, c.words)
	}
	// All of the pool's subnets are used, and no more.
	for i := 1; i < 64; i++ {
		f.ok(newNetwork(fmt.Sprint("n", i)))
	}
	f.no(newNetwork("last"), dv1.Error_INVALID, "all predefined address pools have been fully subnetted")
	f.ok(rmNetwork("n17"))
	f.ok(newNetwork("last"))
	old := newFleet(t, "10.0.0.0/8", "a")
	old.no(newNetwork("web"), dv1.Error_UNAVAILABLE, "until all controllers know them")
	old.no(createIn("x", "a", in("web")), dv1.Error_UNAVAILABLE, "until all controllers know them")
}

func driver(name string) *dv1.Command {
	c := newNetwork("driven")
	c.GetCreateNetwork().Network.Driver = name
	return c
}

func family(v4, v6 bool) *dv1.Command {
	c := newNetwork("x")
	c.GetCreateNetwork().Network.Ipv4, c.GetCreateNetwork().Network.Ipv6 = v4, v6
	return c
}

func large() *dv1.Command {
	c := newNetwork("x")
	c.GetCreateNetwork().Network.Labels = map[string]string{"a": strings.Repeat("x", maxNetwork)}
	return c
}

func TestANetworkIsFound(t *testing.T) {
	f := current(t)
	f.ok(newNetwork("web"))
	f.ok(newNetwork("db"))
	f.ok(newNetwork(hex.EncodeToString(id("net-web"))[:8])) // a name that is a prefix of an id
	s := f.store.Snapshot()
	web := hex.EncodeToString(id("net-web"))
	for ref, want := range map[string]string{"web": "web", web: "web", web[:9]: "web", web[:8]: web[:8], "nope": "network nope not found", "": "network  not found", web[:7]: "network " + web[:7] + " is ambiguous (3 matches found based on ID prefix)"} {
		n, e := FindNetwork(s, ref)
		if got := n.GetName() + e.GetMessage(); got != want {
			t.Errorf("%q is %q, want %q", ref, got, want)
		}
	}
}

// What a task has of a network, from its create to its node's acknowledgement.
func TestAnEndpointsLife(t *testing.T) {
	f := current(t, "a", "b")
	f.ok(newNetwork("web"))
	f.ok(createIn("x", "a", &dv1.Endpoint{NetworkId: id("net-web"), Aliases: []string{"www"}, GatewayPriority: 7, DriverOpts: map[string]string{"k": "v"}}))
	e := f.endpoint("x", "web")
	if e.Ip != "10.220.0.2" || e.Mac != "02:42:0a:dc:00:02" || e.NodeId != "n0" || len(e.Id) != 32 || e.Aliases[0] != "www" || e.GatewayPriority != 7 || e.DriverOpts["k"] != "v" || e.Asked {
		t.Errorf("it is %v", e)
	}
	if s := f.store.Snapshot().Slice(id("net-web"), "n0"); !slices.Equal(s.GetPrefixes(), []string{"10.220.0.0/26"}) {
		t.Errorf("its node's slice is %v", s)
	}
	f.no(rmNetwork("web"), dv1.Error_FORBIDDEN, fmt.Sprintf(`error while removing network: network web has active endpoints (name:"x" id:"%x")`, e.Id[:6]))
	f.ok(start("x"))
	f.ended("n0", "x", 1)
	if again := f.endpoint("x", "web"); again.Ip != e.Ip {
		t.Errorf("after its end the address is %s", again.Ip)
	}
	f.ok(rm("x"))
	if e = f.endpoint("x", "web"); !e.GetLeaving() || e.Ip == "" {
		t.Fatalf("removed, and not acknowledged, it is %v", e)
	}
	f.ok(rmNetwork("web"))
	if f.network("web") != nil || !f.store.Snapshot().Network(id("net-web")).GetRemoving() {
		t.Error("a removed network with endpoints that leave is not being removed")
	}
	f.no(rmNetwork("web"), dv1.Error_NOT_FOUND, "not found")
	f.no(createIn("y", "a", in("web")), dv1.Error_NOT_FOUND, "not found")
	again := newNetwork("web")
	again.GetCreateNetwork().Network.Id = id("second")
	f.ok(again)
	if n := f.network("web"); n.Number != 2 || n.Subnets[0].Prefix != "10.220.16.0/20" {
		t.Errorf("while the first one's addresses may be in use, the second is %v", n)
	}
	f.ok(ackRemoved("n1", "x")) // another node's word changes nothing
	if f.endpoint("x", "web") == nil {
		t.Error("another node acknowledged the removal")
	}
	f.ok(ackRemoved("n0", "x"))
	s := f.store.Snapshot()
	if f.endpoint("x", "web") != nil || s.Slice(id("net-web"), "n0") != nil || s.Network(id("net-web")) != nil {
		t.Error("something is left of the first network")
	}
}

func TestConnecting(t *testing.T) {
	f := current(t, "a", "b")
	f.ok(newNetwork("web"))
	f.ok(newNetwork("db"))
	f.ok(createIn("x", "a", in("web")))
	f.ok(connect("x", in("db")))
	first := f.endpoint("x", "db")
	if first.Ip != "10.220.16.2" {
		t.Errorf("it has %v", first)
	}
	if r := f.ok(connect("x", in("db"))); r.Changed {
		t.Error("a second connect changed something")
	}
	f.ok(start("x"))
	f.no(connect("x", in("db")), dv1.Error_FORBIDDEN, "endpoint with name x already exists in network db")
	f.ok(disconnect("x", "db"))
	f.no(disconnect("x", "db"), dv1.Error_INTERNAL, "is not connected to network db")
	// Again before the node has said anything: the next word of the first one changes nothing.
	f.ok(connect("x", in("db")))
	f.ok(leftNetwork("n0", "x", "db"))
	if second := f.endpoint("x", "db"); second.GetLeaving() || second.GetIp() == "" || string(second.Id) == string(first.Id) {
		t.Errorf("connected again it is %v", second)
	}
	f.ok(disconnect("x", "db"))
	f.ok(leftNetwork("n1", "x", "db"))
	if f.endpoint("x", "db") == nil {
		t.Error("another node let an address go")
	}
	f.ok(leftNetwork("n0", "x", "db"))
	f.ok(leftNetwork("n0", "x", "db"))
	if f.endpoint("x", "db") != nil || f.endpoint("x", "web") == nil || f.store.Snapshot().Slice(id("net-db"), "n0") != nil {
		t.Error("it left another network than db")
	}
	f.ok(rmNetwork("db"))
	host := create("host", `{"Image":"alpine","HostConfig":{"NetworkMode":"host"}}`)
	f.ok(host)
	f.ok(create("none", `{"Image":"alpine","HostConfig":{"NetworkMode":"none"}}`))
	for _, c := range []struct {
		cmd   *dv1.Command
		kind  dv1.Error_Kind
		words string
	}{
		{connect("nope", in("web")), dv1.Error_NOT_FOUND, "No such container"},
		{connect("x", in("nope")), dv1.Error_NOT_FOUND, "not found"},
		{connect("host", in("web")), dv1.Error_INVALID, "container sharing network namespace with another container or host cannot be connected to any other network"},
		{connect("none", in("web")), dv1.Error_INVALID, "private (none) mode"},
		{disconnect("nope", "web"), dv1.Error_NOT_FOUND, "No such container"},
		{disconnect("x", "db"), dv1.Error_NOT_FOUND, "not found"},
		{disconnect("host", "web"), dv1.Error_INTERNAL, "is not connected to network web"},
		{connect("none", at("web", "10.1.1.1")), dv1.Error_INVALID, "invalid endpoint settings:\nno configured subnet contains IP address 10.1.1.1"},
		{connect("none", &dv1.Endpoint{NetworkId: id("net-web"), AskedIp6: "fd00::7"}), dv1.Error_INVALID, "no configured subnet contains IP address fd00::7"},
		{connect("none", at("web", "fd00::7")), dv1.Error_INVALID, "invalid IPv4 address: fd00::7"},
		{connect("none", &dv1.Endpoint{NetworkId: id("net-web"), AskedMac: "1:2"}), dv1.Error_INVALID, "invalid MAC address: 1:2"},
		{connect("none", &dv1.Endpoint{NetworkId: id("net-web"), AskedMac: "01:00:5e:00:00:01"}), dv1.Error_INVALID, "invalid MAC address: 01:00:5e:00:00:01"},
		{connect("none", &dv1.Endpoint{NetworkId: id("net-web"), LinkLocal: []string{"x"}}), dv1.Error_INVALID, "invalid link-local IP address: x"},
		{connect("none", &dv1.Endpoint{NetworkId: id("net-web"), LinkLocal: []string{"169.254.1.1", "10.220.0.9"}}), dv1.Error_INVALID, "invalid link-local IP address: 10.220.0.9"},
		{connect("none", &dv1.Endpoint{NetworkId: id("net-web"), LinkLocal: []string{"fe80::1%eth0"}}), dv1.Error_INVALID, "invalid link-local IP address: fe80::1%eth0"},
		{connect("none", &dv1.Endpoint{NetworkId: id("net-web"), Aliases: []string{strings.Repeat("x", maxEndpoints)}}), dv1.Error_INVALID, "more than 32768 bytes"},
		{createIn("twice", "a", in("web"), in("web")), dv1.Error_INVALID, "network web is named twice"},
		{&dv1.Command{Of: &dv1.Command_LeftNetworks{LeftNetworks: &dv1.LeftNetworks{NodeId: "n0", TaskIds: [][]byte{id("x")}}}}, dv1.Error_INVALID, "1 tasks left 0 networks"},
	} {
		f.no(c.cmd, c.kind, c.words)
	}
}

// However many networks a container is connected to, its removal fits into one entry.
func TestAContainerInManyNetworksCanBeRemoved(t *testing.T) {
	f := current(t, "a")
	f.ok(createIn("x", "a"))
	var refused *dv1.Error
	for i := 0; refused == nil; i++ {
		if i == 1000 {
			t.Fatal("a container is in a thousand networks")
		}
		name := fmt.Sprint("n", i)
		f.fill(with6(newNetwork(name, &dv1.Subnet{Prefix: fmt.Sprintf("172.%d.%d.0/24", 16+i/250, i%250)})))
		e := in(name)
		e.Aliases = []string{name}
		refused = f.do(connect("x", e)).Error
	}
	if !strings.Contains(refused.Message, "in all of its networks have more than 32768 bytes") {
		t.Error(refused)
	}
	for _, c := range []*dv1.Command{rm("x"), ackRemoved("n0", "x")} {
		size := 0
		effects, _ := f.onBatch(f.store.Snapshot()).Decide(accesstest.Named(f.store.Snapshot(), c), f.now())
		for _, e := range effects {
			size += proto.Size(e) + 8
		}
		if size > 2*budget {
			t.Errorf("%T needs %d bytes of the log", c.Of, size)
		}
		f.ok(c)
	}
	if f.endpoint("x", "n0") != nil {
		t.Error("an endpoint is left")
	}
}

// As docker, the fleet keeps an address for what runs: who only was, or will be, gives it
// away.
func TestAnAddressIsOfWhatRuns(t *testing.T) {
	f := current(t, "a", "b")
	f.ok(newNetwork("web", &dv1.Subnet{Prefix: "10.9.0.0/24"}))
	f.ok(createIn("old", "a", at("web", "10.9.0.77")))
	f.ok(start("old"))
	f.ok(createIn("new", "b", at("web", "10.9.0.77"))) // as compose does before it stops the old one
	if e := f.endpoint("new", "web"); e.Ip != "" || e.Mac != "" || e.AskedIp != "10.9.0.77" {
		t.Fatalf("of an address that is taken it has %v", e)
	}
	f.no(start("new"), dv1.Error_FORBIDDEN, "failed to set up container networking: Address already in use")
	f.ended("n0", "old", 1)
	f.ok(start("new"))
	if e := f.endpoint("new", "web"); e.Ip != "10.9.0.77" || e.Mac != "02:42:0a:09:00:4d" || !e.Asked {
		t.Errorf("it has %v", e)
	}
	if e := f.endpoint("old", "web"); e.Ip != "" || e.Mac != "" {
		t.Errorf("the other one has %v", e)
	}
	f.no(start("old"), dv1.Error_FORBIDDEN, "Address already in use")
	// Removed, it may still have the address until its node says it has not.
	f.ok(rm("new"))
	f.no(start("old"), dv1.Error_FORBIDDEN, "Address already in use")
	f.ok(ackRemoved("n1", "new"))
	f.ok(start("old"))
	f.no(connect("old", at("web", "10.9.0.78")), dv1.Error_FORBIDDEN, "already exists in network")
	// The gateway is in use by itself.
	f.ok(createIn("gw", "a", at("web", "10.9.0.1")))
	f.no(start("gw"), dv1.Error_FORBIDDEN, "Address already in use")
}

func TestAFullNetwork(t *testing.T) {
	f := current(t, "a", "b")
	f.ok(newNetwork("tiny", &dv1.Subnet{Prefix: "10.9.0.0/29"})) // .2 to .6
	for i, node := range []string{"a", "b", "a", "b", "a"} {
		f.ok(createIn(fmt.Sprint("t", i), node, in("tiny")))
		f.ok(start(fmt.Sprint("t", i)))
	}
	f.ok(createIn("more", "b", in("tiny")))
	f.no(start("more"), dv1.Error_UNAVAILABLE, fmt.Sprintf("failed to set up container networking: no available IPv4 addresses on this network's address pools: tiny (%x)", id("net-tiny")))
	f.ok(createIn("connected", "a"))
	f.ok(start("connected"))
	f.no(connect("connected", in("tiny")), dv1.Error_UNAVAILABLE, "no available IPv4 addresses")
	f.ended("n0", "t2", 1)
	f.ok(start("more"))
	if got, was := f.endpoint("more", "tiny"), f.endpoint("t2", "tiny"); got.Ip == "" || !got.Asked || was.Ip != "" {
		t.Errorf("it has %v, and the other one %v", got, was)
	}
	f.no(start("t2"), dv1.Error_UNAVAILABLE, "no available")
}

// Who needs two addresses of one container that ended, or two of one run who need an
// address each, take each address once.
func TestAddressesAreTakenOverOnce(t *testing.T) {
	f := current(t, "a", "b")
	f.ok(with6(newNetwork("both", &dv1.Subnet{Prefix: "10.9.0.0/24"}, &dv1.Subnet{Prefix: "fd00::/64"})))
	asked := func() *dv1.Endpoint {
		return &dv1.Endpoint{NetworkId: id("net-both"), AskedIp: "10.9.0.77", AskedIp6: "fd00::77"}
	}
	f.ok(createIn("old", "a", asked()))
	f.ok(start("old"))
	f.ok(createIn("new", "b", asked()))
	f.ended("n0", "old", 1)
	f.ok(start("new"))
	if got, was := f.endpoint("new", "both"), f.endpoint("old", "both"); got.Ip != "10.9.0.77" || got.Ip6 != "fd00::77" || was.Ip != "" || was.Ip6 != "" {
		t.Errorf("it has %v, and the other one %v", got, was)
	}

	f.ok(newNetwork("tiny", &dv1.Subnet{Prefix: "10.8.0.0/29"})) // .2 to .6
	for i := range 5 {
		name := fmt.Sprint("t", i)
		f.ok(createIn(name, "a", in("tiny")))
		if f.ok(start(name)); i < 2 {
			f.ended("n0", name, 1)
		}
	}
	r := f.ok(each("job", "", started, func(c *dv1.CreateRun) { c.Endpoints = []*dv1.Endpoint{in("tiny")} }))
	if len(r.Placed) != 2 {
		t.Fatalf("with two addresses to take, %v is made", r)
	}
	f.consistent([]string{"both", "tiny"})
}

// A run over more nodes than there are addresses gets a task for each address, also where
// the addresses end in a later entry.
func TestARunEndsWithTheAddresses(t *testing.T) {
	f := current(t)
	const nodes, addresses = 400, 253
	var all []*dv1.Effect
	for i := range nodes {
		all = append(all, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprintf("node-%08d", i), Name: fmt.Sprint("host-", i), Liveness: dv1.Node_READY, Availability: dv1.Node_ACTIVE}}})
	}
	f.entry(all...)
	f.ok(newNetwork("web", &dv1.Subnet{Prefix: "172.30.0.0/24"}))
	inWeb := func(c *dv1.CreateRun) { c.Endpoints = []*dv1.Endpoint{in("web")} }
	if r := f.ok(each("job", "", started, inWeb)); r.Left == 0 {
		t.Fatal("the run fits one entry: it needs more nodes")
	}
	var last *dv1.CommandResult
	for f.store.Snapshot().Run(id("run-job")).GetFilling() {
		last = f.ok(&dv1.Command{Of: &dv1.Command_FillRun{FillRun: &dv1.FillRun{RunId: id("run-job")}}})
	}
	if n := f.store.Snapshot().Run(id("run-job")).Count; n != addresses {
		t.Errorf("%d tasks are made, of %d addresses", n, addresses)
	}
	if why := rejected(last); len(why) != 1 || !strings.Contains(why[0], "lack an address: failed to set up container networking: no available IPv4 addresses") {
		t.Errorf("other nodes have none, for %v", why)
	}
	f.consistent([]string{"web"})
	f.no(each("next", "", started, inWeb), dv1.Error_UNAVAILABLE, "0 of 400 nodes fit: 400 lack an address")
	f.ok(each("made", "", inWeb)) // what is started later may find one
}

// Each of a run's tasks gets an endpoint, also in later entries, and users can't choose
// one address for all.
func TestARunsEndpoints(t *testing.T) {
	f := current(t)
	const nodes = 400
	var all []*dv1.Effect
	for i := range nodes {
		all = append(all, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprintf("node-%08d", i), Name: fmt.Sprint("host-", i), Liveness: dv1.Node_READY, Availability: dv1.Node_ACTIVE}}})
	}
	f.entry(all...)
	f.ok(newNetwork("web", &dv1.Subnet{Prefix: "172.30.0.0/16"}))
	f.no(each("job", "", func(c *dv1.CreateRun) { c.Endpoints = []*dv1.Endpoint{at("web", "172.30.0.9")} }), dv1.Error_INVALID, "addresses can't be chosen for a run over nodes")
	r := f.ok(each("job", "", started, func(c *dv1.CreateRun) { c.Endpoints = []*dv1.Endpoint{in("web")} }))
	if r.Left == 0 {
		t.Fatal("the run fits one entry: it needs more nodes")
	}
	for _, p := range r.Placed { // none is left of the first entry
		f.entry(&dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: p.TaskId}}, &dv1.Effect{Of: &dv1.Effect_DeleteEndpoint{DeleteEndpoint: append(slices.Clone(p.TaskId), id("net-web")...)}})
	}
	f.no(rmNetwork("web"), dv1.Error_FORBIDDEN, "of run job, whose tasks are being made")
	for f.store.Snapshot().Run(id("run-job")).GetFilling() {
		f.fill(&dv1.Command{Of: &dv1.Command_FillRun{FillRun: &dv1.FillRun{RunId: id("run-job")}}})
	}
	seen := map[string]bool{}
	for e := range f.store.Snapshot().EndpointsOfNetwork(id("net-web")) {
		if seen[e.Ip] || e.Ip == "" || f.store.Snapshot().Task(e.TaskId).NodeId != e.NodeId {
			t.Fatalf("%v has an address twice, or none, or is elsewhere than its task", e)
		}
		seen[e.Ip] = true
	}
	if want := nodes - len(r.Placed); len(seen) != want {
		t.Errorf("%d tasks have addresses, want %d", len(seen), want)
	}
}

func TestANodeGoesWithItsEndpoints(t *testing.T) {
	f := current(t, "a", "b")
	f.ok(newNetwork("web"))
	f.ok(createIn("x", "b", in("web")))
	f.ok(createIn("y", "b", in("web")))
	f.ok(createIn("z", "a", in("web")))
	f.ok(rm("y"))
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "b", Force: true}}})
	s := f.store.Snapshot()
	if f.endpoint("x", "web") != nil || f.endpoint("y", "web") != nil || s.Slice(id("net-web"), "n1") != nil {
		t.Error("something is left of the node")
	}
	if f.endpoint("z", "web") == nil || s.Slice(id("net-web"), "n0") == nil {
		t.Error("another node's went too")
	}
}

// Any history of networks and their containers: addresses are unique (the state refuses
// anything else), whatever is live has all of its addresses, slices are of nodes that
// have endpoints, and with the last container nothing is left.
func TestAnyHistoryOfNetworks(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	f := current(t, "a", "b", "c")
	nets := []string{"one", "two", "six"}
	f.ok(newNetwork("one"))
	f.ok(newNetwork("two", &dv1.Subnet{Prefix: "10.9.0.0/28"}))
	f.ok(with6(newNetwork("six", &dv1.Subnet{Prefix: "10.8.0.0/27"}, &dv1.Subnet{Prefix: "fd00::/120"})))
	attempts := map[string]int32{}
	node := map[string]string{}
	for step := range 1500 {
		name := fmt.Sprint("t", r.IntN(24))
		net := nets[r.IntN(len(nets))]
		before := f.store.Snapshot().Index()
		var c *dv1.Command
		switch op := r.IntN(9); {
		case node[name] == "":
			e := in(net)
			if net == "two" && r.IntN(2) == 0 {
				e.AskedIp = fmt.Sprint("10.9.0.", r.IntN(16))
			}
			n := r.IntN(3)
			c = createIn(name, string(rune('a'+n)), e)
			c.GetCreate().RunId = id(fmt.Sprint("run", step))
			if f.do(c).Error == nil {
				node[name], attempts[name] = fmt.Sprint("n", n), 0
			}
		case op < 3:
			if f.do(start(name)).Error == nil {
				attempts[name] = f.store.Snapshot().Task(id(name)).Attempt
			}
		case op < 5 && attempts[name] > 0:
			f.ended(node[name], name, attempts[name])
		case op == 5:
			f.do(connect(name, in(net)))
		case op == 6:
			f.do(disconnect(name, net))
			if r.IntN(2) == 0 {
				f.do(leftNetwork(node[name], name, net))
			}
		case op == 7:
			f.ok(rm(name))
			f.ok(ackRemoved(node[name], name))
			node[name] = ""
		}
		if f.store.Snapshot().Index() != before {
			f.consistent(nets)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(node)) {
		if node[name] != "" {
			f.ok(rm(name))
			f.ok(ackRemoved(node[name], name))
		}
	}
	for _, net := range nets {
		f.ok(rmNetwork(net))
	}
	s := f.store.Snapshot()
	for range s.Networks() {
		t.Error("a network is left")
	}
	for _, n := range []string{"n0", "n1", "n2"} {
		for range s.SlicesOfNode(n) {
			t.Error("a slice is left")
		}
	}
}

func (f *fleet) consistent(nets []string) {
	f.t.Helper()
	s := f.store.Snapshot()
	for _, net := range nets {
		n := f.network(net)
		has := map[string]bool{}
		for e := range s.EndpointsOfNetwork(n.Id) {
			has[e.NodeId] = true
			t := s.Task(e.TaskId)
			if t != nil && state.Live(t) && !e.Leaving && ipam.Lacks(n, e) {
				f.t.Fatalf("%s runs without an address: %v", t.Name, e)
			}
		}
		for slice := range s.Slices(n.Id) {
			if !has[slice.NodeId] {
				f.t.Fatalf("node %s has a slice of %s, and nothing in it", slice.NodeId, net)
			}
		}
	}
}

// What deciding costs in a network of 10,000 endpoints on 100 nodes.
func BenchmarkCreateInALargeNetwork(b *testing.B) {
	x := state.NewTxn(state.NewStore().Snapshot())
	put := func(effects ...*dv1.Effect) {
		if err := x.Apply(effects...); err != nil {
			b.Fatal(err)
		}
	}
	admin := "spiffe://fleet/user/admin"
	put(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: &dv1.Cluster{Id: "fleet", FeatureLevel: state.FeatureLevel}}},
		&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: admin, Roles: []string{"admin"}}}},
		&dv1.Effect{Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: digest}}}, &dv1.Effect{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: "docker.io/library/alpine:latest", Digest: digest}}})
	for i := range 100 {
		put(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprintf("n%03d", i), Name: fmt.Sprint("h", i), Availability: dv1.Node_ACTIVE, Liveness: dv1.Node_READY, Capacity: &dv1.Capacity{Memory: 1 << 40}}}})
	}
	batch := NewBatch(x)
	for _, networked := range []bool{true, false} {
		b.Run(fmt.Sprint("networked=", networked), func(b *testing.B) {
			if x.NetworkByName("large") == nil {
				c := newNetwork("large", &dv1.Subnet{Prefix: "172.16.0.0/16"})
				c.Principal = admin
				effects, res := batch.Decide(c, 1)
				if res.Error != nil {
					b.Fatal(res.Error)
				}
				put(effects...)
				for i := range 10000 {
					c := create(fmt.Sprint("f", i), plainSpec)
					c.Principal, c.GetCreate().Endpoints, c.GetCreate().Contact = admin, []*dv1.Endpoint{in("large")}, ""
					effects, res := batch.Decide(c, 1)
					if res.Error != nil {
						b.Fatal(res.Error)
					}
					if err := batch.Apply(effects...); err != nil {
						b.Fatal(err)
					}
				}
			}
			c := create("new", plainSpec)
			c.Principal, c.GetCreate().Contact = admin, ""
			if networked {
				c.GetCreate().Endpoints = []*dv1.Endpoint{in("large")}
			}
			b.ResetTimer()
			for range b.N {
				if _, res := batch.Decide(proto.CloneOf(c), 1); res.Error != nil {
					b.Fatal(res.Error)
				}
			}
		})
	}
}

// Who shares a container's network is on its node, whatever else is asked for.
func TestASharedNetworkPinsToItsNode(t *testing.T) {
	f := current(t, "a", "b")
	f.ok(create("app", plainSpec, "node==b"))
	f.ok(create("other", plainSpec, "node==a"))
	sharing := func(name, of string, on ...string) *dv1.Command {
		return create(name, `{"Image":"alpine","HostConfig":{"NetworkMode":"container:`+of+`"}}`, on...)
	}
	for i, ref := range []string{"app", "/app", hex.EncodeToString(id("app")), hex.EncodeToString(id("app"))[:8]} {
		if r := f.ok(sharing(fmt.Sprint("side", i), ref)); r.NodeId != "n1" {
			t.Errorf("by %s it is on %s", ref, r.NodeId)
		}
	}
	f.no(sharing("x", "nobody"), dv1.Error_INVALID, "No such container: nobody")
	f.no(sharing("x", "app", "node==a"), dv1.Error_UNAVAILABLE, "1 excluded: the network of app is on b")
	f.no(create("x", `{"Image":"alpine","HostConfig":{"NetworkMode":"container:app","VolumesFrom":["other"]}}`), dv1.Error_UNAVAILABLE,
		"no node fits: the network of app is on b, but the volumes of other are on a")
	f.no(connect("side0", in("web")), dv1.Error_NOT_FOUND, "not found")
	f.ok(newNetwork("web"))
	f.no(connect("side0", in("web")), dv1.Error_INVALID, "container sharing network namespace with another container or host cannot be connected to any other network")
	r := f.ok(each("job", `"NetworkMode":"container:app"`))
	if len(r.Placed) != 1 || r.Placed[0].NodeId != "n1" {
		t.Errorf("a run over nodes is on %v", r.Placed)
	}

	old := newFleet(t, "10.0.0.0/8", "a")
	old.ok(create("app", plainSpec))
	old.no(sharing("x", "app"), dv1.Error_UNAVAILABLE, "networks have to wait until all controllers know them")
}
