// Package gossip spreads which images each node holds. It is a hint for pulls and never
// a vote: liveness is up to the sessions, and addresses come from the roster. A node is
// trusted only about itself, by its signature.
package gossip

import (
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// Options of Start. Keys are 32 bytes each, from raft, newest first: the first one
// encrypts, all of them decrypt. Files sign what this node announces; Known reports
// whether another node belongs to the fleet.
type Options struct {
	Node      string // id
	Bind      string // host:port
	Advertise string // address that others dial
	Keys      [][]byte
	Files     *pki.Files
	Known     pki.Verify
	Have      func() []string // digests
}

// Bounds of what is received.
const (
	maxState  = 1 << 20     // of the state that one node sends
	maxNote   = 1000        // a longer note does not fit a datagram and waits for the next exchange
	maxFuture = time.Minute // how far another node's clock may be ahead
)

// purpose is part of each signature.
const purpose = "drover-gossip/1"

// Gossip is this node's membership. Safe for concurrent use.
type Gossip struct {
	o     Options
	list  *memberlist.Memberlist
	queue *memberlist.TransmitLimitedQueue
	keys  *memberlist.Keyring
	once  sync.Once

	mu   sync.Mutex // guards have
	have map[string]holding
}

// holding is what a node last announced.
type holding struct {
	who     *pki.Signer
	at      int64
	digests map[string]bool
	raw     *dv1.Holding // to be relayed
}

// Start listens, and knows no other node before Join.
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

// Join exchanges state with the agents at addrs (host:port of their own ports), which
// listen for gossip on the same port as this node. It returns an error if none answers.
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

// SetKeys replaces the keys: newest first, as in Options.
func (g *Gossip) SetKeys(keys [][]byte) error {
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
			_ = g.keys.RemoveKey(old) // the primary key can't be removed
		}
	}
	return nil
}

// Announce spreads what this node holds now.
func (g *Gossip) Announce() {
	h, err := g.mine()
	if err != nil {
		return
	}
	h.Cert = nil // others have it from an exchange, or ignore this
	if b, err := proto.Marshal(&dv1.Holdings{All: []*dv1.Holding{h}}); err == nil && len(b) < maxNote {
		g.queue.QueueBroadcast(note(b))
	}
}

func (g *Gossip) mine() (*dv1.Holding, error) {
	said := &dv1.Held{Node: g.o.Node, At: time.Now().UnixNano()}
	for _, d := range g.o.Have() {
		if h, ok := strings.CutPrefix(d, "sha256:"); ok {
			if b, err := hex.DecodeString(h); err == nil {
				said.Digests = append(said.Digests, b)
			}
		}
	}
	b, err := proto.Marshal(said)
	if err != nil {
		return nil, err
	}
	sig, err := g.o.Files.Sign(purpose, b)
	if err != nil {
		return nil, err
	}
	return &dv1.Holding{Said: b, Signature: sig, Cert: g.o.Files.Cert.Certificate[0]}, nil
}

// Holders returns the ids of nodes that announced a digest and are alive.
func (g *Gossip) Holders(digest string) (out []string) {
	alive := map[string]bool{}
	for _, m := range g.list.Members() {
		alive[m.Name] = true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, h := range g.have {
		if alive[id] && h.digests[digest] && g.o.Known(h.who.Principal) == nil {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// Close announces that this node leaves, and stops.
func (g *Gossip) Close() {
	g.once.Do(func() {
		_ = g.list.Leave(leaveWithin)
		_ = g.list.Shutdown()
	})
}

// leaveWithin bounds the announcement of leaving.
const leaveWithin = 200 * time.Millisecond

func (g *Gossip) take(b []byte) {
	var all dv1.Holdings
	if len(b) > maxState || proto.Unmarshal(b, &all) != nil {
		return
	}
	for _, h := range all.All {
		g.hear(h)
	}
}

// hear trusts a node about itself only.
func (g *Gossip) hear(h *dv1.Holding) {
	var said dv1.Held
	now := time.Now()
	if proto.Unmarshal(h.Said, &said) != nil || said.Node == g.o.Node || said.At > now.Add(maxFuture).UnixNano() {
		return
	}
	g.mu.Lock()
	old, heard := g.have[said.Node]
	g.mu.Unlock()
	if heard && said.At <= old.at && old.at <= now.Add(maxFuture).UnixNano() { // unless the clock was set back
		return
	}
	who := old.who
	if len(h.Cert) > 0 {
		var err error
		if who, err = g.o.Files.Signer(h.Cert, pki.All(pki.Kinds(pki.KindNode), g.o.Known)); err != nil {
			return
		}
	}
	if who == nil || who.Principal.ID != said.Node || g.o.Known(who.Principal) != nil || who.Check(purpose, h.Said, h.Signature) != nil {
		return
	}
	n := holding{who: who, at: said.At, digests: map[string]bool{}, raw: &dv1.Holding{Said: h.Said, Signature: h.Signature, Cert: h.Cert}}
	if len(n.raw.Cert) == 0 {
		n.raw.Cert = old.raw.GetCert()
	}
	for _, d := range said.Digests {
		n.digests["sha256:"+hex.EncodeToString(d)] = true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.have[said.Node].at == old.at { // else it has announced something newer meanwhile
		g.have[said.Node] = n
	}
}

// state returns what this node announces and what it received, as far as there is room.
func (g *Gossip) state() []byte {
	mine, err := g.mine()
	if err != nil {
		return nil
	}
	out := &dv1.Holdings{All: []*dv1.Holding{mine}}
	room := maxState/2 - proto.Size(mine)
	g.mu.Lock()
	for _, h := range g.have { // in random order: others relay what has no room here
		if room -= proto.Size(h.raw) + 8; room < 0 {
			break
		}
		out.All = append(out.All, h.raw)
	}
	g.mu.Unlock()
	b, err := proto.Marshal(out)
	if err != nil {
		return nil
	}
	return b
}

// note is a broadcast that no other one supersedes.
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
func (g *Gossip) LocalState(bool) []byte { return g.state() }

// MergeRemoteState implements memberlist.Delegate.
func (g *Gossip) MergeRemoteState(b []byte, _ bool) { g.take(b) }
