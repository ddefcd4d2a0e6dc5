package dispatch

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// topology knows which sessions were told of which networks, so that a commit marks what
// changed for these only, and which of what commits write is news to anybody.
type topology struct {
	mu    sync.Mutex                   // guards the fields below
	told  map[string]map[*session]bool // sessions by network
	peers map[string]*dv1.Peer         // as of the last commit
	doors doors
	names map[string]named // of tasks with endpoints, as of the last commit

	building sync.Mutex // guards the fields below
	list     []*dv1.Peer
	size     int
	current  bool // whether list is of the latest commit; guarded by mu
}

// named is what a task's names depend on, besides its endpoints.
type named struct {
	name    string
	running bool
}

func newTopology() *topology {
	return &topology{told: map[string]map[*session]bool{}, peers: map[string]*dv1.Peer{}, names: map[string]named{}, doors: newDoors()}
}

// begin reads what commits are compared with. Commits wait until it is done.
func (o *topology) begin(read func() *state.Snapshot) {
	o.mu.Lock()
	defer o.mu.Unlock()
	snap := read()
	for n := range snap.Nodes() {
		o.peers[n.Id] = peerOf(snap, n)
	}
	o.doors.begin(snap)
	for n := range snap.Networks() {
		for e := range snap.EndpointsOfNetwork(n.Id) {
			if t := snap.Task(e.TaskId); t != nil {
				o.names[string(t.Id)] = named{t.Name, state.Running(t)}
			}
		}
	}
}

// enter has a session marked from now on with what changes in a network.
func (o *topology) enter(s *session, network string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.told[network] == nil {
		o.told[network] = map[*session]bool{}
	}
	o.told[network][s] = true
	s.told[network] = true
}

func (o *topology) leave(s *session, network string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(s.told, network)
	delete(o.told[network], s)
	if len(o.told[network]) == 0 {
		delete(o.told, network)
	}
}

// leaveAll is called when a session's sender has ended.
func (o *topology) leaveAll(s *session) {
	for network := range s.told {
		o.leave(s, network)
	}
}

// mark marks what changed in a network, for all sessions that were told of it.
func (o *topology) mark(network []byte, m mark, index uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for s := range o.told[string(network)] {
		s.mark(m, index)
	}
}

// moved records a node and reports whether it is another peer than before.
func (o *topology) moved(p *dv1.Peer) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if proto.Equal(o.peers[p.NodeId], p) {
		return false
	}
	o.peers[p.NodeId], o.current = p, false
	return true
}

func (o *topology) remove(node string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.peers, node)
	o.current = false
}

// all returns every peer, sorted, and the size of all in bytes. The list is built once
// for all sessions; its peers are not changed.
func (o *topology) all() ([]*dv1.Peer, int) {
	o.building.Lock()
	defer o.building.Unlock()
	o.mu.Lock()
	var changed []*dv1.Peer
	if !o.current {
		o.current = true
		changed = make([]*dv1.Peer, 0, len(o.peers))
		for _, p := range o.peers {
			changed = append(changed, p)
		}
	}
	o.mu.Unlock()
	if changed != nil {
		slices.SortFunc(changed, func(a, b *dv1.Peer) int { return cmp.Compare(a.NodeId, b.NodeId) })
		o.list, o.size = changed, 0
		for _, p := range changed {
			o.size += proto.Size(p) + 8
		}
	}
	return o.list, o.size
}

// renamed records what a task's names depend on and reports whether that changed.
func (o *topology) renamed(t *dv1.Task) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := named{t.Name, state.Running(t)}
	if o.names[string(t.Id)] == now {
		return false
	}
	o.names[string(t.Id)] = now
	return true
}

func (o *topology) forget(task []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.names, string(task))
}

// markTask marks a task for its own node, and its names for others if they changed.
func (t *term) markTask(task *dv1.Task, index uint64) {
	t.mark(task.NodeId, mark{markTask, string(task.Id)}, index)
	endpoints := slices.Collect(t.o.Log.Snapshot().EndpointsOfTask(task.Id))
	if len(endpoints) == 0 {
		t.topology.forget(task.Id) // what it is called when it is connected comes with that
		return
	}
	if !t.topology.renamed(task) {
		return
	}
	for _, e := range endpoints {
		t.topology.mark(e.NetworkId, mark{markName, string(e.NetworkId) + string(e.TaskId)}, index)
	}
}

// markEndpoint marks an endpoint for its own node, which may not know the network yet, and
// for those that do.
func (t *term) markEndpoint(node string, task, network []byte, index uint64) {
	t.mark(node, mark{markTask, string(task)}, index)
	t.mark(node, mark{markName, string(network) + string(task)}, index)
	t.topology.mark(network, mark{markName, string(network) + string(task)}, index)
}

