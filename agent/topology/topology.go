// Package topology keeps what controllers told this node of the fleet's networks: the
// other nodes, and of each network in which the node has endpoints, who has which
// addresses and names. It is durable, in the agent's store, so that all goes on after a
// restart without a controller. What becomes of it is up to the network and the resolver.
package topology

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Buckets of the store. Network ids have one length, so that they can begin keys.
var (
	bPeers    = []byte("peers")    // node -> dv1.Peer
	bNetworks = []byte("networks") // network -> dv1.Network
	bSlices   = []byte("slices")   // network, node -> dv1.Slice
	bNames    = []byte("names")    // network, task -> dv1.Name
	bDoors    = []byte("doors")    // protocol, port -> dv1.Door
	buckets   = [][]byte{bPeers, bNetworks, bSlices, bNames, bDoors}
)

// idLength is of ids of networks and tasks, in bytes.
const idLength = 32

// Topology is what the node was told. Safe for concurrent use.
type Topology struct {
	mu       sync.RWMutex // guards the fields below; watch is called with it held
	peers    map[string]*dv1.Peer
	networks map[string]*network // by id
	doors    map[string]*dv1.Door
	version  uint64        // of what Fabric returns, but for doors, which no start waits for; counts from 1
	changed  chan struct{} // closed when what Fabric returns changes
	watch    func(Change)
	unread   error // what was stored and can't be read; nil once a full sync told it anew
}

// network is one, with what was told of it.
type network struct {
	*dv1.Network
	slices map[string]*dv1.Slice // by node
	names  map[string]*dv1.Name  // by task
	alone  map[string]*dv1.Name  // of them, those whose addresses are routed by themselves
}

// Change is what a sync changed of networks and names, to be applied in this order.
type Change struct {
	Gone     []string // ids of networks, hex
	Networks []*dv1.Network
	Names    []*dv1.Name
}

// Part is what to store of a part of a sync.
type Part struct {
	ops  []op
	full bool // it is the last of a full sync
}

// op puts a record, or deletes it, if m is nil.
type op struct {
	bucket []byte
	key    string
	m      proto.Message
}

