package fleet

import (
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// scripted is a log and what agents reported, as a test wants them to be.
type scripted struct {
	mu      sync.Mutex // guards the fields below
	snap    *state.Snapshot
	tasks   map[string]*dv1.TaskStatus
	holders map[string][]string
	silent  map[string]int64
}

func newScripted() *scripted {
	return &scripted{snap: state.NewStore().Snapshot(), tasks: map[string]*dv1.TaskStatus{}}
}

func (s *scripted) do(f func()) { s.mu.Lock(); defer s.mu.Unlock(); f() }

func (s *scripted) Snapshot() (snap *state.Snapshot) { s.do(func() { snap = s.snap }); return snap }
func (s *scripted) Observed(id string) (st *dv1.TaskStatus) {
	s.do(func() { st = s.tasks[id] })
	return st
}
func (s *scripted) Holders(d string) (nodes []string) {
	s.do(func() { nodes = s.holders[d] })
	return nodes
}
func (s *scripted) Silent() (m map[string]int64) { s.do(func() { m = s.silent }); return m }
func (s *scripted) Paused() int                  { return 0 }
func (s *scripted) Ended() iter.Seq[*dv1.TaskStatus] {
	var out []*dv1.TaskStatus
	s.do(func() {
		for _, st := range s.tasks {
			if st.Exit != nil {
				out = append(out, st)
			}
		}
	})
	return slices.Values(out)
}

// commit applies effects and tells l of them.
func (s *scripted) commit(t *testing.T, l *Local, effects ...*dv1.Effect) {
	t.Helper()
	txn := state.NewTxn(s.Snapshot())
	if err := txn.Apply(effects...); err != nil {
		t.Fatal(err)
	}
	s.do(func() { s.snap = txn.View() })
	l.Committed(effects, 7)
}

func newLocal(s *scripted) *Local { return NewLocal(LocalOptions{Log: s, Reports: s}) }

func taskID(n int) []byte { return fmt.Appendf(nil, "%032d", n) }

func hexOf(n int) string { return hex.EncodeToString(taskID(n)) }

func put(task *dv1.Task) *dv1.Effect { return &dv1.Effect{Of: &dv1.Effect_Task{Task: task}} }

func drop(n int) *dv1.Effect {
	return &dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: taskID(n)}}
}

func web(change func(*dv1.Task)) *dv1.Task {
	t := &dv1.Task{Id: taskID(1), Name: "web", NodeId: "n1"}
	if change != nil {
		change(t)
	}
	return t
}

// kept returns the events that l holds, as people would write them.
func kept(t *testing.T, l *Local) (out []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch := l.Events(ctx, 1)
	l.mu.Lock()
	n := len(l.events.ring)
	l.mu.Unlock()
	for range n {
		e := <-ch
		out = append(out, e.Action+" "+e.Attributes["name"]+" "+e.Attributes["exitCode"]+e.Attributes["oldName"])
	}
	return out
}

func TestEventsAreWhatCommitsChange(t *testing.T) {
	s := newScripted()
	l := newLocal(s)
	s.commit(t, l, put(web(nil)))
	s.commit(t, l, put(web(func(t *dv1.Task) { t.Attempt, t.Started = 1, 5 })))
	s.commit(t, l, put(web(func(t *dv1.Task) { t.Name, t.Attempt, t.Started = "site", 1, 5 })))
	exit := &dv1.Exit{Attempt: 1, Code: 3}
	s.commit(t, l, put(web(func(t *dv1.Task) { t.Name, t.Attempt, t.Started, t.Exit = "site", 1, 5, exit })))
	s.commit(t, l, put(web(func(t *dv1.Task) { t.Name, t.Attempt, t.Started, t.Exit = "site", 2, 9, exit })))
	s.commit(t, l, drop(1))
	s.commit(t, l, &dv1.Effect{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: "r", Digest: "d"}}}, &dv1.Effect{Of: &dv1.Effect_DeleteTag{DeleteTag: "r"}})
	l.Reported(&dv1.Event{Action: "exec_start", TimeNano: 9})
	l.Reported(&dv1.Event{Action: "start", TimeNano: 9}) // the log's own
	want := "create web |start web |rename site /web|die site 3|start site |destroy site |tag r |untag r |exec_start  "
	if got := strings.Join(kept(t, l), "|"); got != want {
		t.Errorf("events are\n%s\nnot\n%s", got, want)
	}
}

// Each life has its events, and the exit of an earlier one that comes late has none.
func TestLivesHaveTheirEvents(t *testing.T) {
	s := newScripted()
	l := newLocal(s)
	for _, v := range []*dv1.Task{
		{Attempt: 1, Started: 5},
		{Attempt: 1, Restarts: 3, Started: 7, Exit: &dv1.Exit{Attempt: 1, Restarts: 2, Code: 1}},
		{Attempt: 1, Restarts: 3, Started: 7, Exit: &dv1.Exit{Attempt: 1, Restarts: 3, Code: 2}},
		{Attempt: 2, Started: 9, Exit: &dv1.Exit{Attempt: 1, Restarts: 3, Code: 2}},
		{Attempt: 2, Started: 9, Exit: &dv1.Exit{Attempt: 2, Code: 4}},
		{Attempt: 2, Started: 9, Exit: &dv1.Exit{Attempt: 1, Restarts: 9, Code: 5}},
	} {
		s.commit(t, l, put(web(func(t *dv1.Task) { t.Attempt, t.Restarts, t.Started, t.Exit = v.Attempt, v.Restarts, v.Started, v.Exit })))
	}
	want := "create web |start web |start web |die web 1|die web 2|start web |die web 4"
	if got := strings.Join(kept(t, l), "|"); got != want {
		t.Errorf("events are\n%s\nnot\n%s", got, want)
	}
}

