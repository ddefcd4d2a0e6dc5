package engine_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/resolver"
	"github.com/drover/drover/agent/resolver/resolverapi"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// told is what the node was told of the fleet's networks, as syncs would.
type told struct {
	w        *world
	net      *network.Network
	networks []*dv1.Network
	names    []resolverapi.Name
	resolver *resolver.Resolver
	end      func() // of what an agent has of the resolver
}

func (w *world) tell(net *network.Network) {
	w.told = &told{w: w, net: net}
	w.o.Fleet = w.told
	w.told.agent()
}

// agent runs an agent's part of the resolver.
func (f *told) agent() {
	f.resolver = resolver.New(resolver.Options{Binary: f.w.dir + "/drover-resolver", Dir: f.w.run + "/resolver", Node: "self", Root: f.w.dir, Names: f,
		Idle: time.Second, Log: slog.New(slog.DiscardHandler)})
	f.w.o.Resolver = f.resolver
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	f.end = func() { cancel(); <-done }
	f.w.t.Cleanup(f.end)
	go func(r *resolver.Resolver) { defer close(done); _ = r.Run(ctx) }(f.resolver)
}

func (f *told) Await(context.Context) error { return nil }

func (f *told) Network(id []byte) *dv1.Network {
	for _, n := range f.networks {
		if bytes.Equal(n.Id, id) {
			return n
		}
	}
	return nil
}

func (f *told) All() (networks []resolverapi.Network, names []resolverapi.Name) {
	for _, n := range f.networks {
		networks = append(networks, resolverapi.Network{ID: hex.EncodeToString(n.Id), Name: n.Name})
	}
	return networks, f.names
}

// network has the node know one more, of which it is told subnet 10.198.N.0/24.
func (f *told) network(name string, internal bool) *dv1.Network {
	f.w.t.Helper()
	number := byte(len(f.networks) + 1)
	base := netip.AddrFrom4([4]byte{10, 198, number, 0})
	n := &dv1.Network{Id: bytes.Repeat([]byte{number}, 32), Name: name, Number: uint32(number), Internal: internal,
		Subnets: []*dv1.Subnet{{Prefix: base.String() + "/24", Gateway: base.Next().String()}}}
	f.networks = append(f.networks, n)
	t := network.Topology{Self: "self"}
	for _, n := range f.networks {
		p := netip.MustParsePrefix(n.Subnets[0].Prefix)
		t.Networks = append(t.Networks, network.Fleet{ID: hex.EncodeToString(n.Id), Number: n.Number, Internal: n.Internal,
			Subnets: []network.Subnet{{Prefix: p, Gateway: netip.MustParseAddr(n.Subnets[0].Gateway)}},
			Routes:  []network.Route{{Prefix: netip.PrefixFrom(p.Addr(), 26), Node: "self"}}})
	}
	if err := f.net.Apply(context.Background(), t); err != nil {
		f.w.t.Fatal(err)
	}
	f.resolver.Changed(nil, []resolverapi.Network{{ID: hex.EncodeToString(n.Id), Name: name}}, nil)
	return n
}

// endpoint gives a task the address 10.198.N.host, and names.
func (f *told) endpoint(n *dv1.Network, id string, host byte, names ...string) *dv1.Endpoint {
	raw, _ := hex.DecodeString(id)
	ip := netip.AddrFrom4([4]byte{10, 198, byte(n.Number), host})
	name := resolverapi.Name{Network: hex.EncodeToString(n.Id), Task: id, Node: "self", IPs: []netip.Addr{ip}, Names: append(names, id[:12])}
	f.names = append(f.names, name)
	f.resolver.Changed(nil, nil, []resolverapi.Name{name})
	return &dv1.Endpoint{TaskId: raw, NetworkId: n.Id, Id: []byte{host}, Ip: ip.String()}
}

