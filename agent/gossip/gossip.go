// Package gossip spreads which images the nodes' mirrors hold. It is a hint for
// pulls and never a vote: who is alive is the sessions' to say.
package gossip

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Options of Start. Key is 32 bytes, from raft.
type Options struct {
	Node      string // id
	Bind      string // host:port
	Advertise string // address that others dial
	Addr      string // host:port of this node's bulk listener
	Keys      [][]byte
	Have      func() []string // digests
}

// maxState bounds what one node tells of itself.
const maxState = 1 << 20

// Gossip is this node's part in it. Safe for concurrent use.
type Gossip struct {
	o     Options
	list  *memberlist.Memberlist
	queue *memberlist.TransmitLimitedQueue
	keys  *memberlist.Keyring
	once  sync.Once

	mu   sync.Mutex // guards have
	have map[string]holding
}

type holding struct {
	Node    string
	Addr    string
	Digests []string
	At      int64 // Unix ns of the node's clock: its newest word counts
}

// Start joins nobody yet.
func Start(o Options) (*Gossip, error) {
	g := &Gossip{o: o, have: map[string]holding{}}
	host, port, err := net.SplitHostPort(o.Bind)
	if err != nil {
		return nil, fmt.Errorf("gossip-listen %q: %w", o.Bind, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("gossip-listen %q: %w", o.Bind, err)
	}
	c := memberlist.DefaultLANConfig()
	c.Name, c.BindAddr, c.BindPort, c.AdvertiseAddr, c.AdvertisePort = o.Node, host, n, o.Advertise, n
	c.Delegate, c.LogOutput, c.Logger = g, nil, log.New(io.Discard, "", 0)
	c.PushPullInterval = 15 * time.Second
	c.GossipInterval, c.ProbeInterval = 500*time.Millisecond, 2*time.Second
	if g.keys, err = memberlist.NewKeyring(o.Keys, o.Keys[0]); err != nil {
		return nil, fmt.Errorf("using the gossip's key: %w", err)
	}
	c.Keyring = g.keys
	if g.list, err = memberlist.Create(c); err != nil {
		return nil, fmt.Errorf("starting the gossip: %w", err)
	}
	g.queue = &memberlist.TransmitLimitedQueue{NumNodes: g.list.NumMembers, RetransmitMult: 3}
	return g, nil
}

// Join meets the agents at addrs (host:port of their bulk listeners) that listen
// for gossip on our port.
func (g *Gossip) Join(addrs []string) error {
	_, port, _ := net.SplitHostPort(g.o.Bind)
	var out []string
	for _, a := range addrs {
		if host, _, err := net.SplitHostPort(a); err == nil {
			out = append(out, net.JoinHostPort(host, port))
		}
	}
	if len(out) == 0 {
		return nil
	}
	if _, err := g.list.Join(out); err != nil {
		return fmt.Errorf("joining the gossip: %w", err)
	}
	return nil
}

// Keys takes the keys of now, newest first; older ones are still understood.
func (g *Gossip) Keys(keys [][]byte) error {
	for _, k := range keys {
		if err := g.keys.AddKey(k); err != nil {
			return fmt.Errorf("using the gossip's key: %w", err)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	if err := g.keys.UseKey(keys[0]); err != nil {
		return fmt.Errorf("using the gossip's key: %w", err)
	}
	for _, old := range g.keys.GetKeys() {
		if !slices.ContainsFunc(keys, func(k []byte) bool { return string(k) == string(old) }) {
			_ = g.keys.RemoveKey(old) // a key that is not in use can go
		}
	}
	return nil
}

// Tell spreads what this node holds now.
func (g *Gossip) Tell() {
	b, err := json.Marshal(g.mine())
	if err == nil && len(b) < 1000 { // more than a datagram waits for the next exchange
		g.queue.QueueBroadcast(note(b))
	}
}

func (g *Gossip) mine() holding {
	return holding{Node: g.o.Node, Addr: g.o.Addr, Digests: g.o.Have(), At: time.Now().UnixNano()}
}

// Holders gives the addresses of nodes that said they hold a digest.
func (g *Gossip) Holders(digest string) (out []string) {
	alive := map[string]bool{}
	for _, m := range g.list.Members() {
		alive[m.Name] = true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, h := range g.have {
		if alive[id] && slices.Contains(h.Digests, digest) {
			out = append(out, h.Addr)
		}
	}
	slices.Sort(out)
	return out
}

// Close leaves.
func (g *Gossip) Close() {
	g.once.Do(func() {
		_ = g.list.Leave(leaveWithin)
		_ = g.list.Shutdown()
	})
}

// leaveWithin is how long a leaving node tells the others.
const leaveWithin = 200 * time.Millisecond

func (g *Gossip) take(b []byte) {
	var h holding
	if len(b) > maxState || json.Unmarshal(b, &h) != nil || h.Node == "" || h.Node == g.o.Node {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.have[h.Node].At < h.At {
		g.have[h.Node] = h
	}
}

// note is a broadcast that nothing replaces.
type note []byte

func (note) Invalidates(memberlist.Broadcast) bool { return false }
func (n note) Message() []byte                     { return n }
func (note) Finished()                             {}

// NodeMeta implements memberlist.Delegate.
func (g *Gossip) NodeMeta(int) []byte { return nil }

// NotifyMsg implements memberlist.Delegate.
func (g *Gossip) NotifyMsg(b []byte) { g.take(b) }

// GetBroadcasts implements memberlist.Delegate.
func (g *Gossip) GetBroadcasts(overhead, limit int) [][]byte {
	if g.queue == nil {
		return nil
	}
	return g.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate.
func (g *Gossip) LocalState(bool) []byte {
	b, err := json.Marshal(g.mine())
	if err != nil {
		return nil
	}
	return b
}

// MergeRemoteState implements memberlist.Delegate.
func (g *Gossip) MergeRemoteState(b []byte, _ bool) { g.take(b) }
