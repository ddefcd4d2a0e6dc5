package dispatch

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A node's word counts for what is its own: it makes no events of others' tasks,
// says nothing of them, and takes back nothing that was said.
func TestANodeSpeaksOfItsOwnTasksOnly(t *testing.T) {
	f := newFakeLog()
	var statuses, events []string
	f.hub.o.OnStatus = func(id string) { statuses = append(statuses, id[:2]) }
	f.hub.o.OnEvent = func(e *dv1.Event) {
		events = append(events, strings.TrimSpace(string(e.TaskId[:1])+" "+e.Action+" "+e.NodeId))
	}
	f.hub.begin()
	id := func(c byte) []byte { return slices.Repeat([]byte{c}, 32) }
	task := func(c byte, node string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: id(c), Name: string(c), NodeId: node, Attempt: 1}}}
	}
	f.put(aNode("honest"), aNode("liar"), task('a', "honest"), task('b', "liar"),
		&dv1.Effect{Of: &dv1.Effect_Tombstone{Tombstone: &dv1.Tombstone{TaskId: id('c'), NodeId: "honest"}}})
	enter := func(node string) *session {
		s := newSession(node, func(error) {})
		if err := f.hub.term.Load().enter(s, 1); err != nil {
			t.Fatal(err)
		}
		return s
	}
	honest, liar := enter("honest"), enter("liar")
	observe(f.hub, honest, &dv1.Observation{
		Tasks:  []*dv1.TaskStatus{{Id: id('a'), Attempt: 1, Pid: 7}, {Id: id('c'), Attempt: 1, Pid: 8}},
		Events: []*dv1.Event{{TaskId: id('a'), Action: "exec_start", NodeId: "liar"}, {TaskId: id('c'), Action: "kill"}, {TaskId: id('a'), Action: "mount", Volume: "data", NodeId: "liar"}},
	})
	if want := []string{"a exec_start", "c kill", "a mount honest"}; !slices.Equal(events, want) || !slices.Equal(statuses, []string{"61", "63"}) {
		t.Fatalf("a node's own tasks: events %v, statuses %v", events, statuses)
	}
	statuses, events = nil, nil
	for _, gone := range []bool{false, true} {
		observe(f.hub, liar, &dv1.Observation{
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
	observe(f.hub, honest, &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: id('a'), Gone: true}}})
	if st := f.hub.Observed("6161616161616161616161616161616161616161616161616161616161616161"); st != nil {
		t.Errorf("a node's own task is still seen as %v", st)
	}
}

func aNode(id string) *dv1.Effect {
	return &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: id, Name: id, Addr: id + ":7444"}}}
}

// What a node said goes with it, and with nothing else: a newer inventory replaces
// that node's, and its removal leaves nothing.
func TestARemovedNodeIsForgotten(t *testing.T) {
	f := newFakeLog()
	f.hub.begin()
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
		observe(f.hub, sessions[node], o)
	}
	for i, node := range []string{"a", "b"} {
		f.put(aNode(node))
		for k := range 3 {
			id := 3*i + k
			f.put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(id), Name: fmt.Sprint(id), NodeId: node}}})
		}
		sessions[node] = newSession(node, func(err error) { ended[node] = err })
		if err := f.hub.term.Load().enter(sessions[node], 1); err != nil {
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
	if y := f.hub.Holders("y"); !slices.Equal(y, []string{"a"}) {
		t.Errorf("after a removal y is at %v", y)
	}
	term := f.hub.term.Load()
	if v := f.hub.View(); len(term.nodes)+v.nodes.Len()+v.holders.Len()+len(term.roster.addrs) != 4 || ended["b"] == nil || ended["a"] != nil {
		t.Errorf("left are %v, %v, %v, %v; sessions ended: %v", term.nodes, v.nodes.Keys(), v.holders.Keys(), term.roster.addrs, ended)
	}
	say("b", []int{3}, "y")
	if err := term.enter(sessions["b"], 2); err == nil || f.hub.View().nodes.Len() != 1 {
		t.Error("a removed node is listened to")
	}
	f.put(&dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: "a"}})
	if v := f.hub.View(); v.nodes.Len()+v.holders.Len() != 0 {
		t.Errorf("left are %v, %v", v.nodes.Keys(), v.holders.Keys())
	}
}

