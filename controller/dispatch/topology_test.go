package dispatch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func nid(n int) []byte { return fmt.Appendf(nil, "%-32s", fmt.Sprint("network", n)) }

func aNetwork(n int) *dv1.Effect {
	return &dv1.Effect{Of: &dv1.Effect_Network{Network: &dv1.Network{Id: nid(n), Name: fmt.Sprint("net", n), Number: uint32(n + 1), Ipv4: true, Subnets: []*dv1.Subnet{{Prefix: fmt.Sprintf("10.%d.0.0/16", n)}}}}}
}

func aTask(i int, node string, started int64) *dv1.Effect {
	return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(i), Name: fmt.Sprint("task-", i), NodeId: node, Attempt: 1, Desired: dv1.Desired_RUNNING, Started: started}}}
}

func anEndpoint(i, network int, node string, with ...func(*dv1.Endpoint)) *dv1.Effect {
	e := &dv1.Endpoint{TaskId: tid(i), NetworkId: nid(network), NodeId: node, Ip: fmt.Sprintf("10.%d.%d.%d", network, i/200, 2+i%200)}
	for _, f := range with {
		f(e)
	}
	return &dv1.Effect{Of: &dv1.Effect_Endpoint{Endpoint: e}}
}

func noEndpoint(i, network int) *dv1.Effect {
	return &dv1.Effect{Of: &dv1.Effect_DeleteEndpoint{DeleteEndpoint: append(tid(i), nid(network)...)}}
}

func aSlice(network int, node string, prefixes ...string) *dv1.Effect {
	return &dv1.Effect{Of: &dv1.Effect_Slice{Slice: &dv1.Slice{NetworkId: nid(network), NodeId: node, Prefixes: prefixes}}}
}

// told is what an agent knows of the topology, as it takes syncs.
type told map[string]string

func (k told) take(t *testing.T, parts ...*dv1.Sync) (records int) {
	t.Helper()
	named := map[string]bool{}
	for _, y := range parts {
		set := func(key string, m proto.Message) {
			records++
			k[key], named[key] = text(m), true
		}
		drop := func(prefix string) {
			records++
			for key := range k {
				if strings.HasPrefix(key, prefix) {
					delete(k, key)
				}
			}
		}
		for _, id := range y.Topology.GetPeersGone() {
			drop("peer " + id)
		}
		for _, id := range y.Topology.GetNetworksGone() {
			drop("network " + string(id))
		}
		for _, p := range y.Topology.GetPeers() {
			set("peer "+p.NodeId, p)
		}
		for _, n := range y.Topology.GetNetworks() {
			set("network "+string(n.Id), n)
		}
		for _, s := range y.Topology.GetSlices() {
			if key := "network " + string(s.NetworkId) + "/slice " + s.NodeId; len(s.Prefixes) == 0 {
				drop(key)
			} else {
				set(key, s)
			}
		}
		for _, n := range y.Topology.GetNames() {
			if key := "network " + string(n.NetworkId) + "/name " + string(n.TaskId); n.Gone {
				drop(key)
			} else {
				set(key, n)
			}
		}
		for _, d := range y.Topology.GetDoors() {
			if key := fmt.Sprint("door ", d.Proto, d.Port, ";"); d.NodeId == "" {
				drop(key)
			} else {
				set(key, d)
			}
		}
		if y.Full && !y.More {
			for key := range k {
				if !named[key] {
					delete(k, key)
				}
			}
		}
	}
	return records
}

func text(m proto.Message) string {
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return string(b)
}

// all is what a node has to know, by the state alone.
func all(snap *state.Snapshot, node string) told {
	k := told{}
	for n := range snap.Nodes() {
		k["peer "+n.Id] = text(peerOf(snap, n))
	}
	since := map[string]int64{}
	for t := range snap.Tasks() {
		for _, p := range t.Ports {
			key := fmt.Sprint("door ", p.Proto, p.Host, ";")
			if state.Running(t) && p.Ip == "" && snap.Node(t.NodeId).GetLiveness() != dv1.Node_DOWN && (since[key] == 0 || t.Started < since[key]) {
				since[key], k[key] = t.Started, text(&dv1.Door{Proto: p.Proto, Port: p.Host, NodeId: t.NodeId})
			}
		}
	}
	for n := range snap.Networks() {
		if !snap.HasEndpoints(n.Id, node, 1) {
			continue
		}
		k["network "+string(n.Id)] = text(n)
		for s := range snap.Slices(n.Id) {
			k["network "+string(n.Id)+"/slice "+s.NodeId] = text(s)
		}
		for e := range snap.EndpointsOfNetwork(n.Id) {
			if n := nameOf(snap, e.NetworkId, e.TaskId); !n.Gone {
				k["network "+string(n.NetworkId)+"/name "+string(n.TaskId)] = text(n)
			}
		}
	}
	return k
}