// markPeer marks a node for all sessions, if it is another one to them.
func (t *term) markPeer(id string, index uint64) {
	snap := t.o.Log.Snapshot()
	n := snap.Node(id)
	if n == nil {
		t.topology.remove(id)
	} else if !t.topology.moved(peerOf(snap, n)) {
		return
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, other := range t.nodes {
		if s := other.session.Load(); s != nil {
			s.mark(mark{markPeer, id}, index)
		}
	}
}

// split takes the key of an endpoint or of a slice apart.
func split(key []byte) (first, rest []byte) {
	if len(key) < idLength {
		return key, nil
	}
	return key[:idLength], key[idLength:]
}

// idLength is of ids of tasks and networks, in bytes.
const idLength = 32

// peerOf returns a node as others reach it.
func peerOf(snap *state.Snapshot, n *dv1.Node) *dv1.Peer {
	p := &dv1.Peer{NodeId: n.Id, Name: n.Name, Subnet: n.Subnet, Door: !n.NoDoors}
	if at, err := netip.ParseAddrPort(n.Addr); err == nil {
		p.Addr = at.Addr().Unmap().String()
	}
	return p
}

// nameOf returns an endpoint as others in the network see it. One that is leaving, or has
// no address yet, is gone to them.
func nameOf(snap *state.Snapshot, network, task []byte) *dv1.Name {
	e, t := snap.Endpoint(task, network), snap.Task(task)
	if e == nil || e.Leaving || t == nil || e.Ip == "" && e.Ip6 == "" {
		return &dv1.Name{NetworkId: network, TaskId: task, Gone: true}
	}
	return &dv1.Name{NetworkId: network, TaskId: task, NodeId: e.NodeId, Ip: e.Ip, Ip6: e.Ip6, Asked: e.Asked, Names: state.NamesIn(t, e), Running: state.Running(t)}
}

// endpointsOf returns a task's endpoints in the order of their interfaces: the one of the
// default gateway first, as docker chooses it.
func endpointsOf(snap *state.Snapshot, task []byte) []*dv1.Endpoint {
	var out []*dv1.Endpoint
	for e := range snap.EndpointsOfTask(task) {
		out = append(out, e)
	}
	if len(out) > 1 {
		name := func(e *dv1.Endpoint) string { return snap.Network(e.NetworkId).GetName() }
		slices.SortStableFunc(out, func(a, b *dv1.Endpoint) int {
			return cmp.Or(cmp.Compare(b.GatewayPriority, a.GatewayPriority), cmp.Compare(name(a), name(b)))
		})
	}
	return out
}

// networksOf yields the networks in which a node has endpoints, by id, some repeatedly.
func networksOf(snap *state.Snapshot, node string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for e := range snap.EndpointsOfNode(node) {
			if !yield(string(e.NetworkId)) {
				return
			}
		}
	}
}

// membership is which networks a sync tells of from scratch, and which are over.
type membership struct {
	fresh, gone []string
}

// members enters the session into networks in which its node has its first endpoint, and
// makes it leave those in which it has none. It is called before the state is read that
// is sent, so that what is committed afterwards is marked.
func (t *term) members(s *session, full bool, touched []string) (m membership) {
	snap := t.o.Log.Snapshot()
	if full {
		t.topology.leaveAll(s)
		for network := range networksOf(snap, s.node) {
			touched = append(touched, network)
		}
	}
	slices.Sort(touched)
	for _, network := range slices.Compact(touched) {
		has := snap.HasEndpoints([]byte(network), s.node, 1)
		switch {
		case has && !s.told[network]:
			t.topology.enter(s, network)
			m.fresh = append(m.fresh, network)
		case !has && s.told[network]:
			t.topology.leave(s, network)
			m.gone = append(m.gone, network)
		}
	}
	return m
}

// topology adds to a sync what a session was not told of the fleet's networks.
func (p *parts) topology(snap *state.Snapshot, t *term, s *session, full bool, m membership, dirty []mark) {
	if full {
		all, size := t.topology.all()
		p.room(size)
		p.around().Peers = all
	}
	if full && !s.shut {
		for port := range snap.PublishedPorts() {
			p.door(snap, port)
		}
	}
	for _, network := range m.gone {
		p.room(len(network))
		p.around().NetworksGone = append(p.around().NetworksGone, []byte(network))
	}
	for _, network := range m.fresh {
		p.network(snap, []byte(network))
		for slice := range snap.Slices([]byte(network)) {
			p.slice(slice)
		}
		for n := range namesIn(snap, []byte(network)) {
			p.name(n)
		}
	}
	if full {
		return
	}
	for _, d := range dirty {
		switch network := d.network(); {
		case d.kind == markPeer:
			p.peer(snap, d.key)
		case d.kind == markDoor:
			p.door(snap, state.ParsePublishedPort(d.key))
		case network == "" || !s.told[network] || slices.Contains(m.fresh, network):
		case d.kind == markNetwork:
			p.network(snap, []byte(network))
		case d.kind == markSlice:
			slice := snap.Slice([]byte(network), d.key[idLength:])
			if slice == nil {
				slice = &dv1.Slice{NetworkId: []byte(network), NodeId: d.key[idLength:]}
			}
			p.slice(slice)
		case d.kind == markName:
			p.name(nameOf(snap, []byte(network), []byte(d.key[idLength:])))
		}
	}
}

func (p *parts) around() *dv1.Topology {
	if p.now.Topology == nil {
		p.now.Topology = &dv1.Topology{}
	}
	return p.now.Topology
}

func (p *parts) network(snap *state.Snapshot, id []byte) {
	if n := snap.Network(id); n != nil {
		p.room(proto.Size(n))
		p.around().Networks = append(p.around().Networks, n)
	}
}

func (p *parts) slice(s *dv1.Slice) {
	p.room(proto.Size(s))
	p.around().Slices = append(p.around().Slices, s)
}

func (p *parts) name(n *dv1.Name) {
	p.room(proto.Size(n))
	p.around().Names = append(p.around().Names, n)
}

func (p *parts) peer(snap *state.Snapshot, id string) {
	if n := snap.Node(id); n != nil {
		peer := peerOf(snap, n)
		p.room(proto.Size(peer))
		p.around().Peers = append(p.around().Peers, peer)
		return
	}
	p.room(len(id))
	p.around().PeersGone = append(p.around().PeersGone, id)
}