// Open reads what is stored. A record that can't be read is dropped: the first sync of the
// next session is a full one, and until then the rest must go on.
func Open(db *bbolt.DB) (*Topology, error) {
	t := &Topology{peers: map[string]*dv1.Peer{}, networks: map[string]*network{}, doors: map[string]*dv1.Door{}, version: 1, changed: make(chan struct{})}
	err := db.Update(func(tx *bbolt.Tx) error {
		for _, b := range buckets {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		for _, b := range buckets {
			var bad [][]byte
			err := tx.Bucket(b).ForEach(func(k, v []byte) error {
				m, err := read(b, k, v)
				if err != nil {
					t.unread = errors.Join(t.unread, fmt.Errorf("record %x of %s: %w", k, b, err))
					bad = append(bad, bytes.Clone(k))
					return nil
				}
				if o := (op{b, string(k), m}); string(b) == string(bDoors) {
					t.applyDoor(o)
				} else {
					t.apply(o, &Change{})
				}
				return nil
			})
			for _, k := range bad {
				err = errors.Join(err, drop(tx, b, k))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the topology: %w", err)
	}
	return t, nil
}

func read(bucket, key, value []byte) (m proto.Message, err error) {
	least := idLength + 1
	switch string(bucket) {
	case string(bPeers):
		m, least = &dv1.Peer{}, 1
	case string(bNetworks):
		m, least = &dv1.Network{}, idLength
	case string(bSlices):
		m = &dv1.Slice{}
	case string(bDoors):
		m, least = &dv1.Door{}, 1
	default:
		m = &dv1.Name{}
	}
	if len(key) < least {
		return nil, errors.New("its key is too short")
	}
	if err := proto.Unmarshal(value, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Parse returns what a part of a sync changes. It is an error if it is not well-formed.
func Parse(y *dv1.Topology) (*Part, error) {
	p := &Part{}
	for _, id := range y.GetPeersGone() {
		p.add(bPeers, id, nil)
	}
	for _, id := range y.GetNetworksGone() {
		p.add(bNetworks, string(id), nil)
	}
	for _, x := range y.GetPeers() {
		if x.NodeId == "" {
			return nil, errors.New("a peer has no id")
		}
		p.add(bPeers, x.NodeId, x)
	}
	for _, x := range y.GetNetworks() {
		if len(x.Id) != idLength {
			return nil, fmt.Errorf("network %q has the id %x", x.Name, x.Id)
		}
		p.add(bNetworks, string(x.Id), x)
	}
	for _, x := range y.GetSlices() {
		if len(x.NetworkId) != idLength || x.NodeId == "" {
			return nil, fmt.Errorf("a slice is of node %q and network %x", x.NodeId, x.NetworkId)
		}
		if len(x.Prefixes) == 0 {
			p.add(bSlices, string(x.NetworkId)+x.NodeId, nil)
			continue
		}
		p.add(bSlices, string(x.NetworkId)+x.NodeId, x)
	}
	for _, x := range y.GetNames() {
		if len(x.NetworkId) != idLength || len(x.TaskId) != idLength {
			return nil, fmt.Errorf("a name is of task %x and network %x", x.TaskId, x.NetworkId)
		}
		if x.Gone {
			p.add(bNames, string(x.NetworkId)+string(x.TaskId), nil)
			continue
		}
		p.add(bNames, string(x.NetworkId)+string(x.TaskId), x)
	}
	for _, x := range y.GetDoors() {
		if x.Proto == "" || x.Port == 0 || x.Port > 65535 {
			return nil, fmt.Errorf("a door is %d/%s", x.Port, x.Proto)
		}
		key := fmt.Sprintf("%s/%d", x.Proto, x.Port)
		if x.NodeId == "" {
			p.add(bDoors, key, nil)
			continue
		}
		p.add(bDoors, key, x)
	}
	return p, nil
}

func (p *Part) add(bucket []byte, key string, m proto.Message) {
	p.ops = append(p.ops, op{bucket, key, m})
}

// Name adds the keys of what the part puts to those of the parts before it.
func (p *Part) Name(named map[string]bool) {
	for _, o := range p.ops {
		if o.m != nil {
			named[string(o.bucket)+o.key] = true
		}
	}
}

// Sweep has the part, the last of a full sync, remove what the sync did not name.
func (p *Part) Sweep(t *Topology, named map[string]bool) {
	p.full = true
	t.mu.RLock()
	defer t.mu.RUnlock()
	unnamed := func(bucket []byte, key string) {
		if !named[string(bucket)+key] {
			p.add(bucket, key, nil)
		}
	}
	for id := range t.peers {
		unnamed(bPeers, id)
	}
	for key := range t.doors {
		unnamed(bDoors, key)
	}
	for id, n := range t.networks {
		unnamed(bNetworks, id)
		for node := range n.slices {
			unnamed(bSlices, id+node)
		}
		for task := range n.names {
			unnamed(bNames, id+task)
		}
	}
}

// Store makes a part durable with tx. Apply is to be called once that is committed.
func (p *Part) Store(tx *bbolt.Tx) error {
	for _, o := range p.ops {
		b := tx.Bucket(o.bucket)
		if o.m == nil {
			if err := drop(tx, o.bucket, []byte(o.key)); err != nil {
				return err
			}
			continue
		}
		if string(o.bucket) != string(bDoors) && len(o.key) > idLength && tx.Bucket(bNetworks).Get([]byte(o.key[:idLength])) == nil && string(o.bucket) != string(bPeers) {
			continue // as apply does
		}
		v, err := proto.MarshalOptions{Deterministic: true}.Marshal(o.m)
		if err != nil {
			return err
		}
		if bytes.Equal(b.Get([]byte(o.key)), v) {
			continue // a full sync names everything
		}
		if err := b.Put([]byte(o.key), v); err != nil {
			return err
		}
	}
	return nil
}

// drop deletes a record; a network goes with what is of it.
func drop(tx *bbolt.Tx, bucket, key []byte) error {
	err := tx.Bucket(bucket).Delete(key)
	if string(bucket) == string(bNetworks) && len(key) == idLength {
		err = errors.Join(err, deleteAll(tx.Bucket(bSlices), key), deleteAll(tx.Bucket(bNames), key))
	}
	return err
}

func deleteAll(b *bbolt.Bucket, prefix []byte) error {
	var keys [][]byte
	c := b.Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// Apply applies a part that was stored. It keeps the part's messages.
func (t *Topology) Apply(p *Part) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.full {
		t.unread = nil
	}
	var c Change
	routed, led := false, false
	for _, o := range p.ops {
		if string(o.bucket) == string(bDoors) {
			led = t.applyDoor(o) || led
			continue
		}
		routed = t.apply(o, &c) || routed
	}
	if routed {
		t.version++
	}
	if routed || led {
		close(t.changed)
		t.changed = make(chan struct{})
	}
	if t.watch != nil && len(c.Gone)+len(c.Networks)+len(c.Names) > 0 {
		t.watch(c)
	}
}

// Network returns a network of which the node was told, nil for others. It must not be
// modified.
func (t *Topology) Network(id []byte) *dv1.Network {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.networks[string(id)]; n != nil {
		return n.Network
	}
	return nil
}

// apply applies o in memory, adds what it changed to c, and reports whether it changed what Fabric
// returns. It must be called with mu held. What is of a network that the node was not
// told of is passed over.
func (t *Topology) apply(o op, c *Change) (routed bool) {
	switch string(o.bucket) {
	case string(bPeers):
		if o.m == nil {
			delete(t.peers, o.key)
			return true
		}
		old := t.peers[o.key]
		t.peers[o.key] = o.m.(*dv1.Peer)
		return !proto.Equal(old, o.m)
	case string(bNetworks):
		return t.applyNetwork(o, c)
	}
	n := t.networks[o.key[:idLength]]
	if n == nil {
		return false
	}
	of := o.key[idLength:]
	if string(o.bucket) == string(bSlices) {
		if o.m == nil {
			delete(n.slices, of)
			return true
		}
		old := n.slices[of]
		n.slices[of] = o.m.(*dv1.Slice)
		return !proto.Equal(old, o.m)
	}
	return n.applyName(of, o, c)
}

// applyDoor reports whether a port leads elsewhere than before. It must be called with mu
// held.
func (t *Topology) applyDoor(o op) bool {
	was := t.doors[o.key].GetNodeId()
	if o.m == nil {
		delete(t.doors, o.key)
		return was != ""
	}
	d := o.m.(*dv1.Door)
	t.doors[o.key] = d
	return was != d.NodeId
}

func (t *Topology) applyNetwork(o op, c *Change) (routed bool) {
	old := t.networks[o.key]
	if o.m == nil {
		if old != nil {
			delete(t.networks, o.key)
			c.Gone = append(c.Gone, hexID(o.key))
		}
		return old != nil
	}
	m := o.m.(*dv1.Network)
	if old != nil && proto.Equal(old.Network, m) {
		return false
	}
	c.Networks = append(c.Networks, m)
	if old == nil {
		t.networks[o.key] = &network{m, map[string]*dv1.Slice{}, map[string]*dv1.Name{}, map[string]*dv1.Name{}}
		return true
	}
	old.Network = m
	return true
}

func (n *network) applyName(task string, o op, c *Change) (routed bool) {
	if old := n.names[task]; old != nil && o.m != nil && proto.Equal(old, o.m) {
		return false
	}
	was := n.alone[task]
	delete(n.alone, task)
	if o.m == nil {
		delete(n.names, task)
		c.Names = append(c.Names, &dv1.Name{NetworkId: []byte(o.key[:idLength]), TaskId: []byte(task), Gone: true})
		return was != nil
	}
	m := o.m.(*dv1.Name)
	n.names[task] = m
	c.Names = append(c.Names, m)
	if !m.Asked {
		return was != nil
	}
	n.alone[task] = m
	return was == nil || was.NodeId != m.NodeId || was.Ip != m.Ip || was.Ip6 != m.Ip6
}
