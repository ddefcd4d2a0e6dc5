// Package dispatch keeps the sessions of agents: it tells them what was
// committed, keeps what they observe, and has the log keep what must last.
// Deciding is left to consensus, the user's view of it all to controller/fleet.
package dispatch

import (
	"context"
	"encoding/hex"
	"log/slog"
	"sync"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Times of a session.
const (
	BeatEvery    = 500 * time.Millisecond
	SuspectAfter = 2500 * time.Millisecond
)

// Log is what dispatch needs of this controller's own log: what a Hub finds out is
// proposed there or nowhere, since another leader has sessions of its own.
type Log interface {
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
	Snapshot() *state.Snapshot
	Term() uint64
}

// Options of a Hub. OnStatus and OnEvent may be nil and must not block. Probe
// asks whether a silent node answers at all; nil says no.
type Options struct {
	Self     string // URI of this controller, in whose name it tells what it finds out
	Log      Log
	Probe    func(ctx context.Context, nodeID string) bool
	Keys     func() [][]byte                           // of the gossip, newest first; may be nil
	Grant    func(node, digest string) ([]byte, error) // lets a node read an image from others; may be nil
	Logger   *slog.Logger
	Now      func() time.Time // nil: time.Now
	OnStatus func(taskID string)
	OnEvent  func(*dv1.Event)
}

// Hub is every session of this controller and what the agents said last.
type Hub struct {
	o Options

	mu     sync.Mutex // guards the fields below
	leads  bool
	led    chan struct{} // closed while it leads
	clocks clocks
	index  uint64 // of the last commit told to sessions
	nodes  map[string]*node
	told

	members members
}

type node struct {
	highest uint64 // session number
	session *session
	heard   time.Time
	spared  time.Time // counts as heard for its silence: it has a grace to come back
}

// New makes a Hub without sessions.
func New(o Options) *Hub {
	if o.OnStatus == nil {
		o.OnStatus = func(string) {}
	}
	if o.OnEvent == nil {
		o.OnEvent = func(*dv1.Event) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Keys == nil {
		o.Keys = func() [][]byte { return nil }
	}
	if o.Probe == nil {
		o.Probe = func(context.Context, string) bool { return false }
	}
	return &Hub{o: o, led: make(chan struct{}), nodes: map[string]*node{}, told: newTold(), members: members{addrs: map[string]string{}}}
}

// Run is one term of this controller's leadership, which ends with ctx: the Hub
// takes sessions and judges nodes, and then ends its sessions and forgets what
// they told. Without it a Hub has no sessions and calls nobody silent.
func (h *Hub) Run(ctx context.Context) error {
	h.lead(true)
	var judging sync.WaitGroup
	judging.Go(func() { h.judge(ctx) })
	<-ctx.Done()
	h.lead(false) // at once, whatever judging waits for
	judging.Wait()
	return nil
}

func (h *Hub) lead(leads bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if leads && !h.leads {
		close(h.led)
	}
	if !leads && h.leads {
		h.led = make(chan struct{})
	}
	h.leads, h.clocks = leads, clocks{}
	for _, n := range h.nodes {
		if n.session != nil {
			n.session.cancel(errDeposed)
		}
	}
	h.nodes, h.told = map[string]*node{}, newTold()
	h.members.seed(h.o.Log.Snapshot())
}

// Committed marks what sessions must be told. It is consensus' OnCommit: it
// never blocks, since marks coalesce and senders read the state themselves.
func (h *Hub) Committed(effects []*dv1.Effect, index uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index = max(h.index, index)
	for _, e := range effects {
		switch of := e.Of.(type) {
		case *dv1.Effect_Task:
			h.mark(of.Task.NodeId, of.Task.Id)
		case *dv1.Effect_Tombstone:
			h.mark(of.Tombstone.NodeId, of.Tombstone.TaskId)
		case *dv1.Effect_Identity:
			h.member(of.Identity.Uri)
		case *dv1.Effect_Node:
			h.moved(of.Node)
		case *dv1.Effect_DeleteNode:
			h.gone(of.DeleteNode)
		case *dv1.Effect_Controller, *dv1.Effect_DeleteController, *dv1.Effect_Sealed, *dv1.Effect_DeleteSealed:
			for _, n := range h.nodes {
				if n.session != nil {
					n.session.news = true
					poke(n.session.wake)
				}
			}
		case *dv1.Effect_DeleteTombstone:
			// The agent is done with the task: so is what was seen of it.
			h.unsee(hex.EncodeToString(of.DeleteTombstone))
		}
	}
}

// Restored is told that a snapshot took the place of entries, so that nobody knows
// what sessions were told: only a member that follows gets one, and it has none that
// stay.
func (h *Hub) Restored(snap *state.Snapshot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index = max(h.index, snap.Index())
	for _, n := range h.nodes {
		if n.session != nil {
			n.session.cancel(errDeposed)
		}
	}
	h.members.seed(snap)
}

// mark is called with mu held.
func (h *Hub) mark(nodeID string, task []byte) {
	if n := h.nodes[nodeID]; n != nil && n.session != nil {
		n.session.dirty[string(task)] = true
		poke(n.session.wake)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// gone forgets a removed node, with mu held.
func (h *Hub) gone(id string) {
	if n := h.nodes[id]; n != nil && n.session != nil {
		n.session.cancel(errRemoved)
	}
	delete(h.nodes, id)
	delete(h.members.addrs, id)
	h.forget(id)
}
