// Package dispatch holds the sessions of agents: it sends them what was committed,
// keeps what they observe, and proposes whatever of it must be durable. Deciding is
// left to consensus, presenting the result to users to controller/fleet.
package dispatch

import (
	"context"
	"encoding/hex"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Timing of a session.
const (
	BeatEvery    = 500 * time.Millisecond
	SuspectAfter = 2500 * time.Millisecond
)

// Log is the part of this controller's own raft log that dispatch uses. What a Hub
// finds out is proposed here or not at all: another leader has sessions of its own.
type Log interface {
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
	Snapshot() *state.Snapshot
	Term() uint64
}

// Options configures a Hub. OnStatus and OnEvent may be nil and must not block.
// Probe reports whether a silent node still answers; a nil Probe means that none
// does.
type Options struct {
	Self     string // URI of this controller, the principal of what it proposes
	Log      Log
	Probe    func(ctx context.Context, nodeID string) bool
	Keys     func() [][]byte                           // gossip keys, newest first; may be nil
	Grant    func(node, digest string) ([]byte, error) // lets a node read an image from others; may be nil
	Logger   *slog.Logger
	Now      func() time.Time // nil: time.Now
	OnStatus func(taskID string)
	OnEvent  func(*dv1.Event)
}

// Hub holds every session of this controller and the latest reports of their agents.
// It is safe for concurrent use. No lock is held while walking nodes or tasks, so
// neither commits nor readers are delayed by the size of the fleet.
type Hub struct {
	o Options

	term atomic.Pointer[term] // nil: this controller does not lead

	mu  sync.Mutex // guards led
	led chan struct{}
}

// New returns a Hub without sessions.
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

// Run serves one term of this controller's leadership, until ctx is done: the Hub
// accepts sessions and judges liveness, then closes its sessions and drops their
// reports. Outside Run a Hub has no sessions and reports no node as silent.
func (h *Hub) Run(ctx context.Context) error {
	t := h.begin()
	var judging sync.WaitGroup
	judging.Go(func() { t.judge(ctx) })
	<-ctx.Done()
	h.end(t) // immediately: don't wait for judge
	judging.Wait()
	return nil
}

func (h *Hub) begin() *term {
	t := newTerm(h.o)
	t.roster.begin(func() *state.Snapshot {
		h.term.Store(t) // before reading the state, so that later commits are marked
		return h.o.Log.Snapshot()
	})
	t.topology.begin(h.o.Log.Snapshot)
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

// Committed marks what sessions have to send. It is consensus' OnCommit and never
// blocks: marks coalesce, and senders read the state themselves. Its cost depends on
// the number of effects, not of sessions, but for what is of all nodes, or of a network
// and the nodes in it.
func (h *Hub) Committed(effects []*dv1.Effect, index uint64) {
	t := h.term.Load()
	if t == nil {
		return
	}
	for _, e := range effects {
		switch of := e.Of.(type) {
		case *dv1.Effect_Task:
			t.markTask(of.Task, index)
			t.markDoorsOfTask(of.Task.Id, index)
		case *dv1.Effect_DeleteTask:
			t.topology.forget(of.DeleteTask)
			t.markDoorsOfTask(of.DeleteTask, index)
		case *dv1.Effect_Tombstone:
			t.mark(of.Tombstone.NodeId, mark{markTask, string(state.Removed(of.Tombstone))}, index)
		case *dv1.Effect_Network:
			t.topology.mark(of.Network.Id, mark{markNetwork, string(of.Network.Id)}, index)
		case *dv1.Effect_Slice:
			t.topology.mark(of.Slice.NetworkId, mark{markSlice, string(of.Slice.NetworkId) + of.Slice.NodeId}, index)
		case *dv1.Effect_DeleteSlice:
			network, _ := split(of.DeleteSlice)
			t.topology.mark(network, mark{markSlice, string(of.DeleteSlice)}, index)
		case *dv1.Effect_Endpoint:
			t.markEndpoint(of.Endpoint.NodeId, of.Endpoint.TaskId, of.Endpoint.NetworkId, index)
		case *dv1.Effect_DeleteEndpoint:
			task, network := split(of.DeleteEndpoint)
			t.markEndpoint(t.o.Log.Snapshot().Task(task).GetNodeId(), task, network, index)
		case *dv1.Effect_Identity:
			t.roster.changed(of.Identity.Uri, index)
		case *dv1.Effect_Node:
			t.moved(of.Node, index)
			t.markPeer(of.Node.Id, index)
			t.markDoorsOfNode(of.Node.Id, index)
		case *dv1.Effect_DeleteNode:
			t.remove(of.DeleteNode)
			t.markPeer(of.DeleteNode, index)
			t.markDoorsOfNode(of.DeleteNode, index)
		case *dv1.Effect_Controller:
			t.roster.changed("", index)
			t.markPeer(of.Controller.Id, index)
		case *dv1.Effect_DeleteController:
			t.roster.changed("", index)
			t.markPeer(of.DeleteController, index)
		case *dv1.Effect_Sealed, *dv1.Effect_DeleteSealed:
			t.roster.changed("", index)
		}
	}
}

// Restored is called when a snapshot replaced entries, which makes it unknown what
// sessions have missed. Only followers install snapshots, so the term is over.
func (h *Hub) Restored(*state.Snapshot) {
	if t := h.term.Load(); t != nil {
		t.end(errDeposed)
	}
}

// View returns the latest reports of agents. It is empty while this controller does
// not lead.
func (h *Hub) View() *View {
	if t := h.term.Load(); t != nil {
		return t.reported.view()
	}
	return &View{}
}

// Status returns the latest status of a task, or nil if none was reported.
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

// Observed is Status for a hex id.
func (h *Hub) Observed(taskID string) *dv1.TaskStatus {
	id, err := hex.DecodeString(taskID)
	if err != nil {
		return nil
	}
	return h.Status(id)
}

// Paused returns the number of paused tasks.
func (h *Hub) Paused() int { return h.View().Paused() }

// Ended yields the statuses of attempts that ended or failed to start, whether the log
// knows or not.
func (h *Hub) Ended() iter.Seq[*dv1.TaskStatus] { return h.View().Ended() }

// Holders returns the nodes that reported an image's content.
func (h *Hub) Holders(digest string) []string { return slices.Collect(h.View().Holders(digest)) }

// Silent returns the silent nodes, with the time each was last heard from (Unix ns).
func (h *Hub) Silent() map[string]int64 { return maps.Collect(h.View().Silent()) }

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
