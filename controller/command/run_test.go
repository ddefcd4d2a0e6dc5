package command

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// each is a run named so on every node that fits.
func each(name, host string, change ...func(*dv1.CreateRun)) *dv1.Command {
	c := &dv1.CreateRun{RunId: id("run-" + name), Name: name, Mode: dv1.Run_EACH, Spec: &dv1.Spec{Body: []byte(`{"Image":"alpine","HostConfig":{` + host + `}}`), Image: "alpine"}}
	for _, f := range change {
		f(c)
	}
	return &dv1.Command{Of: &dv1.Command_Create{Create: c}}
}

func on(constraints ...string) func(*dv1.CreateRun) {
	return func(c *dv1.CreateRun) { c.On = constraints }
}

func started(c *dv1.CreateRun)     { c.Start = true }
func autoRemoved(c *dv1.CreateRun) { c.AutoRemove = true }

// current is a fleet whose controllers have the level of this build.
func current(t *testing.T, nodes ...string) *fleet {
	f := newFleet(t, "10.0.0.0/8", nodes...)
	f.level("n0", state.FeatureLevel)
	return f
}

func (f *fleet) level(controller string, level uint32) {
	f.t.Helper()
	f.ok(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: "spiffe://fleet/controller/" + controller, Roles: []string{"controller"}}}}})
	f.ok(putLevel(controller, level))
}

func putLevel(controller string, level uint32) *dv1.Command {
	return &dv1.Command{Of: &dv1.Command_PutController{PutController: &dv1.PutController{Controller: &dv1.Controller{Id: controller, Level: level}}}}
}

func placed(r *dv1.CommandResult) (out []string) {
	for _, p := range r.Placed {
		out = append(out, p.Name+"@"+p.NodeId)
	}
	return out
}

func rejected(r *dv1.CommandResult) (out []string) {
	for _, j := range r.Rejected {
		out = append(out, fmt.Sprint(j.Nodes, " ", j.Why))
	}
	return out
}

func TestARunOnEachNode(t *testing.T) {
	f := current(t, "a", "b", "c", "d")
	f.ok(&dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "b", Availability: dv1.Node_DRAIN}}})
	r := f.ok(each("job", `"Binds":["/srv:/srv"]`, on("node!=d")))
	if got := placed(r); !slices.Equal(got, []string{"job-1@n0", "job-2@n2"}) {
		t.Errorf("it is on %v", got)
	}
	if got := rejected(r); !slices.Equal(got, []string{"1 drained", "1 don't match node!=d"}) {
		t.Errorf("others are not chosen, for %v", got)
	}
	if r.Name != "job" || !bytes.Equal(r.RunId, id("run-job")) || r.Left != 0 || !r.Changed {
		t.Errorf("it is answered with %v", r)
	}
	s := f.store.Snapshot()
	run := s.Run(id("run-job"))
	if run.Mode != dv1.Run_EACH || run.Count != 2 || run.Filling || run.Filled != "" || run.Generation != 1 || !slices.Equal(run.On, []string{"node!=d"}) || run.Revision != f.index {
		t.Errorf("the run is %v", run)
	}
	for i, p := range r.Placed {
		x := s.Task(p.TaskId)
		if x == nil || x.Slot != uint32(i+1) || x.Generation != 1 || x.Desired != dv1.Desired_CREATED || !bytes.Equal(x.RunId, run.Id) || !bytes.Equal(x.SpecId, run.SpecId) {
			t.Errorf("task %d is %v", i, x)
		}
		if !bytes.Equal(p.TaskId, state.TaskID(run.Id, x.Slot, 1)) {
			t.Errorf("the id of slot %d doesn't follow from its run", x.Slot)
		}
	}
	// The run lives as long as one of its tasks, and its spec as long as both.
	for i, p := range r.Placed {
		f.ok(&dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: p.TaskId}}})
		s = f.store.Snapshot()
		if last := i == 1; (s.Run(run.Id) == nil) != last || (s.Spec(run.SpecId) == nil) != last {
			t.Errorf("after %d removals: run %v, spec %v", i+1, s.Run(run.Id), s.Spec(run.SpecId))
		}
	}
}