func (k told) diff(want told) (out []string) {
	for key, v := range want {
		if k[key] != v {
			out = append(out, "lacks "+key)
		}
	}
	for key := range k {
		if _, ok := want[key]; !ok {
			out = append(out, "still has "+key)
		}
	}
	slices.Sort(out)
	return out
}

// Whatever is committed, in whichever order, and whenever sessions send: what each agent
// was told adds up to what its node has to know.
func TestWhatAgentsAreToldOfNetworksAddsUp(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	const nodes, tasks, networks = 4, 12, 3
	f := newFakeLog()
	var first []*dv1.Effect
	for i := range nodes {
		first = append(first, aNode(fmt.Sprint("n", i)))
	}
	f.put(first...)
	f.hub.begin()
	term := f.hub.term.Load()
	sessions, know := make([]*session, nodes), make([]told, nodes)
	node := func(i int) string { return fmt.Sprint("n", i) }
	hello := func(i int, number uint64) {
		if old := sessions[i]; old != nil {
			term.topology.leaveAll(old)
		}
		sessions[i] = newSession(node(i), func(error) {})
		if err := term.enter(sessions[i], number); err != nil {
			t.Fatal(err)
		}
		if know[i] == nil {
			know[i] = told{}
		}
		know[i].take(t, term.next(sessions[i], true, 0)...)
	}
	for i := range nodes {
		hello(i, 1)
	}
	on := map[int]int{} // node by task
	for step := range 4000 {
		snap := f.store.Snapshot()
		i, n := r.IntN(tasks), r.IntN(networks)
		at, placed := on[i]
		switch op := r.IntN(12); {
		case snap.Network(nid(n)) == nil:
			f.put(aNetwork(n))
		case !placed:
			on[i] = r.IntN(nodes)
			f.put(aTask(i, node(on[i]), 0), anEndpoint(i, n, node(on[i])), aSlice(n, node(on[i]), fmt.Sprintf("10.%d.%d.0/26", n, on[i])))
		case op == 0:
			f.put(anEndpoint(i, n, node(at), func(e *dv1.Endpoint) { e.Leaving = r.IntN(2) == 0; e.Aliases = []string{fmt.Sprint("alias", step)} }))
		case op == 1:
			f.put(noEndpoint(i, n), aSlice(n, node(at), fmt.Sprintf("10.%d.%d.0/26", n, 100+r.IntN(100))))
		case op == 2:
			var effects []*dv1.Effect
			for n := range networks {
				effects = append(effects, noEndpoint(i, n))
			}
			f.put(append(effects, &dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: tid(i)}})...)
			delete(on, i)
		case op < 5:
			f.put(aTask(i, node(at), int64(r.IntN(2))))
		case op == 5:
			published := aTask(i, node(at), int64(step+1))
			published.GetTask().Ports = []*dv1.Port{{Proto: "tcp", Host: uint32(80 + r.IntN(4))}, {Proto: "udp", Host: 53}, {Ip: "127.0.0.1", Proto: "tcp", Host: 90}}[:1+r.IntN(3)]
			f.put(published)
		case op == 6:
			moved := aNode(node(r.IntN(nodes)))
			moved.GetNode().Addr = fmt.Sprintf("10.0.0.%d:7444", r.IntN(200))
			moved.GetNode().Liveness = []dv1.Node_Liveness{dv1.Node_READY, dv1.Node_DOWN}[r.IntN(2)]
			f.put(moved)
		case op == 7:
			f.put(&dv1.Effect{Of: &dv1.Effect_DeleteSlice{DeleteSlice: append(nid(n), node(at)...)}})
		case op == 8:
			f.put(&dv1.Effect{Of: &dv1.Effect_Controller{Controller: &dv1.Controller{Id: node(r.IntN(nodes))}}})
		case op == 9:
			changed := aNetwork(n)
			changed.GetNetwork().Removing = r.IntN(2) == 0
			f.put(changed)
		case op == 10 && r.IntN(10) == 0:
			hello(at, uint64(step+2))
		}
		if r.IntN(3) > 0 {
			continue
		}
		i = r.IntN(nodes)
		know[i].take(t, term.next(sessions[i], false, 0)...)
		if wrong := know[i].diff(all(f.store.Snapshot(), node(i))); len(wrong) > 0 {
			t.Fatalf("after step %d node %d:\n%s", step, i, strings.Join(wrong, "\n"))
		}
	}
	for i := range nodes {
		term.topology.leaveAll(sessions[i])
	}
	if len(term.topology.told) > 0 {
		t.Errorf("without sessions %d networks are told", len(term.topology.told))
	}
}

