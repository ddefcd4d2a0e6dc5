package dispatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

type layer struct{ net.Listener }

func (layer) Dial(a raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(a), timeout)
}

// quorum is a log of one member with its proposer, and a hub on it.
func quorum(t *testing.T) (*consensus.Node, *Hub) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var hub *Hub
	addr := raft.ServerAddress(l.Addr().String())
	node, err := consensus.Open(consensus.Options{ID: "c1", Dir: t.TempDir(), Addr: addr, Layer: layer{l},
		OnCommit: func(e []*dv1.Effect, i uint64) { hub.Committed(e, i) }})
	if err != nil {
		t.Fatal(err)
	}
	hub = New(Options{Self: "spiffe://fleet/controller/c1", Log: node, Logger: slog.New(slog.DiscardHandler)})
	if err := node.Bootstrap([]raft.Server{{ID: "c1", Address: addr}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = node.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended; _ = node.Close() })
	until(t, node, "the member leads", node.Ready)
	fleet := []*dv1.Effect{{Of: &dv1.Effect_Cluster{Cluster: &dv1.Cluster{Id: "fleet"}}}}
	for _, i := range accesstest.Identities("fleet", "n1") {
		fleet = append(fleet, &dv1.Effect{Of: &dv1.Effect_Identity{Identity: i}})
	}
	commit(t, node, fleet...)
	hub.begin()
	return node, hub
}

// until waits for what a commit, or an election, makes true.
func until(t *testing.T, node *consensus.Node, what string, ok func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		changed := node.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("never: %s", what)
		}
	}
}

// commit puts effects into the log as they are, some to an entry.
func commit(t *testing.T, node *consensus.Node, effects ...*dv1.Effect) {
	t.Helper()
	for len(effects) > 0 {
		n := min(len(effects), 400)
		b, err := proto.Marshal(&dv1.Entry{Format: state.Format, Type: state.EntryEffects, MinVersion: 1, Base: node.Snapshot().Index(), Effects: effects[:n]})
		if err != nil {
			t.Fatal(err)
		}
		f := node.Raft().Apply(b, 0)
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		if err, ok := f.Response().(error); ok {
			t.Fatal(err)
		}
		effects = effects[n:]
	}
}

func tid(i int) []byte { return fmt.Appendf(nil, "%-32s", fmt.Sprint("task", i)) }

// running are effects that make tasks with a process each on node n1.
func running(n int, autoRemove bool) (out []*dv1.Effect) {
	spec := bytes.Repeat([]byte{'s'}, 32)
	out = append(out, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n1", Name: "a", Liveness: dv1.Node_SUSPECT}}},
		&dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: spec, Body: []byte(`{}`)}}})
	for i := range n {
		run := tid(1_000_000 + i)
		out = append(out, &dv1.Effect{Of: &dv1.Effect_Run{Run: &dv1.Run{Id: run, SpecId: spec}}},
			&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(i), RunId: run, SpecId: spec, Name: fmt.Sprint("friendly_container-", i), NodeId: "n1", AutoRemove: autoRemove,
				Desired: dv1.Desired_RUNNING, Attempt: 1, Started: 5, Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}})
	}
	return out
}