func TestRunsAreRefused(t *testing.T) {
	f := current(t, "a", "b")
	for _, c := range []struct {
		what  string
		cmd   *dv1.Command
		kind  dv1.Error_Kind
		words string
	}{
		{"a short id", each("x", "", func(c *dv1.CreateRun) { c.RunId = []byte("x") }), dv1.Error_INVALID, "32 bytes"},
		{"ids of its own", each("x", "", func(c *dv1.CreateRun) { c.TaskIds = [][]byte{id("x")} }), dv1.Error_INVALID, "derived from the run's id"},
		{"a mode of the future", each("x", "", func(c *dv1.CreateRun) { c.Mode = 7 }), dv1.Error_INVALID, "not supported"},
		{"no spec", each("x", "", func(c *dv1.CreateRun) { c.Spec.Body = []byte("[") }), dv1.Error_INVALID, "invalid container spec"},
		{"no image", each("x", "", func(c *dv1.CreateRun) { c.Spec.Image = "nope" }), dv1.Error_NO_IMAGE, "No such image"},
		{"a bad name", each("-x", ""), dv1.Error_INVALID, "Invalid container name"},
		{"a bad constraint", each("x", "", on("zone")), dv1.Error_INVALID, "want key==value"},
		{"no node", each("x", "", on("node==z")), dv1.Error_UNAVAILABLE, "0 of 2 nodes fit: 2 don't match node==z"},
		{"too much memory", each("x", `"MemoryReservation":5000000000000`), dv1.Error_UNAVAILABLE, "2 lack 4.547 TiB memory"},
		{"one with a run's id", each("x", "", func(c *dv1.CreateRun) { c.Mode = dv1.Run_ONE }), dv1.Error_INVALID, "one new task id"},
	} {
		t.Run(c.what, func(t *testing.T) { f.t = t; f.no(c.cmd, c.kind, c.words) })
	}
	f.t = t
	user := each("x", `"Privileged":true`)
	user.Principal = "spiffe://fleet/user/u"
	f.ok(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: user.Principal, Roles: []string{"user"}}}}})
	f.no(user, dv1.Error_FORBIDDEN, "HostConfig.Privileged")
}

// A run's slots own their names, before and after there are as many.
func TestSlotsOwnNames(t *testing.T) {
	f := current(t, "a", "b")
	const spec = `{"Image":"alpine"}`
	f.ok(create("taken-2", spec))
	f.no(each("taken", ""), dv1.Error_NAME_TAKEN, `would have a container be "/taken-2"`)
	f.no(each("taken-2", ""), dv1.Error_NAME_TAKEN, "already in use by container")
	f.ok(create("other-02", spec))
	f.ok(each("other", ""))
	f.no(each("other", "", func(c *dv1.CreateRun) { c.RunId = id("again") }), dv1.Error_NAME_TAKEN, "already in use by run other")
	f.no(create("other", spec), dv1.Error_NAME_TAKEN, "already in use by run other")
	f.no(create("other-3", spec), dv1.Error_NAME_TAKEN, "already in use by run other")
	f.no(&dv1.Command{Of: &dv1.Command_Rename{Rename: &dv1.Rename{TaskId: id("taken-2"), Name: "other-9"}}}, dv1.Error_NAME_TAKEN, "already in use by run other")
	for _, free := range []string{"other-", "other-x", "other-0", "another-1"} {
		f.ok(create(free, spec))
	}
	// Without a name, the first candidate that is free for all slots.
	r := f.ok(each("", "", func(c *dv1.CreateRun) { c.NameCandidates = []string{"taken", "other", "fresh"} }))
	if r.Name != "fresh" {
		t.Errorf("it is named %q", r.Name)
	}
	if r := f.ok(each("", "", func(c *dv1.CreateRun) { c.RunId = id("last") })); r.Name != fmt.Sprintf("%x", id("last")[:6]) {
		t.Errorf("without a candidate it is named %q", r.Name)
	}
}

