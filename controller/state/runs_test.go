package state

import (
	"bytes"
	"encoding/hex"
	"slices"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestRuns(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	run := func(id, spec, name string, filling bool) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Run{Run: &dv1.Run{Id: []byte(id), SpecId: []byte(spec), Name: name, Filling: filling}}}
	}
	task := func(id, run, spec string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: []byte(id), RunId: []byte(run), SpecId: []byte(spec), Name: id}}}
	}
	// Many runs have no name: their tasks do.
	if err := x.Apply(run("a", "s", "", false), run("b", "s", "", false), run("c", "t", "web", true), task("1", "a", "s"), task("2", "c", "s"), task("3", "c", "t")); err != nil {
		t.Fatal(err)
	}
	if err := x.Apply(run("d", "s", "web", false)); err == nil {
		t.Error("two runs of a name were taken")
	}
	if r := x.RunByName("web"); string(r.GetId()) != "c" || x.RunByName("") != nil {
		t.Errorf("web is %v, nothing is %v", r, x.RunByName(""))
	}
	filling := func() (ids []string) {
		for r := range x.RunsFilling() {
			ids = append(ids, string(r.Id))
		}
		return ids
	}
	if got := filling(); !slices.Equal(got, []string{"c"}) {
		t.Errorf("%v are filling", got)
	}
	for _, c := range []struct {
		what string
		got  bool
		want bool
	}{
		{"two tasks of c", x.RunHasTasks([]byte("c"), 2), true}, {"three", x.RunHasTasks([]byte("c"), 3), false}, {"one of b", x.RunHasTasks([]byte("b"), 1), false},
		{"four of spec s", x.SpecInUse([]byte("s"), 4), true}, {"five", x.SpecInUse([]byte("s"), 5), false}, {"one of another", x.SpecInUse([]byte("u"), 1), false},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v", c.what, c.got)
		}
	}
	if err := x.Apply(run("c", "t", "web", false)); err != nil || filling() != nil {
		t.Errorf("filled (%v), %v are filling", err, filling())
	}
}

// Ids follow from run, slot and generation, on every member and in every version.
func TestTaskIDs(t *testing.T) {
	a := TaskID(bytes32("run", 1), 1, 1)
	if got := hex.EncodeToString(a); got != "640ab61ad7eeca9431b7c69d9964d241505cb3fba4b6bbc901ce1684efb06434" {
		t.Errorf("it is %s", got)
	}
	for what, b := range map[string][]byte{"run": TaskID(bytes32("run", 2), 1, 1), "slot": TaskID(bytes32("run", 1), 2, 1), "generation": TaskID(bytes32("run", 1), 1, 2)} {
		if bytes.Equal(a, b) {
			t.Errorf("of another %s the id is the same", what)
		}
	}
}

func TestLives(t *testing.T) {
	for what, c := range map[string]struct {
		task          *dv1.Task
		live, running bool
	}{
		"never started":              {&dv1.Task{}, false, false},
		"wanted":                     {&dv1.Task{Attempt: 1}, true, false},
		"running":                    {&dv1.Task{Attempt: 1, Started: 5}, true, true},
		"ended":                      {&dv1.Task{Attempt: 1, Started: 5, Exit: &dv1.Exit{Attempt: 1}}, false, false},
		"could not be started":       {&dv1.Task{Attempt: 1, Failed: "no"}, false, false},
		"started again":              {&dv1.Task{Attempt: 2, Exit: &dv1.Exit{Attempt: 1}}, true, false},
		"between two lives":          {&dv1.Task{Attempt: 1, Restarts: 1, Exit: &dv1.Exit{Attempt: 1}}, true, false},
		"in a later life":            {&dv1.Task{Attempt: 1, Restarts: 2, Started: 9, Exit: &dv1.Exit{Attempt: 1, Restarts: 1}}, true, true},
		"ended in a later life":      {&dv1.Task{Attempt: 1, Restarts: 2, Started: 9, Exit: &dv1.Exit{Attempt: 1, Restarts: 2}}, false, false},
		"ended, many lives ago":      {&dv1.Task{Attempt: 2, Started: 9, Exit: &dv1.Exit{Attempt: 1, Restarts: 7}}, true, true},
		"ended, as nobody asked for": {&dv1.Task{Attempt: 1, Exit: &dv1.Exit{Attempt: 2}}, false, false},
	} {
		if Live(c.task) != c.live || Running(c.task) != c.running {
			t.Errorf("%s: live %v, running %v", what, Live(c.task), Running(c.task))
		}
	}
}
