package dispatch

import (
	"log/slog"
	"slices"
	"testing"

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
		OnEvent:  func(e *dv1.Happening) { events = append(events, string(e.TaskId[:1])+" "+e.Action) }})
	f.hub.lead(true)
	id := func(c byte) []byte { return slices.Repeat([]byte{c}, 32) }
	task := func(c byte, node string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: id(c), Name: string(c), NodeId: node, Attempt: 1}}}
	}
	f.put(task('a', "honest"), task('b', "liar"),
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
		Events: []*dv1.Happening{{TaskId: id('a'), Action: "exec_start"}, {TaskId: id('c'), Action: "kill"}},
	})
	if want := []string{"a exec_start", "c kill"}; !slices.Equal(events, want) || !slices.Equal(statuses, []string{"61", "63"}) {
		t.Fatalf("a node's own tasks: events %v, statuses %v", events, statuses)
	}
	statuses, events = nil, nil
	for _, gone := range []bool{false, true} {
		f.hub.take(liar, &dv1.Observation{
			Tasks: []*dv1.TaskStatus{{Id: id('a'), Attempt: 1, Gone: gone, Exit: &dv1.Exit{Attempt: 1}}, {Id: id('c'), Attempt: 1, Gone: gone},
				{Id: id('x'), Attempt: 1, Gone: gone}, {Id: id('b'), Attempt: 1, Pid: 9}},
			Events: []*dv1.Happening{{TaskId: id('a'), Action: "oom"}, {TaskId: id('c'), Action: "oom"}, {TaskId: id('x'), Action: "oom"}, {TaskId: nil, Action: "pull"}},
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