// The last exit of a task that is removed is that of its newest life, whether the log or
// its agent knows that one.
func TestTheEndOfARemovedTaskIsThatOfItsNewestLife(t *testing.T) {
	exit := func(restarts, code int32) *dv1.Exit {
		return &dv1.Exit{Attempt: 1, Restarts: restarts, Code: code, At: 9}
	}
	for what, c := range map[string]struct {
		log, agent, late *dv1.Exit // late is reported after the removal
		want             int32
		events           string // after the removal
	}{
		"the log knows it":             {log: exit(2, 7), agent: exit(1, 3), want: 7},
		"its agent knows it":           {log: exit(1, 3), agent: exit(2, 7), want: 7},
		"it ends after its removal":    {log: exit(1, 3), agent: exit(1, 3), late: exit(2, 137), want: 137, events: "die web 137"},
		"it is reported once more":     {log: exit(2, 7), agent: exit(2, 7), late: exit(2, 7), want: 7},
		"its agent knows nothing more": {log: exit(2, 7), want: 7},
	} {
		s := newScripted()
		l := newLocal(s)
		s.tasks[hexOf(1)] = &dv1.TaskStatus{Id: taskID(1), Attempt: 1, Restarts: 2, Exit: c.agent}
		s.commit(t, l, put(web(func(t *dv1.Task) { t.Attempt, t.Restarts, t.Started, t.Exit = 1, 2, 5, c.log })))
		s.commit(t, l, drop(1))
		before := len(kept(t, l))
		if c.late != nil {
			s.do(func() {
				s.tasks[hexOf(1)] = &dv1.TaskStatus{Id: taskID(1), Attempt: 1, Restarts: 2, Phase: dv1.Phase_EXITED, Exit: c.late}
			})
			l.StatusChanged(hexOf(1))
		}
		s.do(func() { delete(s.tasks, hexOf(1)) })
		if st := l.status(hexOf(1)); st.GetExit().GetCode() != c.want {
			t.Errorf("%s: it is known to have ended with %v", what, st.GetExit())
		}
		if got := strings.Join(kept(t, l)[before:], "|"); got != c.events {
			t.Errorf("%s: events %q, want %q", what, got, c.events)
		}
	}
}

// A snapshot that replaces entries creates no events, and wakes waiters.
func TestASeedMakesNoEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScripted()
		l := newLocal(s)
		waited := make(chan error)
		go func() {
			waited <- l.WaitTask(t.Context(), hexOf(1), func(task *dv1.Task, _ *dv1.TaskStatus) bool { return task != nil })
		}()
		synctest.Wait()
		txn := state.NewTxn(s.Snapshot())
		if err := txn.Apply(put(web(nil))); err != nil {
			t.Fatal(err)
		}
		s.do(func() { s.snap = txn.View() })
		l.Seed(s.Snapshot())
		if err := <-waited; err != nil {
			t.Error(err)
		}
		if got := kept(t, l); len(got) > 0 {
			t.Errorf("events of what was known: %v", got)
		}
		s.commit(t, l, put(web(func(t *dv1.Task) { t.Attempt, t.Started = 1, 5 })))
		if got := kept(t, l); len(got) != 1 || got[0] != "start web " {
			t.Errorf("events after it: %v", got)
		}
	})
}

func TestEventsAreBoundedInNumberAndBytes(t *testing.T) {
	s := newScripted()
	l := newLocal(s)
	for i := range MaxEvents + 10 {
		l.Reported(&dv1.Event{Action: "top", TimeNano: int64(i + 1), Attributes: map[string]string{"name": fmt.Sprint(i)}})
	}
	if got := kept(t, l); len(got) != MaxEvents || got[0] != "top 10 " {
		t.Errorf("%d are kept, from %q", len(got), got[0])
	}
	long := strings.Repeat("x", maxEventBytes/4)
	for range 9 {
		l.Reported(&dv1.Event{Action: "top", TimeNano: 1, Attributes: map[string]string{"name": long}})
	}
	if n := len(kept(t, l)); n > 4 || n == 0 || l.events.bytes > maxEventBytes {
		t.Errorf("%d long ones are kept, %d bytes", n, l.events.bytes)
	}
}

