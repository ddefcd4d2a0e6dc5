package dispatch

import (
	"maps"
	"slices"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A view is of one moment: what is reported afterwards is in the next one.
func TestAViewDoesNotChange(t *testing.T) {
	f, sessions := crowd(t, 3)
	before := f.hub.View()
	if f.hub.View() != before {
		t.Error("a view is made although nothing changed")
	}
	observe(f.hub, sessions[0], &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: tid(0), Attempt: 1, Pid: 7}}, Images: []*dv1.ImageStatus{{Digest: "sha256:e"}}})
	f.hub.term.Load().reported.markSilent("n1", 42)
	f.put(&dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: "n2"}})
	after := f.hub.View()
	for _, c := range []struct {
		v       *View
		pid     int32
		n2      bool
		e, d    []string
		silent  int64
		isQuiet bool
	}{
		{before, 0, true, nil, []string{"n0", "n1", "n2"}, 0, false},
		{after, 7, false, []string{"n0"}, []string{"n0", "n1"}, 42, true},
	} {
		if st := c.v.Status("n0", tid(0)); st.GetPid() != c.pid {
			t.Errorf("n0's task is seen as %v", st)
		}
		if st := c.v.Status("n2", tid(2*tasksPerNode)); (st != nil) != c.n2 {
			t.Errorf("n2's task is seen as %v", st)
		}
		if e, d := slices.Collect(c.v.Holders("sha256:e")), slices.Collect(c.v.Holders("sha256:d")); !slices.Equal(e, c.e) || !slices.Equal(d, c.d) {
			t.Errorf("images are at %v, %v", e, d)
		}
		if at, silent := c.v.SilentSince("n1"); at != c.silent || silent != c.isQuiet || len(maps.Collect(c.v.Silent())) != int(min(1, c.silent)) {
			t.Errorf("n1 is silent: %v since %d; all: %v", silent, at, maps.Collect(c.v.Silent()))
		}
	}
	if st := after.Status("n1", tid(0)); st != nil {
		t.Errorf("a node speaks for another one's task: %v", st)
	}
}

// Who needs a few holders of an image is not sent to the same few as everybody.
func TestHoldersAreFoundFromAnywhere(t *testing.T) {
	f, _ := crowd(t, 4)
	v := f.hub.View()
	for from, want := range map[string][]string{
		"":    {"n0", "n1", "n2", "n3"},
		"n0":  {"n0", "n1", "n2", "n3"},
		"n1x": {"n2", "n3", "n0", "n1"},
		"n3":  {"n3", "n0", "n1", "n2"},
		"z":   {"n0", "n1", "n2", "n3"},
	} {
		if got := slices.Collect(v.HoldersFrom("sha256:d", from)); !slices.Equal(got, want) {
			t.Errorf("from %q: %v, want %v", from, got, want)
		}
		for id := range v.HoldersFrom("sha256:d", from) { // whoever stops is not asked again
			if id == want[0] {
				break
			}
			t.Errorf("from %q the first is %s", from, id)
		}
	}
	if got := slices.Collect(v.Holders("sha256:")); len(got) > 0 {
		t.Errorf("half a digest is at %v", got)
	}
}

// While a node's report is worked through, which may be long, neither commits nor
// readers wait for it.
func TestAReportHoldsUpNeitherCommitsNorReaders(t *testing.T) {
	f, sessions := crowd(t, 2)
	sessions[0].of.observing.Lock()
	defer sessions[0].of.observing.Unlock()
	f.put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(1), Name: "other", NodeId: "n0"}}})
	f.put(aNode("n9"), &dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: "n0"}})
	if f.hub.View().Status("n1", tid(tasksPerNode)) == nil || f.hub.Status(tid(tasksPerNode)) == nil {
		t.Error("n1's task is not seen")
	}
}

// What a deposed leader's sessions still report reaches nobody, and its commits go on
// without it.
func TestWithoutATermNothingIsSeen(t *testing.T) {
	f, sessions := crowd(t, 2)
	f.hub.end(f.hub.term.Load())
	if v := f.hub.View(); v.Status("n0", tid(0)) != nil || len(f.hub.Silent()) > 0 || v.Holds("n0", "sha256:d") || f.hub.Status(tid(0)) != nil {
		t.Error("something is seen")
	}
	f.put(aNode("n7"))
	f.hub.begin()
	sessions[0].of.session.Store(sessions[0])
	if f.hub.View().Status("n0", tid(0)) != nil {
		t.Error("the former term's reports are in this one's view")
	}
}

