package peer

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"iter"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// follows is the URI of the controller that asks leaders.
const follows = "spiffe://fleet/controller/c1"

// reports are what agents reported to a controller.
type reports struct {
	mu      sync.Mutex // guards the fields below
	tasks   map[string]*dv1.TaskStatus
	holders map[string][]string
	silent  map[string]int64
}

func (r *reports) do(f func()) { r.mu.Lock(); defer r.mu.Unlock(); f() }

func (r *reports) Observed(id string) (st *dv1.TaskStatus) {
	r.do(func() { st = r.tasks[id] })
	return st
}
func (r *reports) Holders(d string) (nodes []string) {
	r.do(func() { nodes = slices.Clone(r.holders[d]) })
	return nodes
}
func (r *reports) Silent() (m map[string]int64) {
	r.do(func() { m = maps.Clone(r.silent) })
	return m
}
func (r *reports) Paused() int { return 0 }
func (r *reports) Ended() iter.Seq[*dv1.TaskStatus] {
	var out []*dv1.TaskStatus
	r.do(func() {
		for _, st := range r.tasks {
			if st.Exit != nil {
				out = append(out, st)
			}
		}
	})
	return slices.Values(out)
}

// leader is a controller that leads, served over HTTP/2.
type leader struct {
	m       *member
	reports *reports
	view    *fleet.Local
	srv     *httptest.Server
}

func newLeader(t *testing.T) *leader {
	t.Helper()
	l := &leader{m: newMember(), reports: &reports{tasks: map[string]*dv1.TaskStatus{}, holders: map[string][]string{}, silent: map[string]int64{}}}
	l.m.leads("me")
	l.m.apply(append(web(), &dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: follows, Roles: []string{pki.KindController}}}})...)
	l.view = fleet.NewLocal(fleet.LocalOptions{Log: l.m, Reports: l.reports})
	l.srv = httptest.NewUnstartedServer(as(follows, follower(t, l.m).Controllers(l.view, nil)))
	l.srv.EnableHTTP2 = true
	l.srv.StartTLS()
	t.Cleanup(l.srv.Close)
	return l
}

// hears has the leader's agents report a task's status.
func (l *leader) hears(st *dv1.TaskStatus) {
	id := hex.EncodeToString(st.Id)
	l.reports.do(func() { l.reports.tasks[id] = st })
	l.view.StatusChanged(id)
}

// pair is a follower of some leaders, by name, of which it knows none yet.
func pair(t *testing.T, leaders map[string]*leader) (*member, *fleet.Fleet) {
	t.Helper()
	m := newMember()
	m.addrs = map[string]string{}
	for name, l := range leaders {
		m.addrs[name] = l.srv.Listener.Addr().String()
	}
	return m, follower(t, m).fleet
}

var webID = bytes.Repeat([]byte{7}, 32)

func TestAFollowerObservesWhatItsLeaderHeard(t *testing.T) {
	one, two := newLeader(t), newLeader(t)
	m, f := pair(t, map[string]*leader{"one": one, "two": two})
	id := hex.EncodeToString(webID)
	one.hears(&dv1.TaskStatus{Id: webID, Attempt: 1})
	one.reports.do(func() {
		one.reports.silent["n2"] = 5
		one.reports.holders["sha256:a"] = []string{"n1", "n3"}
	})
	two.hears(&dv1.TaskStatus{Id: webID, Attempt: 2})
	q := fleet.Query{Tasks: []string{"nothing", id}, Images: []string{"sha256:a", "sha256:b"}}

	if o := f.Observe(t.Context(), q); o.Status(id) != nil || len(o.SilentNodes()) > 0 {
		t.Errorf("before there was a leader: %+v", o)
	}
	m.leads("one")
	o := f.Observe(t.Context(), q)
	if o.Status(id).GetAttempt() != 1 || o.Status("nothing") != nil || !slices.Equal(o.SilentNodes(), []string{"n2"}) ||
		!slices.Equal(o.Holders("sha256:a"), []string{"n1", "n3"}) || len(o.Holders("sha256:b")) > 0 {
		t.Errorf("with a leader: %+v", o)
	}
	one.hears(&dv1.TaskStatus{Id: webID, Attempt: 3, Exit: &dv1.Exit{Attempt: 3}})
	one.m.apply(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: webID, NodeId: "n1", Name: "web", Attempt: 3, Started: 1}}})
	if o := f.Observe(t.Context(), fleet.Query{Ended: true}); o.Status(id).GetExit() == nil {
		t.Errorf("of an end that the log lacks: %+v", o)
	}
	many := slices.Repeat([]string{"nothing"}, 5000) // more than one question holds
	if o := f.Observe(t.Context(), fleet.Query{Tasks: append(many, id)}); o.Status(id) == nil {
		t.Error("the last of many tasks was not asked for")
	}
	m.leads("") // who is silent is remembered; what a task does is not made up
	if o := f.Observe(t.Context(), q); o.Status(id) != nil || !slices.Equal(o.SilentNodes(), []string{"n2"}) {
		t.Errorf("after the leader was lost: %+v", o)
	}
	m.leads("two")
	if o := f.Observe(t.Context(), q); o.Status(id).GetAttempt() != 2 || len(o.SilentNodes()) > 0 {
		t.Errorf("with the next one: %+v", o)
	}
	two.m.leads("other") // it doesn't lead any more, and says so
	if o := f.Observe(t.Context(), q); o.Status(id) != nil {
		t.Errorf("of one that was deposed: %+v", o)
	}
}