// Started in the entry that makes them, tasks have their ports, or their node is told
// to have them taken.
func TestARunStartsWhereItCan(t *testing.T) {
	f := current(t, "a", "b", "c")
	const web = `"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}`
	f.ok(create("holder", `{"Image":"alpine","HostConfig":{`+web+`}}`, "node==b"))
	f.ok(start("holder"))
	r := f.ok(each("web", web, started))
	if got := placed(r); !slices.Equal(got, []string{"web-1@n0", "web-2@n2"}) {
		t.Errorf("it is on %v", got)
	}
	if got := rejected(r); !slices.Equal(got, []string{"1 have port 8080 taken"}) {
		t.Errorf("others are not chosen, for %v", got)
	}
	s := f.store.Snapshot()
	for _, p := range r.Placed {
		if x := s.Task(p.TaskId); x.Desired != dv1.Desired_RUNNING || x.Attempt != 1 || len(x.Ports) != 1 || x.Ports[0].Host != 8080 {
			t.Errorf("task %s is %v", p.Name, x)
		}
	}
	f.no(each("web2", web, started), dv1.Error_UNAVAILABLE, "0 of 3 nodes fit: 3 have port 8080 taken")
}

// A run of more nodes than an entry holds is a first entry and others, each from where
// the state says; what ended meanwhile is not made again.
func TestALargeRunIsFilledInFurtherEntries(t *testing.T) {
	const nodes = 900
	f := current(t)
	var all []*dv1.Effect
	for i := range nodes {
		all = append(all, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprintf("node-%08d", i), Name: fmt.Sprint("host-", i), Liveness: dv1.Node_READY, Availability: dv1.Node_ACTIVE}}})
	}
	f.entry(all...)
	r := f.ok(each("job", "", started, autoRemoved))
	first := len(r.Placed)
	if first == 0 || first >= nodes || int(r.Left) != nodes-first {
		t.Fatalf("the first entry made %d tasks and left %d", first, r.Left)
	}
	run := func() *dv1.Run { return f.store.Snapshot().Run(id("run-job")) }
	if !run().Filling || len(slices.Collect(f.store.Snapshot().RunsFilling())) != 1 {
		t.Errorf("the run is %v", run())
	}
	// All of the first entry's end and are removed: the run goes on.
	for _, p := range r.Placed {
		f.entry(&dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: p.TaskId}})
	}
	fill := &dv1.Command{Of: &dv1.Command_FillRun{FillRun: &dv1.FillRun{RunId: id("run-job")}}}
	got := first
	for n := 0; run().GetFilling(); n++ {
		effects, _ := Decide(state.NewTxn(f.store.Snapshot()), proto.CloneOf(fill), 1)
		size := 0
		for _, e := range effects {
			size += proto.Size(e)
		}
		if size > budget*2 || n > nodes {
			t.Fatalf("a part has %d bytes, after %d parts", size, n)
		}
		r := f.ok(fill)
		if r.Placed[0].NodeId != fmt.Sprintf("node-%08d", got) || r.Placed[0].Name != fmt.Sprint("job-", got+1) {
			t.Fatalf("behind %d tasks comes %v", got, r.Placed[0])
		}
		got += len(r.Placed)
	}
	if got != nodes || run().Count != nodes {
		t.Errorf("%d nodes got a task, the run says %d", got, run().Count)
	}
	if r := f.ok(fill); r.Changed {
		t.Error("a run that is complete was filled")
	}
}

// A run whose tasks were all gone before its last part found no node goes with it.
func TestARunThatFindsNoFurtherNodeEnds(t *testing.T) {
	f := current(t, "a")
	f.ok(each("job", ""))
	run := proto.CloneOf(f.store.Snapshot().Run(id("run-job")))
	run.Filling, run.Filled = true, "n0"
	f.entry(&dv1.Effect{Of: &dv1.Effect_Run{Run: run}})
	f.ok(&dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: state.TaskID(run.Id, 1, 1)}}})
	if f.store.Snapshot().Run(run.Id) == nil {
		t.Fatal("a run that wants tasks was deleted with its last one")
	}
	f.ok(&dv1.Command{Of: &dv1.Command_FillRun{FillRun: &dv1.FillRun{RunId: run.Id}}})
	if s := f.store.Snapshot(); s.Run(run.Id) != nil || s.Spec(run.SpecId) != nil {
		t.Errorf("there is %v, of %v", s.Run(run.Id), s.Spec(run.SpecId))
	}
}