// Who reads slowly slows nobody down, and goes on with what is still kept.
func TestASlowReaderMissesTheOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLocal(newScripted())
		ctx, cancel := context.WithCancel(t.Context())
		ch := l.Events(ctx, 0)
		for i := range 3 * MaxEvents {
			l.Reported(&dv1.Event{Action: "top", TimeNano: int64(i)})
			if i == 0 {
				synctest.Wait() // the first is on its way, and nobody takes it
			}
		}
		first := (<-ch).TimeNano
		n, last := 1, first
		for last < 3*MaxEvents-1 {
			e := <-ch
			if e.TimeNano <= last {
				t.Fatalf("event %d came after %d", e.TimeNano, last)
			}
			n, last = n+1, e.TimeNano
		}
		if n > MaxEvents+1 {
			t.Errorf("%d events came, from %d on", n, first)
		}
		cancel()
		if _, open := <-ch; open {
			t.Error("the events go on after their reader's end")
		}
	})
}

// The exit of a removed task is known for a while, whoever reports it last.
func TestTheEndOfARemovedTaskIsKept(t *testing.T) {
	s := newScripted()
	l := newLocal(s)
	s.tasks[hexOf(1)] = &dv1.TaskStatus{Id: taskID(1), Attempt: 1, Phase: dv1.Phase_ACTIVE}
	s.commit(t, l, put(web(func(t *dv1.Task) { t.Attempt, t.Started = 1, 5 })))
	s.commit(t, l, drop(1))
	s.do(func() {
		s.tasks[hexOf(1)] = &dv1.TaskStatus{Id: taskID(1), Attempt: 1, Phase: dv1.Phase_EXITED, Exit: &dv1.Exit{Attempt: 1, Code: 137, At: 9}}
	})
	l.StatusChanged(hexOf(1)) // removed by force: no entry has this exit
	s.do(func() { delete(s.tasks, hexOf(1)) })
	if st := l.Observe(t.Context(), Query{Tasks: []string{hexOf(1)}}).Status(hexOf(1)); st.GetExit().GetCode() != 137 {
		t.Errorf("it is known to have ended with %v", st)
	}
	if got := kept(t, l); got[len(got)-1] != "die web 137" {
		t.Errorf("events: %v", got)
	}
	for n := 2; n < maxRemoved+12; n++ {
		s.commit(t, l, put(&dv1.Task{Id: taskID(n), Name: fmt.Sprint(n), Exit: &dv1.Exit{Code: 1}}), drop(n))
	}
	if l.status(hexOf(1)) != nil || len(l.removed.byID) != maxRemoved || len(l.removed.order) != maxRemoved {
		t.Errorf("%d ends are kept, in order %d", len(l.removed.byID), len(l.removed.order))
	}
	s.commit(t, l, put(&dv1.Task{Id: taskID(1), Name: strings.Repeat("x", maxRemovedBytes)}), drop(1))
	if len(l.removed.byID) != 1 || l.removed.byID[hexOf(1)].size != l.removed.bytes {
		t.Errorf("after a large one %d are kept, %d bytes", len(l.removed.byID), l.removed.bytes)
	}
}

func TestAnAutoRemovedTasksEndIsInTheLog(t *testing.T) {
	s := newScripted()
	l := newLocal(s)
	s.commit(t, l, &dv1.Effect{Of: &dv1.Effect_Ended{Ended: web(func(t *dv1.Task) { t.Attempt, t.Exit = 1, &dv1.Exit{Attempt: 1, Code: 4} })}})
	if st := l.status(hexOf(1)); st.GetExit().GetCode() != 4 {
		t.Errorf("it is known to have ended with %v", st)
	}
	if st := l.status("no hex"); st != nil {
		t.Errorf("what is no id has the status %v", st)
	}
}

// What ended is asked for without naming tasks: the log knows of the others.
func TestOnlyWhoseEndTheLogLacksIsObservedAsEnded(t *testing.T) {
	s := newScripted()
	l := newLocal(s)
	exit := &dv1.Exit{Attempt: 2}
	for n, task := range []*dv1.Task{{Attempt: 2}, {Attempt: 2, Exit: exit}, {Attempt: 3}, {Attempt: 2}} {
		task.Id, task.Name = taskID(n), fmt.Sprint(n)
		s.commit(t, l, &dv1.Effect{Of: &dv1.Effect_Task{Task: task}})
	}
	s.do(func() {
		for n := range 5 { // the last of which is removed
			s.tasks[hexOf(n)] = &dv1.TaskStatus{Id: taskID(n), Attempt: 2, Exit: exit}
		}
		s.tasks[hexOf(3)].Exit = nil
	})
	got := slices.Sorted(maps.Keys(l.Observe(t.Context(), Query{Ended: true}).Tasks))
	if !slices.Equal(got, []string{hexOf(0)}) {
		t.Errorf("ended are %v", got)
	}
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLocal(newScripted())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.WaitTask(ctx, hexOf(1), func(*dv1.Task, *dv1.TaskStatus) bool { return false }); err != context.DeadlineExceeded {
			t.Error(err)
		}
		if len(l.waiters) > 0 {
			t.Error("who no longer waits is still told")
		}
		if err := l.WaitTask(ctx, "no hex", nil); err == nil {
			t.Error("what is no id is waited for")
		}
	})
}