// A wait that began under one leader ends with what another one hears.
func TestAWaitGoesOnWithTheNextLeader(t *testing.T) {
	for name, lose := range map[string]func(m *member, one *leader){
		"it dies": func(m *member, one *leader) {
			m.leads("")
			one.srv.CloseClientConnections()
			m.leads("two")
		},
		"it hangs": func(m *member, _ *leader) { m.leads("two") },
		"it is deposed, which its follower learns late": func(m *member, one *leader) {
			one.m.leads("two")
			m.leads("two")
		},
	} {
		t.Run(name, func(t *testing.T) {
			one, two := newLeader(t), newLeader(t)
			one.hears(&dv1.TaskStatus{Id: webID, Attempt: 2})
			m, f := pair(t, map[string]*leader{"one": one, "two": two})
			m.leads("one")
			lost := false
			err := f.WaitTask(t.Context(), hex.EncodeToString(webID), func(_ *dv1.Task, st *dv1.TaskStatus) bool {
				if st.GetAttempt() == 2 && !lost { // it follows the first leader
					lost = true
					lose(m, one)
					two.hears(&dv1.TaskStatus{Id: webID, Attempt: 2, Exit: &dv1.Exit{Attempt: 2, Code: 9}})
				}
				return st.GetExit().GetCode() == 9
			})
			if err != nil || !lost {
				t.Errorf("the wait ended: %v, under the first leader: %v", err, !lost)
			}
		})
	}
}

func TestAWaitEndsAtAFollowerThatBecomesTheLeader(t *testing.T) {
	one := newLeader(t)
	one.hears(&dv1.TaskStatus{Id: webID, Attempt: 2})
	m, f := pair(t, map[string]*leader{"one": one})
	m.apply(web()...)
	m.leads("one")
	lost := make(chan struct{})
	var elected sync.WaitGroup
	elected.Go(func() {
		<-lost
		gone := []*dv1.Effect{{Of: &dv1.Effect_DeleteTask{DeleteTask: webID}}}
		m.catchUp("me", gone...)
		f.Committed(gone, 1)
	})
	var once sync.Once
	err := f.WaitTask(t.Context(), hex.EncodeToString(webID), func(task *dv1.Task, st *dv1.TaskStatus) bool {
		if st.GetAttempt() == 2 {
			once.Do(func() { close(lost) })
		}
		return task == nil
	})
	elected.Wait()
	if err != nil {
		t.Error(err)
	}
	if err := f.WaitTask(t.Context(), "no id", func(*dv1.Task, *dv1.TaskStatus) bool { return false }); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("a wait for nothing: %v", err)
	}
}

func TestAStateSaysWhetherALeaderWasAsked(t *testing.T) {
	one := newLeader(t)
	m, f := pair(t, map[string]*leader{"one": one})
	m.leads("one")
	if _, fresh, err := f.Find(t.Context(), 0, nil); !fresh || err != nil {
		t.Errorf("with a leader: fresh %v, %v", fresh, err)
	}
	synctest.Test(t, func(t *testing.T) {
		f := follower(t, newMember()).fleet
		for _, c := range []struct {
			least  uint64
			enough func(*state.Snapshot) bool
			took   time.Duration
			err    error
		}{
			{0, nil, time.Second, nil},
			{0, func(*state.Snapshot) bool { return false }, patience - time.Second, nil}, // the rest of it
			{0, nil, 0, nil},
			{99, nil, 0, fleet.ErrNoLeader},
		} {
			began := time.Now()
			snap, fresh, err := f.Find(t.Context(), c.least, c.enough)
			if took := time.Since(began); took != c.took || fresh || !errors.Is(err, c.err) || (snap == nil) != (c.err != nil) {
				t.Errorf("at least %d: fresh %v after %v, %v", c.least, fresh, took, err)
			}
		}
	})
}

// Who waits for a leader is woken when there is one, and looks for none meanwhile.
func TestNobodyPollsForALeader(t *testing.T) {
	for name, wait := range map[string]func(ctx context.Context, c *controller){
		"a state":  func(ctx context.Context, c *controller) { _, _, _ = c.fleet.Find(ctx, 99, nil) },
		"a change": func(ctx context.Context, c *controller) { _, _ = c.Propose(ctx, &dv1.Command{}) },
		"a watch": func(ctx context.Context, c *controller) {
			_ = c.Watch(ctx, "x", func(*dv1.TaskView) bool { return true })
		},
		"a catch-up": func(ctx context.Context, c *controller) { c.fleet.CatchUp(ctx) },
		"a wait for a task": func(ctx context.Context, c *controller) {
			_ = c.fleet.WaitTask(ctx, hex.EncodeToString(webID), func(*dv1.Task, *dv1.TaskStatus) bool { return false })
		},
		"a request": func(ctx context.Context, c *controller) {
			h := as(caller, c.API(docker{http.NotFoundHandler()}))
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "POST", "/containers/web/start", nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMember()
				c := follower(t, m)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				defer cancel()
				began, before := time.Now(), m.looks()
				wait(ctx, c)
				if looks, took := m.looks()-before, time.Since(began); took != 3*time.Second || looks > 30 {
					t.Errorf("%d looks for a leader within %v", looks, took)
				}
			})
		})
	}
}