// entry applies effects that no command decided.
func (f *fleet) entry(effects ...*dv1.Effect) {
	f.t.Helper()
	f.index++
	b, err := proto.Marshal(&dv1.Entry{Format: state.Format, Type: state.EntryEffects, Base: f.store.Snapshot().Index(), Time: 1, Effects: effects})
	if err == nil {
		_, err = f.store.Apply(f.index, b)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// What entries may hold is the least of what all controllers can apply, and never less
// than it was.
func TestTheLevelIsTheLeastOfAll(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a")
	level := func(want uint32) {
		t.Helper()
		if got := f.store.Snapshot().Level(); got != want {
			t.Errorf("the level is %d, want %d", got, want)
		}
	}
	level(1)
	f.no(each("early", ""), dv1.Error_UNAVAILABLE, "until all controllers know them")
	f.enter(&dv1.Controller{Id: "c1", Name: "c", Addr: "10.0.0.2:7443", Level: 1})
	f.level("n0", state.FeatureLevel)
	level(1) // c1 can't
	f.enter(&dv1.Controller{Id: "c2", Name: "d", Addr: "10.0.0.3:7443"})
	f.level("c1", state.FeatureLevel+5)
	level(1) // c2 has not said yet
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: "c2"}}})
	level(state.FeatureLevel)
	f.ok(each("late", ""))
	f.enter(&dv1.Controller{Id: "c3", Name: "e", Addr: "10.0.0.4:7443"})
	level(state.FeatureLevel)
	f.ok(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: "spiffe://fleet/controller/c3", Roles: []string{"controller"}}}}})
	f.no(putLevel("c3", 1), dv1.Error_CONFLICT, "install the version that the other controllers have")
}

// An attempt's lives need not be reported one by one.
func TestLivesThatAnAgentBeganAnew(t *testing.T) {
	const node, name = "n0", "web"
	exit := func(restarts, code int32) *dv1.Exit {
		return &dv1.Exit{Attempt: 1, Restarts: restarts, Code: code, Started: 3}
	}
	type report = dv1.TaskReport
	for what, c := range map[string]struct {
		reports  []*report
		live     bool
		restarts int32
		started  int64
		exit     *dv1.Exit
	}{
		"it ended and begins anew": {[]*report{{Started: 5}, {Restarts: 1, Exit: exit(0, 1)}}, true, 1, 0, exit(0, 1)},
		"it runs again":            {[]*report{{Started: 5}, {Restarts: 1, Exit: exit(0, 1)}, {Restarts: 1, Started: 9}}, true, 1, 9, exit(0, 1)},
		"several lives at once":    {[]*report{{Started: 5}, {Restarts: 4, Started: 20, Exit: exit(3, 7)}}, true, 4, 20, exit(3, 7)},
		"an older report":          {[]*report{{Restarts: 4, Started: 20, Exit: exit(3, 7)}, {Restarts: 2, Started: 8, Exit: exit(1, 1)}}, true, 4, 20, exit(3, 7)},
		"the last one's end":       {[]*report{{Restarts: 2, Started: 20}, {Restarts: 2, Exit: exit(2, 9)}}, false, 2, 20, exit(2, 9)},
		"all of it at once":        {[]*report{{Restarts: 2, Exit: exit(2, 9)}}, false, 2, 3, exit(2, 9)},
		"it can't be started anew": {[]*report{{Started: 5}, {Restarts: 1, Exit: exit(0, 1), Failed: "no such file"}}, false, 1, 0, exit(0, 1)},
		"after its end":            {[]*report{{Exit: exit(0, 1)}, {Restarts: 1, Started: 9}}, false, 0, 3, exit(0, 1)},
		"a life of no attempt":     {[]*report{{Attempt: 2, Restarts: 1, Started: 9}}, true, 0, 0, nil},
	} {
		f := newFleet(t, "10.210.0.0/16", "a")
		f.ok(create(name, `{"Image":"alpine"}`))
		f.ok(start(name))
		for _, r := range c.reports {
			r.TaskId, r.Attempt = id(name), max(1, r.Attempt)
			f.report(node, r)
		}
		got := f.store.Snapshot().Task(id(name))
		if state.Live(got) != c.live || got.Restarts != c.restarts || got.Started != c.started || !proto.Equal(got.Exit, c.exit) {
			t.Errorf("%s: live %v, %v", what, state.Live(got), got)
		}
		if want := map[bool]dv1.Desired{true: dv1.Desired_RUNNING, false: dv1.Desired_STOPPED}[c.live]; got.Desired != want {
			t.Errorf("%s: desired is %s", what, got.Desired)
		}
		if c.live {
			continue
		}
		f.ok(start(name)) // the next attempt begins without lives
		if got := f.store.Snapshot().Task(id(name)); got.Attempt != 2 || got.Restarts != 0 || !state.Live(got) {
			t.Errorf("%s: started, it is %v", what, got)
		}
	}
}