// in enters a session of node n1 whose reports are proposed until the test ends.
func in(t *testing.T, hub *Hub) *session {
	t.Helper()
	s := newSession("n1", func(error) {})
	if err := hub.term.Load().enter(s, 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); hub.term.Load().report(ctx, s) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

// All containers of a big host end at once, as when it is rebooted, or are removed
// at once: that is more than an entry of the log takes, and all of it is recorded.
func TestWhatNoEntryTakesIsReportedInParts(t *testing.T) {
	const tasks = 1500
	for _, rm := range []bool{false, true} {
		t.Run(fmt.Sprint("rm=", rm), func(t *testing.T) {
			node, hub := quorum(t)
			commit(t, node, running(tasks, rm)...)
			s := in(t, hub)
			o := &dv1.Observation{Full: true}
			for i := range tasks {
				o.Tasks = append(o.Tasks, &dv1.TaskStatus{Id: tid(i), Attempt: 1, Phase: dv1.Phase_EXITED, Started: 5,
					Exit: &dv1.Exit{Attempt: 1, Code: 137, At: 9, Started: 5, Reason: "the host was restarted"}})
			}
			observe(hub, s, o)
			until(t, node, "every exit is recorded", func() bool {
				snap := node.Snapshot()
				for i := range tasks {
					if x := snap.Task(tid(i)); x != nil && x.Exit.GetCode() != 137 {
						return false
					}
				}
				return true
			})
			if !rm {
				return
			}
			for i := range tasks {
				if node.Snapshot().Ended(tid(i)).GetExit().GetCode() != 137 {
					t.Fatalf("nobody who waits for task %d finds its end", i)
				}
			}
			if node.Snapshot().Spec(bytes.Repeat([]byte{'s'}, 32)) != nil {
				t.Fatal("a spec that nothing uses stayed")
			}
		})
	}
}

func TestTombstonesThatNoEntryTakesAreAcknowledgedInParts(t *testing.T) {
	const tombs = 4000
	node, hub := quorum(t)
	all := []*dv1.Effect{aNode("n1")}
	for i := range tombs {
		all = append(all, &dv1.Effect{Of: &dv1.Effect_Tombstone{Tombstone: &dv1.Tombstone{TaskId: tid(i), NodeId: "n1"}}})
	}
	commit(t, node, all...)
	s := in(t, hub)
	a := &dv1.Acks{Removed: [][]byte{[]byte("made up")}}
	for i := range tombs {
		a.Removed = append(a.Removed, tid(i))
	}
	acked := hub.term.Load().acked(s, a)
	if len(acked.Removed) != tombs {
		t.Errorf("of %d acknowledgements %d are kept", len(a.Removed), len(acked.Removed))
	}
	s.add(nil, acked)
	until(t, node, "every tombstone is gone", func() bool {
		for range node.Snapshot().Tombstones("n1") {
			return false
		}
		return true
	})
}

// A removal that stops half-way is gone on with by whoever leads.
func TestALargeNodesRemovalGoesOn(t *testing.T) {
	const tasks = 3000
	node, hub := quorum(t)
	commit(t, node, running(tasks, false)...)
	res, err := node.Propose(t.Context(), &dv1.Command{Principal: "spiffe://fleet/user/admin", Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "a", Force: true}}})
	if err != nil || res.Error != nil || res.Left == 0 || res.Left >= tasks {
		t.Fatalf("%v, %v", res, err)
	}
	if n := node.Snapshot().Node("n1"); n.GetAvailability() != dv1.Node_REMOVING {
		t.Fatalf("the node is %v", n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); hub.term.Load().judge(ctx) }()
	defer func() { cancel(); <-done }()
	until(t, node, "the node is gone", func() bool { return node.Snapshot().Node("n1") == nil })
	for task := range node.Snapshot().Tasks() {
		t.Fatalf("%s stayed", task.Name)
	}
}

// refusing is a log that refuses before it takes, with an error and in words.
type refusing struct {
	*fakeLog
	answers chan func() (*dv1.CommandResult, error)
}

func (r refusing) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	select {
	case a := <-r.answers:
		return a()
	default:
		return r.fakeLog.Propose(ctx, c)
	}
}

func TestARefusedReportStaysPending(t *testing.T) {
	f := newFakeLog()
	l := refusing{f, make(chan func() (*dv1.CommandResult, error), 2)}
	f.hub = New(Options{Log: l, Logger: slog.New(slog.DiscardHandler)})
	f.hub.begin()
	f.put(running(1, false)...)
	l.answers <- func() (*dv1.CommandResult, error) {
		return &dv1.CommandResult{Error: &dv1.Error{Message: "too large"}}, nil
	}
	l.answers <- func() (*dv1.CommandResult, error) { return nil, errors.New("no leader") }
	s := in(t, f.hub)
	observe(f.hub, s, &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: tid(0), Attempt: 1, Started: 5, Exit: &dv1.Exit{Attempt: 1, Code: 3}}}})
	if r := (<-f.got).GetReport(); len(r.GetTasks()) != 1 || r.Tasks[0].Exit.GetCode() != 3 || len(l.answers) != 0 {
		t.Fatalf("recorded %v", r)
	}
}
