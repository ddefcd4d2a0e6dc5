// Package dispatch keeps the sessions of agents: it tells them what was
// committed, keeps what they observe, and has the log keep what must last.
// Deciding is left to consensus, the user's view of it all to controller/fleet.
package dispatch

import (
	"context"
	"encoding/hex"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
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

// Hub is every session of this controller and what the agents reported last. It is
// safe for concurrent use. No lock of it is held over a walk of nodes or tasks, so
// that neither commits nor readers wait for the fleet's size.
type Hub struct {
	o Options

	term atomic.Pointer[term] // nil: this controller does not lead

	mu  sync.Mutex // guards led
	led chan struct{}
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
	return &Hub{o: o, led: make(chan struct{})}
}

// Run is one term of this controller's leadership, which ends with ctx: the Hub
// takes sessions and judges nodes, and then ends its sessions and forgets what
// they reported. Without it a Hub has no sessions and calls nobody silent.
func (h *Hub) Run(ctx context.Context) error {
	t := h.begin()
	var judging sync.WaitGroup
	judging.Go(func() { t.judge(ctx) })
	<-ctx.Done()
	h.end(t) // at once, whatever judging waits for
	judging.Wait()
	return nil
}

func (h *Hub) begin() *term {
	t := newTerm(h.o)
	t.roster.begin(func() *state.Snapshot {
		h.term.Store(t) // before the state is read: what is committed afterwards is marked
		return h.o.Log.Snapshot()
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.led)
	return t
}

func (h *Hub) end(t *term) {
	h.mu.Lock()
	h.led = make(chan struct{})
	h.mu.Unlock()
	h.term.Store(nil)
	t.end(errDeposed)
}

// Committed marks what sessions must be told. It is consensus' OnCommit: it
// never blocks, since marks coalesce and senders read the state themselves. It
// costs what the effects do, however many sessions there are.
func (h *Hub) Committed(effects []*dv1.Effect, index uint64) {
	t := h.term.Load()
	if t == nil {
		return
	}
	for _, e := range effects {
		switch of := e.Of.(type) {
		case *dv1.Effect_Task:
			t.mark(of.Task.NodeId, of.Task.Id, index)
		case *dv1.Effect_Tombstone:
			t.mark(of.Tombstone.NodeId, of.Tombstone.TaskId, index)
		case *dv1.Effect_Identity:
			t.roster.changed(of.Identity.Uri, index)
		case *dv1.Effect_Node:
			t.moved(of.Node, index)
		case *dv1.Effect_DeleteNode:
			t.remove(of.DeleteNode)
		case *dv1.Effect_Controller, *dv1.Effect_DeleteController, *dv1.Effect_Sealed, *dv1.Effect_DeleteSealed:
			t.roster.changed("", index)
		}
	}
}

// Restored is called when a snapshot took the place of entries, so that nobody knows
// what sessions were told. Only a member that follows gets one: its term is over.
func (h *Hub) Restored(*state.Snapshot) {
	if t := h.term.Load(); t != nil {
		t.end(errDeposed)
	}
}

// View returns what agents reported last, as of now. Without a term nobody reported
// anything.
func (h *Hub) View() *View {
	if t := h.term.Load(); t != nil {
		return t.reported.view()
	}
	return &View{}
}

// Status returns the last status of a task, nil if none was reported.
func (h *Hub) Status(task []byte) *dv1.TaskStatus {
	t := h.term.Load()
	if t == nil {
		return nil
	}
	snap := h.o.Log.Snapshot()
	node := snap.Task(task).GetNodeId()
	if node == "" {
		node = snap.Tombstone(task).GetNodeId()
	}
	return t.reported.of(node).status(task)
}

// Observed is Status of a hex id.
func (h *Hub) Observed(taskID string) *dv1.TaskStatus {
	id, err := hex.DecodeString(taskID)
	if err != nil {
		return nil
	}
	return h.Status(id)
}

// Paused is how many tasks are paused.
func (h *Hub) Paused() int { return h.View().Paused() }

// Holders returns the nodes that reported an image's content.
func (h *Hub) Holders(digest string) []string { return slices.Collect(h.View().Holders(digest)) }

// Silent returns the nodes that are silent, and when each was heard last (Unix ns).
func (h *Hub) Silent() map[string]int64 { return maps.Collect(h.View().Silent()) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
