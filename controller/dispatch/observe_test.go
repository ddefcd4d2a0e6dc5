package dispatch

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A node's word counts for what is its own: it makes no events of others' tasks,
// says nothing of them, and takes back nothing that was said.
func TestANodeSpeaksOfItsOwnTasksOnly(t *testing.T) {
	f := &fakeLog{txn: state.NewTxn(state.NewStore().Snapshot()), got: make(chan *dv1.Command, 100)}
	var statuses, events []string
	f.hub = New(Options{Log: f, Logger: slog.New(slog.DiscardHandler),
		OnStatus: func(id string) { statuses = append(statuses, id[:2]) },
		OnEvent:  func(e *dv1.Event) { events = append(events, string(e.TaskId[:1])+" "+e.Action) }})
	f.hub.lead(true)
	id := func(c byte) []byte { return slices.Repeat([]byte{c}, 32) }
	task := func(c byte, node string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: id(c), Name: string(c), NodeId: node, Attempt: 1}}}
	}
	f.put(aNode("honest"), aNode("liar"), task('a', "honest"), task('b', "liar"),
		&dv1.Effect{Of: &dv1.Effect_Tombstone{Tombstone: &dv1.Tombstone{TaskId: id('c'), NodeId: "honest"}}})
	enter := func(node string) *session {
		s := newSession(node, func(error) {})
		if err := f.hub.enter(s, 1); err != nil {
			t.Fatal(err)
		}
		return s
	}
	honest, liar := enter("honest"), enter("liar")
	f.hub.take(honest, &dv1.Observation{
		Tasks:  []*dv1.TaskStatus{{Id: id('a'), Attempt: 1, Pid: 7}, {Id: id('c'), Attempt: 1, Pid: 8}},
		Events: []*dv1.Event{{TaskId: id('a'), Action: "exec_start"}, {TaskId: id('c'), Action: "kill"}},
	})
	if want := []string{"a exec_start", "c kill"}; !slices.Equal(events, want) || !slices.Equal(statuses, []string{"61", "63"}) {
		t.Fatalf("a node's own tasks: events %v, statuses %v", events, statuses)
	}
	statuses, events = nil, nil
	for _, gone := range []bool{false, true} {
		f.hub.take(liar, &dv1.Observation{
			Tasks: []*dv1.TaskStatus{{Id: id('a'), Attempt: 1, Gone: gone, Exit: &dv1.Exit{Attempt: 1}}, {Id: id('c'), Attempt: 1, Gone: gone},
				{Id: id('x'), Attempt: 1, Gone: gone}, {Id: id('b'), Attempt: 1, Pid: 9}},
			Events: []*dv1.Event{{TaskId: id('a'), Action: "oom"}, {TaskId: id('c'), Action: "oom"}, {TaskId: id('x'), Action: "oom"}, {TaskId: nil, Action: "pull"}},
		})
	}
	if len(events) > 0 || !slices.Equal(statuses, []string{"62", "62"}) {
		t.Errorf("of others' tasks a node made events %v, statuses %v", events, statuses)
	}
	for c, pid := range map[string]int32{"61": 7, "62": 9, "63": 8, "78": 0} {
		hexed := ""
		for range 32 {
			hexed += c
		}
		if got := f.hub.Observed(hexed).GetPid(); got != pid {
			t.Errorf("task %s is seen with pid %d, want %d", c, got, pid)
		}
	}
	if len(liar.pending) > 0 {
		t.Errorf("a node reported of others' tasks: %v", liar.pending)
	}
	f.hub.take(honest, &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: id('a'), Gone: true}}})
	if st := f.hub.Observed("6161616161616161616161616161616161616161616161616161616161616161"); st != nil {
		t.Errorf("a node's own task is still seen as %v", st)
	}
}

func aNode(id string) *dv1.Effect {
	return &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: id, Name: id, Addr: id + ":7444"}}}
}

func quietHub() *fakeLog {
	f := &fakeLog{txn: state.NewTxn(state.NewStore().Snapshot()), got: make(chan *dv1.Command, 100)}
	f.hub = New(Options{Log: f, Logger: slog.New(slog.DiscardHandler)})
	return f
}

// What a node said goes with it, and with nothing else: a newer inventory replaces
// that node's, and its removal leaves nothing.
func TestARemovedNodeIsForgotten(t *testing.T) {
	f := quietHub()
	f.hub.lead(true)
	sessions := map[string]*session{}
	ended := map[string]error{}
	say := func(node string, tasks []int, images ...string) {
		o := &dv1.Observation{Full: true}
		for _, i := range tasks {
			o.Tasks = append(o.Tasks, &dv1.TaskStatus{Id: tid(i), Attempt: 1})
		}
		for _, d := range images {
			o.Images = append(o.Images, &dv1.ImageStatus{Digest: d})
		}
		f.hub.take(sessions[node], o)
	}
	for i, node := range []string{"a", "b"} {
		f.put(aNode(node))
		for k := range 3 {
			id := 3*i + k
			f.put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(id), Name: fmt.Sprint(id), NodeId: node}}})
		}
		sessions[node] = newSession(node, func(err error) { ended[node] = err })
		if err := f.hub.enter(sessions[node], 1); err != nil {
			t.Fatal(err)
		}
	}
	seen := func() (out []int) {
		for i := range 6 {
			if f.hub.Observed(hex.EncodeToString(tid(i))) != nil {
				out = append(out, i)
			}
		}
		return out
	}
	say("a", []int{0, 1, 2}, "x", "y")
	say("b", []int{3, 4, 5}, "y")
	say("a", []int{1}, "y")
	if got := seen(); !slices.Equal(got, []int{1, 3, 4, 5}) {
		t.Errorf("seen are %v", got)
	}
	if x, y := f.hub.Holders("x"), f.hub.Holders("y"); len(x) != 0 || len(y) != 2 {
		t.Errorf("x is at %v, y at %v", x, y)
	}
	f.put(&dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: "b"}})
	if got := seen(); !slices.Equal(got, []int{1}) {
		t.Errorf("after a removal are seen %v", got)
	}
	h := f.hub
	if y := h.Holders("y"); !slices.Equal(y, []string{"a"}) {
		t.Errorf("after a removal y is at %v", y)
	}
	if len(h.nodes)+len(h.byNode)+len(h.images)+len(h.members.addrs) != 4 || ended["b"] == nil || ended["a"] != nil {
		t.Errorf("left are %v, %v, %v, %v; sessions ended: %v", h.nodes, h.byNode, h.images, h.members.addrs, ended)
	}
	say("b", []int{3}, "y")
	if err := h.enter(sessions["b"], 2); err == nil || len(h.byNode) != 1 {
		t.Error("a removed node is listened to")
	}
	f.put(&dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: "a"}})
	if len(h.tasks)+len(h.byNode)+len(h.images)+len(h.holders) != 0 {
		t.Errorf("left are %v", h.told)
	}
}