// In whatever order reports come, a task's life and its exit only go forward, and an
// exit of an earlier life never ends a later one.
func TestLivesOnlyGoForward(t *testing.T) {
	const node, name = "n0", "web"
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		f := newFleet(t, "10.210.0.0/16", "a")
		f.ok(create(name, `{"Image":"alpine"}`))
		f.ok(start(name))
		for range 40 {
			was := f.store.Snapshot().Task(id(name))
			if !state.Live(was) {
				f.ok(start(name))
				was = f.store.Snapshot().Task(id(name))
			}
			r := &dv1.TaskReport{TaskId: id(name), Attempt: 1 + rnd.Int32N(was.Attempt), Restarts: rnd.Int32N(5), Started: rnd.Int64N(2)}
			if rnd.IntN(2) == 0 {
				r.Exit = &dv1.Exit{Attempt: r.Attempt, Restarts: max(0, r.Restarts-rnd.Int32N(2))}
			}
			f.report(node, r)
			is := f.store.Snapshot().Task(id(name))
			if life.Of(is).Before(life.Of(was)) || life.Of(is.Exit).Before(life.Of(was.Exit)) {
				t.Fatalf("seed %d: %v made %v into %v", seed, r, was, is)
			}
			if ended := !state.Live(is); ended != (r.Exit != nil && !life.Of(r.Exit).Before(life.Of(is))) {
				t.Fatalf("seed %d: %v made %v into %v, ended: %v", seed, r, was, is, ended)
			}
		}
	}
}

func TestSlotNames(t *testing.T) {
	for name, want := range map[string]string{"web-1": "web 1", "a-b-12": "a-b 12", "web": " 0", "web-": " 0", "-1": " 0", "web-0": " 0", "web-01": " 0", "web-x": " 0", "web--1": "web- 1", "web-99999999999": " 0"} {
		run, slot := slotOf(name)
		if got := fmt.Sprint(run, " ", slot); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// A task that is being stopped has given its port up: started again, it takes it from
// nobody who has it by now.
func TestARestartTakesNobodysPort(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a")
	const web = `{"Image":"alpine","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}}`
	restart := &dv1.Command{Of: &dv1.Command_Restart{Restart: &dv1.Restart{TaskId: id("one")}}}
	for _, name := range []string{"one", "two"} {
		f.ok(create(name, web))
	}
	f.ok(start("one"))
	f.ok(restart) // its own it may have again
	f.ok(&dv1.Command{Of: &dv1.Command_Stop{Stop: &dv1.Stop{TaskId: id("one"), Timeout: -2}}})
	f.ok(start("two"))
	f.no(restart, dv1.Error_PORT_TAKEN, "port is already allocated")
}