// Whoever has a node's key can say what it likes, as often as it likes: what is kept of
// it is bounded, and nobody else's words are lost for it.
func TestANodeFillsNoControllersMemory(t *testing.T) {
	f := newFakeLog()
	events := 0
	f.hub.o.OnEvent = func(*dv1.Event) { events++ }
	f.hub.begin()
	f.put(aNode("honest"), aNode("liar"))
	for i, node := range []string{"liar", "liar", "liar", "honest"} {
		f.put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(i), Name: fmt.Sprint(i), NodeId: node, Attempt: 1}}})
	}
	liar, honest := newSession("liar", func(error) {}), newSession("honest", func(error) {})
	for _, s := range []*session{liar, honest} {
		if err := f.hub.term.Load().enter(s, 1); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("x", maxReported/2)
	for i := range 4 {
		observe(f.hub, liar, &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: tid(i % 3), Attempt: 1, Why: long, Exit: &dv1.Exit{Attempt: 1}}},
			Images: []*dv1.ImageStatus{{Digest: fmt.Sprint(i, long)}}, Events: []*dv1.Event{{TaskId: tid(0), Action: long}}})
	}
	observe(f.hub, honest, &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: tid(3), Attempt: 1, Pid: 7}}, Images: []*dv1.ImageStatus{{Digest: "sha256:d"}},
		Events: []*dv1.Event{{TaskId: tid(3), Action: "exec_start"}}})
	kept, view := 0, f.hub.View()
	for _, i := range view.nodes.Scan {
		for _, st := range i.tasks.Scan {
			kept += proto.Size(st)
		}
	}
	for d := range view.holders.Scan {
		kept += len(d)
	}
	if kept > maxReported+1<<10 || events != 1 {
		t.Errorf("%d bytes and %d events are kept", kept, events)
	}
	if len(liar.pending) != 3 {
		t.Errorf("the ends of %d containers are recorded", len(liar.pending))
	}
	if st := f.hub.Observed(hex.EncodeToString(tid(3))); st.GetPid() != 7 || !view.Holds("honest", "sha256:d") {
		t.Errorf("of the other node is known %v, %v", st, view.holders.Keys())
	}
	size := func(node string) int { return f.hub.term.Load().reported.of(node).size }
	// What is taken back makes room.
	observe(f.hub, liar, &dv1.Observation{Full: true, Tasks: []*dv1.TaskStatus{{Id: tid(1), Attempt: 1, Pid: 9}}})
	if st := f.hub.Observed(hex.EncodeToString(tid(1))); st.GetPid() != 9 || size("liar") > 1<<10 {
		t.Errorf("after a new inventory: %v, %d bytes", st.GetPid(), size("liar"))
	}
	observe(f.hub, liar, &dv1.Observation{Images: []*dv1.ImageStatus{{Digest: "a"}, {Digest: "a"}}})
	observe(f.hub, liar, &dv1.Observation{ImagesGone: []string{"a", "a"}, Tasks: []*dv1.TaskStatus{{Id: tid(1), Gone: true}}})
	if size("liar") != 0 {
		t.Errorf("%d bytes of nothing", size("liar"))
	}
}