// in runs a script in a container and returns what it printed.
func in(t *testing.T, e *node, id, script string) string {
	t.Helper()
	_, st := execIn(t, e, id, script, true)
	out, _ := rest(t, st)
	return strings.TrimSpace(out)
}

// eventually waits until a script in a container prints what is wanted.
func eventually(t *testing.T, e *node, id, script, want string) {
	t.Helper()
	got := ""
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if got = in(t, e, id, script); got == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %q, want %q", script, got, want)
		}
	}
}

func fleetOnly(c *container.CreateRequest) { c.HostConfig.NetworkMode = "red" }

// resolved prints the addresses of names.
const resolved = `for n in "$@"; do nslookup "$n" 127.0.0.11 2>&1 | awk '/^Name/{n=1} n&&/^Address/{print $NF}'; done`

func lookup(names ...string) string { return "set -- " + strings.Join(names, " ") + "; " + resolved }

func TestContainersInNetworksOfTheFleet(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	ref, dgst := w.layered(e, "box:1")
	red, blue := w.told.network("red", false), w.told.network("blue", true)
	start := func(change func(*container.CreateRequest), endpoints func(id string) []*dv1.Endpoint) string {
		t.Helper()
		id, err := w.made(t.Context(), e, ref, dgst, change, "sleep", "1000")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Start(t.Context(), id, life.First(1), &task.Wiring{Endpoints: endpoints(id)}); err != nil {
			t.Fatal(err)
		}
		return id
	}
	one := start(fleetOnly, func(id string) []*dv1.Endpoint {
		x := w.told.endpoint(red, id, 10, "one", "web")
		x.Links = map[string]string{"peer": "two"}
		return []*dv1.Endpoint{x}
	})
	two := start(fleetOnly, func(id string) []*dv1.Endpoint {
		return []*dv1.Endpoint{w.told.endpoint(blue, id, 11, "two"), w.told.endpoint(red, id, 11, "two", "web")}
	})
	for script, want := range map[string]string{
		lookup("two", "two.red", "peer", one[:12]):   "10.198.1.11\n10.198.1.11\n10.198.1.11\n10.198.1.10",
		lookup("web") + "| sort":                     "10.198.1.10\n10.198.1.11",
		lookup("two.blue"):                           "", // it is in red only
		"ping -c1 -W2 two >/dev/null && echo yes":    "yes",
		"grep nameserver /etc/resolv.conf":           "nameserver 127.0.0.11",
		"grep ^options /etc/resolv.conf":             "options ndots:0",
		"grep 10.198 /etc/hosts":                     "10.198.1.10\t" + one[:12],
		"ip -4 -o addr show eth0 | awk '{print $4}'": "10.198.1.10/24",
		"ip route | grep ^default":                   "default via 10.198.1.1 dev eth0",
	} {
		if got := in(t, e, one, script); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	// The default route is that of the network that leads outside, whatever the order.
	if got := in(t, e, two, "ip route | awk '/^default/{print $3}'; "+lookup("two.blue")); got != "10.198.1.1\n10.198.2.11" {
		t.Errorf("in two networks: %q", got)
	}

	// A running container joins and leaves.
	raw := w.told.endpoint(blue, one, 12, "one")
	both := []*dv1.Endpoint{{NetworkId: red.Id, Ip: "10.198.1.10"}, raw}
	for range 2 { // again is the same
		if err := e.Rewire(t.Context(), one, both); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, e, one, lookup("two.blue")+"; grep -c 10.198 /etc/hosts; ip -o -4 addr show eth1 | awk '{print $4}'", "10.198.2.11\n2\n10.198.2.12/24")
	if err := e.Rewire(t.Context(), one, both[1:]); err != nil {
		t.Fatal(err)
	}
	eventually(t, e, one, lookup("one.red", "two", "two.red")+"; grep 10.198 /etc/hosts; ip -o -4 addr | grep -c 10.198", "10.198.2.11\n10.198.2.12\t"+one[:12]+"\n1")
	// Another address in the same network.
	if err := e.Rewire(t.Context(), one, []*dv1.Endpoint{{NetworkId: blue.Id, Ip: "10.198.2.13"}}); err != nil {
		t.Fatal(err)
	}
	if got := in(t, e, one, "ip -o -4 addr | awk '/10.198/{print $4}'; grep 10.198 /etc/hosts"); got != "10.198.2.13/24\n10.198.2.13\t"+one[:12] {
		t.Errorf("with another address: %q", got)
	}

	// The agent dies: names are answered; the next one serves the same sandboxes.
	w.told.end()
	if got := in(t, e, two, lookup("two")); got != "10.198.1.11" && got != "10.198.2.11" {
		t.Errorf("without an agent: %q", got)
	}
	w.told.agent()
	e = w.open(t)
	answered, err := e.Answered()
	if err != nil || len(answered) != 2 {
		t.Fatalf("the next agent has sandboxes %v: %v", answered, err)
	}
	w.told.resolver.Restore(answered)
	if n := w.kill("drover-resolver"); n != 1 {
		t.Errorf("there were %d resolvers", n)
	}
	eventually(t, e, two, lookup("two.red"), "10.198.1.11")

	// A container that ends is not answered any more, and leaves nothing.
	if err := e.Signal(t.Context(), one, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Wait(t.Context(), one, life.First(1)); err != nil {
		t.Fatal(err)
	}
	if err := e.Release(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	eventually(t, e, two, lookup("one", "web"), "10.198.1.11")
	if err := e.Rewire(t.Context(), one, both); err != nil {
		t.Errorf("changing the networks of one that ended: %v", err)
	}
	if answered, err = e.Answered(); err != nil || len(answered) != 1 {
		t.Errorf("afterwards there are sandboxes %v: %v", answered, err)
	}
}

// A container of the node's own network that joins one of the fleet keeps what it has.
func TestAContainerOfTheDefaultNetworkJoinsAnother(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	ref, dgst := w.layered(e, "box:1")
	red := w.told.network("red", false)
	id, err := w.made(t.Context(), e, ref, dgst, nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	a, err := e.Start(t.Context(), id, life.First(1), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := in(t, e, id, "grep -c 127.0.0.11 /etc/resolv.conf; echo 1.2.3.4 mine >> /etc/hosts"); got != "0" {
		t.Errorf("before: %q", got)
	}
	if err := e.Rewire(t.Context(), id, []*dv1.Endpoint{w.told.endpoint(red, id, 20, "self")}); err != nil {
		t.Fatal(err)
	}
	want := "10.198.1.20\nnameserver 127.0.0.11\n" + a.IP + "\t" + id[:12] + "\n10.198.1.20\t" + id[:12] + "\n1.2.3.4 mine"
	script := lookup("self") + "; grep nameserver /etc/resolv.conf; grep -e ^10.199 -e ^10.198 /etc/hosts; grep mine /etc/hosts"
	if got := in(t, e, id, script); got != want {
		t.Errorf("in both: %q, want %q", got, want)
	}
	f, err := e.List(t.Context())
	if err != nil || len(f) != 1 || f[0].Attempt.IP != a.IP || !strings.HasPrefix(a.IP, "10.199.") {
		t.Errorf("its address in the default network is %v, %v, was %s", f, err, a.IP)
	}
	if err := e.Rewire(t.Context(), id, nil); err != nil {
		t.Fatal(err)
	}
	if got := in(t, e, id, "ip -o -4 addr | grep -c 10.198; grep -c 10.198 /etc/hosts; ip route | grep -c ^default"); got != "0\n0\n1" {
		t.Errorf("after it left: %q", got)
	}
}

func TestSharingAContainersNetwork(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	ref, dgst := w.layered(e, "box:1")
	red := w.told.network("red", false)
	owner, err := w.made(t.Context(), e, ref, dgst, func(c *container.CreateRequest) { fleetOnly(c); c.Hostname = "owner" }, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	guest, err := w.made(t.Context(), e, ref, dgst, func(c *container.CreateRequest) {
		c.HostConfig.NetworkMode = container.NetworkMode("container:" + owner)
	}, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	run := func(id string, n int32) error {
		var w1 task.Wiring
		if id == owner {
			w1.Endpoints = []*dv1.Endpoint{w.told.endpoint(red, id, 30, "owner")}
		}
		_, err := e.Start(t.Context(), id, life.First(n), &w1)
		return err
	}
	end := func(id string, n int32) {
		t.Helper()
		if err := e.Signal(t.Context(), id, "SIGKILL"); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Wait(t.Context(), id, life.First(n)); err != nil {
			t.Fatal(err)
		}
		if err := e.Release(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	want := func(state string) string {
		return fmt.Sprintf("cannot join network namespace of a non running container: container t%s is %s", owner[:8], state)
	}
	if err := run(guest, 1); err == nil || err.Error() != want("created") {
		t.Errorf("before the owner runs: %v, want %s", err, want("created"))
	}
	if err := run(owner, 1); err != nil {
		t.Fatal(err)
	}
	if err := run(guest, 2); err != nil {
		t.Fatal(err)
	}
	script := "ip -o -4 addr show eth0 | awk '{print $4}'; hostname; grep 10.198 /etc/hosts; " + lookup("owner")
	if got := in(t, e, guest, script); got != "10.198.1.30/24\nowner\n10.198.1.30\towner\n10.198.1.30" {
		t.Errorf("in the guest: %q", got)
	}
	end(guest, 2)
	if got := in(t, e, owner, script); got != "10.198.1.30/24\nowner\n10.198.1.30\towner\n10.198.1.30" {
		t.Errorf("in the owner, without its guest: %q", got)
	}
	end(owner, 1)
	if err := run(guest, 3); err == nil || err.Error() != want("exited") {
		t.Errorf("after the owner: %v", err)
	}
	if err := run(owner, 2); err != nil {
		t.Fatal(err)
	}
	if err := run(guest, 4); err != nil { // the owner has another namespace now
		t.Fatal(err)
	}
	if got := in(t, e, guest, script); got != "10.198.1.30/24\nowner\n10.198.1.30\towner\n10.198.1.30" {
		t.Errorf("in the guest, after both began anew: %q", got)
	}
	for _, host := range []string{"host", "none"} {
		other, err := w.made(t.Context(), e, ref, dgst, func(c *container.CreateRequest) { c.HostConfig.NetworkMode = container.NetworkMode(host) }, "sleep", "1000")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Start(t.Context(), other, life.First(1), nil); err != nil {
			t.Fatal(err)
		}
		said, err := w.said(e, ref, dgst, func(c *container.CreateRequest) {
			c.HostConfig.NetworkMode = container.NetworkMode("container:" + other)
		}, "readlink", "/proc/self/ns/net")
		if err != nil || strings.TrimSpace(said) != in(t, e, other, "readlink /proc/self/ns/net") {
			t.Errorf("of one with network %s: %q, %v", host, said, err)
		}
	}
	for _, name := range []string{"t" + owner[:8], owner[:10]} {
		said, err := w.said(e, ref, dgst, func(c *container.CreateRequest) {
			c.HostConfig.NetworkMode = container.NetworkMode("container:" + name)
		}, "hostname")
		if err != nil || said != "owner\n" {
			t.Errorf("of the one called %s: %q, %v", name, said, err)
		}
	}
	for name, mode := range map[string]string{"joining network namespace of container: No such container: " + strings.Repeat("9", 64): strings.Repeat("9", 64)} {
		_, err := w.made(t.Context(), e, ref, dgst, func(c *container.CreateRequest) {
			c.HostConfig.NetworkMode = container.NetworkMode("container:" + mode)
		}, "true")
		if err == nil || !strings.HasSuffix(err.Error(), name) {
			t.Errorf("of one that is not there: %v", err)
		}
	}
}