// Whoever has a node's key can say what it likes, as often as it likes: what is kept of
// it is bounded, and nobody else's words are lost for it.
func TestANodeFillsNoControllersMemory(t *testing.T) {
	f := quietHub()
	events := 0
	f.hub.o.OnEvent = func(*dv1.Event) { events++ }
	f.hub.lead(true)
	f.put(aNode("honest"), aNode("liar"))
	for i, node := range []string{"liar", "liar", "liar", "honest"} {
		f.put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(i), Name: fmt.Sprint(i), NodeId: node, Attempt: 1}}})
	}
	liar, honest := newSession("liar", func(error) {}), newSession("honest", func(error) {})
	for _, s := range []*session{liar, honest} {
		if err := f.hub.enter(s, 1); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("x", maxTold/2)
	for i := range 4 {
		f.hub.take(liar, &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: tid(i % 3), Attempt: 1, Why: long, Exit: &dv1.Exit{Attempt: 1}}},
			Images: []*dv1.ImageStatus{{Digest: fmt.Sprint(i, long)}}, Events: []*dv1.Event{{TaskId: tid(0), Action: long}}})
	}
	f.hub.take(honest, &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: tid(3), Attempt: 1, Pid: 7}}, Images: []*dv1.ImageStatus{{Digest: "sha256:d"}},
		Events: []*dv1.Event{{TaskId: tid(3), Action: "exec_start"}}})
	kept := 0
	for _, o := range f.hub.tasks {
		kept += proto.Size(o.status)
	}
	for d := range f.hub.holders {
		kept += len(d)
	}
	if kept > maxTold+1<<10 || events != 1 {
		t.Errorf("%d bytes and %d events are kept", kept, events)
	}
	if len(liar.pending) != 3 {
		t.Errorf("the ends of %d containers are recorded", len(liar.pending))
	}
	if st := f.hub.Observed(hex.EncodeToString(tid(3))); st.GetPid() != 7 || len(f.hub.Holders("sha256:d")) != 1 {
		t.Errorf("of the other node is known %v, %v", st, f.hub.Holders("sha256:d"))
	}
	// What is taken back makes room.
	f.hub.take(liar, &dv1.Observation{Full: true, Tasks: []*dv1.TaskStatus{{Id: tid(1), Attempt: 1, Pid: 9}}})
	if st := f.hub.Observed(hex.EncodeToString(tid(1))); st.GetPid() != 9 || f.hub.sizes["liar"] > 1<<10 {
		t.Errorf("after a new inventory: %v, %d bytes", st.GetPid(), f.hub.sizes["liar"])
	}
	f.hub.take(liar, &dv1.Observation{Images: []*dv1.ImageStatus{{Digest: "a"}, {Digest: "a"}}})
	f.hub.take(liar, &dv1.Observation{ImagesGone: []string{"a", "a"}, Tasks: []*dv1.TaskStatus{{Id: tid(1), Gone: true}}})
	if n, ok := f.hub.sizes["liar"]; ok {
		t.Errorf("%d bytes of nothing", n)
	}
}

// frozen is a log whose state is as it is, so that reading it costs what it costs.
type frozen struct {
	*fakeLog
	snap *state.Snapshot
}

func (f frozen) Snapshot() *state.Snapshot { return f.snap }

// What a hello costs must not grow with the fleet: a new leader takes all of them at
// once, under the lock that commits wait for.
func BenchmarkHello(b *testing.B) {
	for _, nodes := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint("nodes=", nodes), func(b *testing.B) {
			const per = 20
			f := quietHub()
			for i := range nodes {
				name := fmt.Sprint("n", i)
				f.put(aNode(name))
				for k := range per {
					f.put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(i*per + k), Name: fmt.Sprint(i, "-", k), NodeId: name}}})
				}
			}
			f.hub.o.Log = frozen{f, f.txn.View()}
			f.hub.lead(true)
			n := uint64(0)
			hello := func(i int) {
				n++
				s := newSession(fmt.Sprint("n", i), func(error) {})
				if err := f.hub.enter(s, n); err != nil {
					b.Fatal(err)
				}
				f.hub.welcome("", s.node, nil)
				o := &dv1.Observation{Full: true, Images: []*dv1.ImageStatus{{Digest: "sha256:d"}}}
				for k := range per {
					o.Tasks = append(o.Tasks, &dv1.TaskStatus{Id: tid(i*per + k), Attempt: 1})
				}
				f.hub.take(s, o)
			}
			for i := range nodes {
				hello(i)
			}
			b.ResetTimer()
			for i := range b.N {
				hello(i % nodes)
			}
		})
	}
}