// A node that is removed is gone for all others.
func TestAPeerGoes(t *testing.T) {
	f := newFakeLog()
	f.put(aNode("n0"), aNode("n1"))
	f.hub.begin()
	term := f.hub.term.Load()
	s := newSession("n0", func(error) {})
	if err := term.enter(s, 1); err != nil {
		t.Fatal(err)
	}
	k := told{}
	k.take(t, term.next(s, true, 0)...)
	f.put(&dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: "n1"}})
	k.take(t, term.next(s, false, 0)...)
	if wrong := k.diff(all(f.store.Snapshot(), "n0")); len(wrong) > 0 {
		t.Error(wrong)
	}
	// One that is only judged anew is the same peer.
	suspect := aNode("n0")
	suspect.GetNode().Liveness = dv1.Node_SUSPECT
	f.put(suspect)
	if parts := term.next(s, false, 0); parts != nil {
		t.Errorf("of a node's liveness the others are told %v", parts)
	}
}

// One change in a network costs each session in it one record, and others nothing.
func TestAChangeIsOneRecord(t *testing.T) {
	f := newFakeLog()
	effects := []*dv1.Effect{aNetwork(0), aNetwork(1)}
	const nodes, tasks = 10, 600
	for i := range nodes {
		effects = append(effects, aNode(fmt.Sprint("n", i)))
	}
	for i := range tasks { // n9 is in another network
		node := fmt.Sprint("n", i%(nodes-1))
		effects = append(effects, aTask(i, node, 0), anEndpoint(i, 0, node))
	}
	effects = append(effects, aTask(tasks, "n9", 1), anEndpoint(tasks, 1, "n9"))
	f.put(effects...)
	f.hub.begin()
	term := f.hub.term.Load()
	sessions, know := map[string]*session{}, map[string]told{}
	for i := range nodes {
		node := fmt.Sprint("n", i)
		sessions[node], know[node] = newSession(node, func(error) {}), told{}
		if err := term.enter(sessions[node], 1); err != nil {
			t.Fatal(err)
		}
		know[node].take(t, term.next(sessions[node], true, 0)...)
	}
	records := func(node string) (n int) {
		return know[node].take(t, term.next(sessions[node], false, 0)...)
	}
	for _, c := range []struct {
		what     string
		change   *dv1.Effect
		all, one int
	}{
		{"begins to run", aTask(5, "n5", 7), 1, 0},
		{"is written again", aTask(5, "n5", 7), 0, 0},
		{"is connected", anEndpoint(tasks, 0, "n9"), 1, 1 + 1 + tasks}, // the network, and all of its names
		{"leaves", anEndpoint(tasks, 0, "n9", func(e *dv1.Endpoint) { e.Leaving = true }), 1, 1},
		{"has left", noEndpoint(tasks, 0), 1, 1},
	} {
		f.put(c.change)
		for i := range nodes {
			node := fmt.Sprint("n", i)
			want := c.all
			if node == "n9" {
				want = c.one
			}
			if got := records(node); got != want {
				t.Errorf("a task %s: %s gets %d records, want %d", c.what, node, got, want)
			}
		}
	}
	for node, k := range know {
		if wrong := k.diff(all(f.store.Snapshot(), node)); len(wrong) > 0 {
			t.Errorf("%s: %v", node, wrong)
		}
	}
}

// What others call a task, and the order of its own interfaces.
func TestNamesAndOrder(t *testing.T) {
	f := newFakeLog()
	f.put(aNode("n0"), aNetwork(0), aNetwork(1), aNetwork(2), aTask(1, "n0", 5),
		anEndpoint(1, 0, "n0", func(e *dv1.Endpoint) {
			e.Aliases, e.Hostname, e.Ip6, e.Asked = []string{"www", "task-1", "www"}, "box", "fd00::1", true
		}),
		anEndpoint(1, 1, "n0", func(e *dv1.Endpoint) { e.GatewayPriority = -1 }),
		anEndpoint(1, 2, "n0", func(e *dv1.Endpoint) { e.GatewayPriority = 1 }))
	snap := f.store.Snapshot()
	n := nameOf(snap, nid(0), tid(1))
	want := &dv1.Name{NetworkId: nid(0), TaskId: tid(1), NodeId: "n0", Ip: "10.0.0.3", Ip6: "fd00::1", Asked: true, Names: []string{"task-1", "www", "7461736b3120", "box"}, Running: true}
	if !proto.Equal(n, want) {
		t.Errorf("it is called %v, want %v", n, want)
	}
	var order []byte
	for _, e := range endpointsOf(snap, tid(1)) {
		order = append(order, bytes.TrimSpace(e.NetworkId)[len("network")])
	}
	if string(order) != "201" {
		t.Errorf("its interfaces are of the networks %s", order)
	}
	for what, with := range map[string]func(*dv1.Endpoint){
		"that leaves":          func(e *dv1.Endpoint) { e.Leaving = true },
		"without its address":  func(e *dv1.Endpoint) { e.Ip = "" },
		"of a task that is no": func(e *dv1.Endpoint) { e.TaskId, e.Ip = tid(99), "10.0.9.9" },
	} {
		e := anEndpoint(1, 0, "n0", with)
		f.put(e)
		if n := nameOf(f.store.Snapshot(), nid(0), e.GetEndpoint().TaskId); !n.Gone {
			t.Errorf("an endpoint %s is called %v", what, n)
		}
	}
}