// The status of a removed task is seen until its node acknowledged the removal.
func TestAnAcknowledgedTaskIsForgotten(t *testing.T) {
	f, sessions := crowd(t, 1)
	f.put(&dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: tid(0)}}, &dv1.Effect{Of: &dv1.Effect_Tombstone{Tombstone: &dv1.Tombstone{TaskId: tid(0), NodeId: "n0"}}})
	if f.hub.Status(tid(0)) == nil {
		t.Fatal("the task is not seen until its removal is done")
	}
	term, s := f.hub.term.Load(), sessions[0]
	s.add(nil, term.acked(s, &dv1.Acks{Removed: [][]byte{tid(0)}}))
	if more, err := term.record(t.Context(), s); more || err != nil {
		t.Fatal(more, err)
	}
	if v := f.hub.View(); v.Status("n0", tid(0)) != nil || v.Status("n0", tid(1)) == nil {
		t.Error("not that task alone is forgotten")
	}
}

func TestPausedTasksAreCounted(t *testing.T) {
	f, sessions := crowd(t, 2)
	id := func(node int) []byte { return tid(node * tasksPerNode) }
	pause := func(node int, paused bool) {
		observe(f.hub, sessions[node], &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: id(node), Attempt: 1, Paused: paused}}})
	}
	for _, step := range []struct {
		what string
		do   func()
		want int
	}{
		{"one is", func() { pause(0, true) }, 1},
		{"it is reported again", func() { pause(0, true) }, 1},
		{"another node's is", func() { pause(1, true) }, 2},
		{"one goes on", func() { pause(0, false) }, 1},
		{"one's container is gone", func() {
			observe(f.hub, sessions[1], &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: id(1), Gone: true}}})
		}, 0},
		{"a whole inventory has one", func() {
			observe(f.hub, sessions[1], &dv1.Observation{Full: true, Tasks: []*dv1.TaskStatus{{Id: id(1), Attempt: 1, Paused: true}}})
		}, 1},
		{"its node is removed", func() { f.put(&dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: "n1"}}) }, 0},
	} {
		if step.do(); f.hub.Paused() != step.want {
			t.Errorf("%s: %d are paused, not %d", step.what, f.hub.Paused(), step.want)
		}
	}
}

// What ended is found without a walk over nodes where nothing has, and counted as reports
// come, change and go.
func TestEndedTasksAreFound(t *testing.T) {
	f, sessions := crowd(t, 3)
	exited := func(n int) *dv1.TaskStatus {
		return &dv1.TaskStatus{Id: tid(n), Attempt: 1, Exit: &dv1.Exit{Attempt: 1}}
	}
	for _, step := range []struct {
		what string
		do   func()
		want []int // tasks
	}{
		{"at first", func() {}, nil},
		{"one exited", func() { observe(f.hub, sessions[0], &dv1.Observation{Tasks: []*dv1.TaskStatus{exited(1)}}) }, []int{1}},
		{"again", func() { observe(f.hub, sessions[0], &dv1.Observation{Tasks: []*dv1.TaskStatus{exited(1)}}) }, []int{1}},
		{"one failed", func() {
			observe(f.hub, sessions[2], &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: tid(2 * tasksPerNode), Attempt: 1, Phase: dv1.Phase_FAILED}}})
		}, []int{1, 2 * tasksPerNode}},
		{"its agent began it anew", func() {
			st := exited(1)
			st.Restarts, st.Phase = 1, dv1.Phase_ACTIVE
			observe(f.hub, sessions[0], &dv1.Observation{Tasks: []*dv1.TaskStatus{st}})
		}, []int{2 * tasksPerNode}},
		{"one began anew", func() {
			observe(f.hub, sessions[0], &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: tid(1), Attempt: 2}}})
		}, []int{2 * tasksPerNode}},
		{"a whole inventory", func() {
			observe(f.hub, sessions[2], &dv1.Observation{Full: true, Tasks: []*dv1.TaskStatus{exited(2*tasksPerNode + 3)}})
		}, []int{2*tasksPerNode + 3}},
		{"it is gone", func() {
			observe(f.hub, sessions[2], &dv1.Observation{Tasks: []*dv1.TaskStatus{{Id: tid(2*tasksPerNode + 3), Gone: true}}})
		}, nil},
	} {
		step.do()
		var got, want []string
		for st := range f.hub.Ended() {
			got = append(got, string(st.Id))
		}
		for _, n := range step.want {
			want = append(want, string(tid(n)))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", step.what, got, want)
		}
	}
}
