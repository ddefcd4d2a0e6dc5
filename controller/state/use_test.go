package state

import (
	"slices"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// What a node's tasks take follows each task through its life.
func TestUseFollowsTasks(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	put := func(e ...*dv1.Effect) {
		t.Helper()
		if err := x.Apply(e...); err != nil {
			t.Fatal(err)
		}
	}
	task := func(node string, d dv1.Desired, attempt int32, started int64, exit *dv1.Exit, ports ...*dv1.Port) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: bytes32("task", 1), Name: "web", SpecId: []byte("s"), NodeId: node, Desired: d, Attempt: attempt, Started: started, Exit: exit, Ports: ports}}}
	}
	spec := func(body string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: []byte("s"), Body: []byte(body)}}}
	}
	port := &dv1.Port{Proto: "tcp", Host: 80}
	put(spec(`{"HostConfig":{"MemoryReservation":100}}`))
	for _, c := range []struct {
		what string
		e    *dv1.Effect
		want Use
	}{
		{"created", task("a", dv1.Desired_CREATED, 0, 0, nil), Use{Counts: Counts{Created: 1}, Wanted: 1, Memory: 100}},
		{"started", task("a", dv1.Desired_RUNNING, 1, 0, nil, port), Use{Counts: Counts{Begun: 1}, Wanted: 1, Memory: 100, Ports: []*dv1.Port{port}}},
		{"running", task("a", dv1.Desired_RUNNING, 1, 5, nil, port), Use{Counts: Counts{Running: 1}, Wanted: 1, Memory: 100, Ports: []*dv1.Port{port}}},
		{"another spec", spec(`{"hostconfig":{"memoryReservation":70}}`), Use{Counts: Counts{Running: 1}, Wanted: 1, Memory: 70, Ports: []*dv1.Port{port}}},
		{"one that can't be read", spec(`[]`), Use{Counts: Counts{Running: 1}, Wanted: 1, Ports: []*dv1.Port{port}}},
		{"being stopped", task("a", dv1.Desired_STOPPED, 1, 5, nil, port), Use{Counts: Counts{Running: 1}}},
		{"stopped", task("a", dv1.Desired_STOPPED, 1, 5, &dv1.Exit{Attempt: 1}), Use{Counts: Counts{Ended: 1}}},
		{"on another node", task("b", dv1.Desired_STOPPED, 1, 5, &dv1.Exit{Attempt: 1}), Use{}},
		{"started again", task("a", dv1.Desired_RUNNING, 2, 0, &dv1.Exit{Attempt: 1}), Use{Counts: Counts{Begun: 1}, Wanted: 1}},
		{"removed", &dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: bytes32("task", 1)}}, Use{}},
	} {
		put(c.e)
		if got := x.Use("a"); !got.equal(c.want) {
			t.Errorf("%s: %+v, want %+v", c.what, got, c.want)
		}
		if c.what != "on another node" && x.Counts() != c.want.Counts {
			t.Errorf("%s: the fleet has %+v, want %+v", c.what, x.Counts(), c.want.Counts)
		}
	}
}

// A copy's use is its own, also where both add ports to the same list.
func TestUseIsImmutable(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	task := func(n int) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: bytes32("task", n), Name: string(rune('a' + n)), NodeId: "a", Desired: dv1.Desired_RUNNING, Ports: []*dv1.Port{{Host: uint32(n)}}}}}
	}
	for n := range 3 {
		if err := x.Apply(task(n)); err != nil {
			t.Fatal(err)
		}
	}
	y := NewTxn(x.View())
	for i, z := range []*Txn{x, y} {
		if err := z.Apply(task(3 + i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, z := range []*Txn{x, y} {
		if got := z.Use("a").Ports; len(got) != 4 || got[3].Host != uint32(3+i) {
			t.Errorf("copy %d holds %v", i, got)
		}
	}
}

func TestTasksByAge(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	for n, created := range []int64{5, 9, 5, 7} {
		if err := x.Apply(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: []byte{byte(9 - n)}, Name: string(rune('a' + n)), Created: created}}}); err != nil {
			t.Fatal(err)
		}
	}
	var got string
	for task := range x.TasksByAge() {
		got += task.Name
	}
	if got != "bdca" {
		t.Errorf("they come as %s", got)
	}
}

func TestEndedTasksByAge(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	put := func(n int, task *dv1.Task) {
		t.Helper()
		task.Id, task.Name, task.Created = bytes32("task", n), string(rune('a'+n)), int64(n)
		if err := x.Apply(&dv1.Effect{Of: &dv1.Effect_Task{Task: task}}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(names string) {
		t.Helper()
		got := ""
		for task := range x.EndedTasksByAge() {
			got += task.Name
		}
		if got != names {
			t.Errorf("ended are %q, want %q", got, names)
		}
	}
	put(0, &dv1.Task{}) // created
	put(1, &dv1.Task{Attempt: 1, Started: 1})
	put(2, &dv1.Task{Attempt: 2, Exit: &dv1.Exit{Attempt: 2}})
	put(3, &dv1.Task{Attempt: 2, Exit: &dv1.Exit{Attempt: 1}})
	put(4, &dv1.Task{Attempt: 1, Failed: "no such file"})
	put(5, &dv1.Task{Attempt: 1, Restarts: 1, Exit: &dv1.Exit{Attempt: 1}})
	want("ec")
	put(2, &dv1.Task{Attempt: 3, Exit: &dv1.Exit{Attempt: 2}})
	put(1, &dv1.Task{Attempt: 1, Started: 1, Exit: &dv1.Exit{Attempt: 1}})
	want("eb")
	if err := x.Apply(&dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: bytes32("task", 4)}}); err != nil {
		t.Fatal(err)
	}
	want("b")
}

func TestNodesOfAnImage(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	spec := func(digest string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: []byte(digest), Digest: digest}}}
	}
	task := func(n int, node, digest string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: bytes32("task", n), Name: string(rune('a' + n)), NodeId: node, SpecId: []byte(digest)}}}
	}
	drop := func(n int) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: bytes32("task", n)}}
	}
	if err := x.Apply(spec("i"), spec("ii"), task(1, "b", "i"), task(2, "a", "i"), task(3, "a", "i"), task(4, "c", "ii"), task(5, "", "i")); err != nil {
		t.Fatal(err)
	}
	if a, b, c := x.TaskCountOfImage("i"), x.TaskCountOfImage("ii"), x.TaskCountOfImage("iii"); a != 3 || b != 1 || c != 0 {
		t.Errorf("%d, %d and %d tasks", a, b, c)
	}
	want := func(nodes ...string) {
		t.Helper()
		if got := slices.Collect(x.NodesOfImage("i")); !slices.Equal(got, nodes) {
			t.Errorf("%v have it, want %v", got, nodes)
		}
		for _, n := range []string{"a", "b", "c", ""} {
			if got := x.HasTaskOfImage(n, "i"); got != slices.Contains(nodes, n) {
				t.Errorf("%q has it: %v", n, got)
			}
		}
	}
	want("a", "b")
	for _, c := range []struct {
		e     *dv1.Effect
		nodes []string
	}{{drop(2), []string{"a", "b"}}, {drop(3), []string{"b"}}, {task(1, "c", "i"), []string{"c"}}, {task(1, "c", "ii"), nil}} {
		if err := x.Apply(c.e); err != nil {
			t.Fatal(err)
		}
		want(c.nodes...)
	}
}