// Endpoints come with their task, and what an agent says of them reaches the log once.
func TestEndpointsComeWithTheirTask(t *testing.T) {
	f, open := start(t, "n1")
	f.put(aNode("n1"), aNetwork(0), aTask(1, "n1", 0), anEndpoint(1, 0, "n1"), aTask(2, "n2", 0), anEndpoint(2, 0, "n2", func(e *dv1.Endpoint) { e.Leaving = true }))
	st := open()
	if err := st.Send(hello(5)); err != nil {
		t.Fatal(err)
	}
	y := sync1(t, st)
	if len(y.Tasks) != 1 || len(y.Tasks[0].Endpoints) != 1 || y.Tasks[0].Endpoints[0].Ip != "10.0.0.3" || len(y.Topology.GetNetworks()) != 1 || len(y.Topology.GetPeers()) != 1 {
		t.Fatalf("it is told %v", y)
	}
	<-f.got // RegisterNode
	f.put(anEndpoint(1, 0, "n1", func(e *dv1.Endpoint) { e.Leaving = true }))
	y = sync1(t, st)
	if len(y.Tasks) != 1 || !y.Tasks[0].Endpoints[0].Leaving || len(y.Topology.GetNames()) != 1 || !y.Topology.Names[0].Gone {
		t.Fatalf("of a disconnect it is told %v", y)
	}
	left := &dv1.Acks{}
	for i := range 3 {
		left.Left = append(left.Left, &dv1.EndpointKey{TaskId: tid(i), NetworkId: nid(0)})
	}
	if err := st.Send(&dv1.FromAgent{Of: &dv1.FromAgent_Acks{Acks: left}}); err != nil {
		t.Fatal(err)
	}
	l := (<-f.got).GetLeftNetworks()
	if l.GetNodeId() != "n1" || len(l.TaskIds) != 1 || !bytes.Equal(l.TaskIds[0], tid(1)) || !bytes.Equal(l.NetworkIds[0], nid(0)) {
		t.Fatalf("of what it left is proposed %v", l)
	}
	f.put(noEndpoint(1, 0))
	if y = sync1(t, st); len(y.Topology.GetNetworksGone()) != 1 || len(y.Tasks) != 1 || len(y.Tasks[0].Endpoints) != 0 {
		t.Fatalf("in the end it is told %v", y)
	}
}

// One start in a network of 10,000 endpoints on 100 nodes: marks at the commit, and what
// all sessions send.
func BenchmarkOneChangeInALargeNetwork(b *testing.B) {
	f := newFakeLog()
	const nodes, tasks = 100, 10000
	effects := []*dv1.Effect{aNetwork(0)}
	for i := range nodes {
		effects = append(effects, aNode(fmt.Sprint("n", i)))
	}
	for i := range tasks {
		node := fmt.Sprint("n", i%nodes)
		effects = append(effects, aTask(i, node, 0), anEndpoint(i, 0, node))
	}
	f.put(effects...)
	f.hub.begin()
	term := f.hub.term.Load()
	var sessions []*session
	for i := range nodes {
		s := newSession(fmt.Sprint("n", i), func(error) {})
		if err := term.enter(s, 1); err != nil {
			b.Fatal(err)
		}
		size := 0
		for _, y := range term.next(s, true, 0) {
			size += proto.Size(y)
		}
		if i == 0 {
			b.ReportMetric(float64(size), "B/hello")
		}
		sessions = append(sessions, s)
	}
	b.ResetTimer()
	size := 0
	for n := range b.N {
		i := n % tasks
		f.put(aTask(i, fmt.Sprint("n", i%nodes), int64(n/tasks%2+1)), anEndpoint(i, 0, fmt.Sprint("n", i%nodes)))
		for _, s := range sessions {
			for _, y := range term.next(s, false, 0) {
				size += proto.Size(y)
			}
		}
	}
	b.ReportMetric(float64(size)/float64(b.N)/nodes, "B/change/session")
}