// What is reported of an attempt, and of lives that its agent has begun anew.
func TestWhatTheLogLacksOfAStatus(t *testing.T) {
	exit := func(attempt, restarts int32) *dv1.Exit { return &dv1.Exit{Attempt: attempt, Restarts: restarts} }
	for what, c := range map[string]struct {
		task *dv1.Task
		st   *dv1.TaskStatus
		want *dv1.TaskReport
	}{
		"a task that isn't there":     {nil, &dv1.TaskStatus{Attempt: 1, Started: 5}, nil},
		"not started":                 {&dv1.Task{}, &dv1.TaskStatus{}, nil},
		"an attempt before":           {&dv1.Task{Attempt: 2}, &dv1.TaskStatus{Attempt: 1, Started: 5}, nil},
		"its end":                     {&dv1.Task{Attempt: 3, Restarts: 1, Exit: exit(1, 7)}, &dv1.TaskStatus{Attempt: 2, Exit: exit(2, 0)}, &dv1.TaskReport{Attempt: 2, Exit: exit(2, 0)}},
		"its end, which is known":     {&dv1.Task{Attempt: 3, Exit: exit(2, 0)}, &dv1.TaskStatus{Attempt: 2, Exit: exit(2, 0)}, nil},
		"the end of one before that":  {&dv1.Task{Attempt: 3}, &dv1.TaskStatus{Attempt: 2, Exit: exit(1, 0)}, nil},
		"an attempt nobody asked for": {&dv1.Task{Attempt: 1}, &dv1.TaskStatus{Attempt: 2, Started: 5}, nil},
		"it runs":                     {&dv1.Task{Attempt: 1}, &dv1.TaskStatus{Attempt: 1, Started: 5}, &dv1.TaskReport{Attempt: 1, Started: 5}},
		"that is known":               {&dv1.Task{Attempt: 1, Started: 5}, &dv1.TaskStatus{Attempt: 1, Started: 5}, nil},
		"it ended":                    {&dv1.Task{Attempt: 1, Started: 5}, &dv1.TaskStatus{Attempt: 1, Started: 5, Exit: exit(1, 0)}, &dv1.TaskReport{Attempt: 1, Exit: exit(1, 0)}},
		"that is known too":           {&dv1.Task{Attempt: 1, Started: 5, Exit: exit(1, 0)}, &dv1.TaskStatus{Attempt: 1, Started: 5, Exit: exit(1, 0)}, nil},
		"an earlier attempt's end":    {&dv1.Task{Attempt: 2}, &dv1.TaskStatus{Attempt: 2, Exit: exit(1, 0)}, nil},
		"it can't be started":         {&dv1.Task{Attempt: 1}, &dv1.TaskStatus{Attempt: 1, Phase: dv1.Phase_FAILED}, &dv1.TaskReport{Attempt: 1, Failed: "the task could not be started"}},
		"it begins anew":              {&dv1.Task{Attempt: 1, Started: 5}, &dv1.TaskStatus{Attempt: 1, Restarts: 1, Exit: exit(1, 0)}, &dv1.TaskReport{Attempt: 1, Restarts: 1, Exit: exit(1, 0)}},
		"it runs anew":                {&dv1.Task{Attempt: 1, Restarts: 1, Exit: exit(1, 0)}, &dv1.TaskStatus{Attempt: 1, Restarts: 1, Started: 9, Exit: exit(1, 0)}, &dv1.TaskReport{Attempt: 1, Restarts: 1, Started: 9}},
		"several lives later":         {&dv1.Task{Attempt: 1, Started: 5}, &dv1.TaskStatus{Attempt: 1, Restarts: 4, Started: 9, Exit: exit(1, 3)}, &dv1.TaskReport{Attempt: 1, Restarts: 4, Started: 9, Exit: exit(1, 3)}},
		"a later life's end":          {&dv1.Task{Attempt: 1, Restarts: 2, Started: 9, Exit: exit(1, 1)}, &dv1.TaskStatus{Attempt: 1, Restarts: 2, Started: 9, Exit: exit(1, 2)}, &dv1.TaskReport{Attempt: 1, Restarts: 2, Exit: exit(1, 2)}},
		"after many lives":            {&dv1.Task{Attempt: 2, Started: 5, Exit: exit(1, 7)}, &dv1.TaskStatus{Attempt: 2, Started: 5, Exit: exit(2, 0)}, &dv1.TaskReport{Attempt: 2, Exit: exit(2, 0)}},
		"a life before":               {&dv1.Task{Attempt: 1, Restarts: 4, Exit: exit(1, 3)}, &dv1.TaskStatus{Attempt: 1, Restarts: 2, Started: 9, Exit: exit(1, 1)}, nil},
	} {
		if got := unrecorded(c.task, c.st); !proto.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}
