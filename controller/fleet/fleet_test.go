package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// others are the other controllers and this one's log, as a test wants them to be.
type others struct {
	*scripted

	mu         sync.Mutex // guards the fields below
	leads      bool
	known      bool
	changed    chan struct{}
	leaderless time.Duration // when the test began, 0: there was a leader
	seen       uint64
	answer     func(n int, q *dv1.Query) (*dv1.Digest, error) // n counts the questions
	asked      []time.Duration                                // when, since began
	began      time.Time
	waited     []uint64 // indexes
	watched    func(ctx context.Context, done func(*dv1.TaskView) bool) error
}

func newOthers() *others {
	return &others{scripted: newScripted(), changed: make(chan struct{}), began: time.Now(),
		answer: func(int, *dv1.Query) (*dv1.Digest, error) { return nil, ErrNoLeader }}
}

func (o *others) set(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
	close(o.changed)
	o.changed = make(chan struct{})
}

func (o *others) get(f func()) { o.mu.Lock(); defer o.mu.Unlock(); f() }

func (o *others) Leads() (b bool) { o.get(func() { b = o.leads }); return b }
func (o *others) Leader() (known bool, changed <-chan struct{}) {
	o.get(func() { known, changed = o.known || o.leads, o.changed })
	return known, changed
}
func (o *others) Leaderless() (d time.Duration) {
	o.get(func() {
		if o.leaderless > 0 {
			d = o.leaderless + time.Since(o.began)
		}
	})
	return d
}
func (o *others) Seen() (i uint64) { o.get(func() { i = o.seen }); return i }
func (o *others) Propose(context.Context, *dv1.Command) (*dv1.CommandResult, error) {
	return nil, ErrNoLeader
}

func (o *others) Query(_ context.Context, q *dv1.Query) (*dv1.Digest, error) {
	var n int
	var answer func(int, *dv1.Query) (*dv1.Digest, error)
	o.get(func() {
		n, answer = len(o.asked), o.answer
		o.asked = append(o.asked, time.Since(o.began))
	})
	return answer(n, q)
}

func (o *others) Watch(ctx context.Context, _ string, done func(*dv1.TaskView) bool) error {
	if o.watched == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return o.watched(ctx, done)
}

func (o *others) WaitIndex(ctx context.Context, index uint64) (*state.Snapshot, error) {
	o.get(func() { o.waited = append(o.waited, index) })
	return o.Snapshot(), ctx.Err()
}

func (o *others) Verify() (i uint64, err error) {
	if !o.Leads() {
		return 0, errors.New("it does not lead")
	}
	return 5, nil
}

func (o *others) fleet() *Fleet { return New(newLocal(o.scripted), o, o) }

func digest(index uint64, silent ...string) *dv1.Digest {
	d := &dv1.Digest{Index: index, Silent: map[string]int64{}, Tasks: map[string]*dv1.TaskStatus{}, Images: map[string]*dv1.Holders{}}
	for _, n := range silent {
		d.Silent[n] = 9
	}
	return d
}

// Which nodes are silent is asked once in a while; what a task does, each time.
func TestSilenceIsCachedAndStatusesAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOthers()
		f := o.fleet()
		o.answer = func(n int, _ *dv1.Query) (*dv1.Digest, error) { return digest(1, fmt.Sprint("n", n)), nil }
		observe := func(q Query, want string) {
			t.Helper()
			if got := f.Observe(t.Context(), q).SilentNodes(); !slices.Equal(got, []string{want}) {
				t.Errorf("after %v %v is silent, want %s", time.Since(o.began), got, want)
			}
		}
		observe(Query{}, "n0")
		time.Sleep(freshFor - 1) // virtual
		observe(Query{}, "n0")
		observe(Query{Tasks: []string{"a"}}, "n1")
		observe(Query{Images: []string{"d"}}, "n2")
		observe(Query{}, "n2") // which those answers said as well
		time.Sleep(freshFor)   // virtual
		observe(Query{}, "n3")
		o.answer = func(int, *dv1.Query) (*dv1.Digest, error) { return nil, ErrNoLeader }
		time.Sleep(time.Hour)  // virtual
		observe(Query{}, "n3") // without a leader, what was last known
	})
}

// A leader that is lost among several questions leaves what it answered, and makes
// nothing up for the rest. Its own answers are never mixed with what it is not asked.
func TestALeaderLostAmongQuestionsAnsweredSome(t *testing.T) {
	o := newOthers()
	f := o.fleet()
	var ids []string
	for i := range 2*maxAsked + 1 {
		ids = append(ids, fmt.Sprint(i))
	}
	var sizes []int
	o.answer = func(n int, q *dv1.Query) (*dv1.Digest, error) {
		if sizes = append(sizes, len(q.Tasks)); n == 1 {
			return nil, ErrNoLeader
		}
		d := digest(1, "n1")
		for _, id := range q.Tasks {
			d.Tasks[id] = &dv1.TaskStatus{Attempt: 1}
		}
		for _, i := range q.Images {
			d.Images[i] = &dv1.Holders{Nodes: []string{"n2"}}
		}
		return d, nil
	}
	got := f.Observe(t.Context(), Query{Tasks: ids, Images: []string{"d"}})
	if !slices.Equal(sizes, []int{maxAsked, maxAsked}) || len(got.Tasks) != maxAsked || got.Status(ids[0]) == nil || got.Status(ids[maxAsked]) != nil {
		t.Errorf("asked for %v, %d answered", sizes, len(got.Tasks))
	}
	if !slices.Equal(got.Holders("d"), []string{"n2"}) || !slices.Equal(got.SilentNodes(), []string{"n1"}) {
		t.Errorf("%v hold the image, %v are silent", got.Holders("d"), got.SilentNodes())
	}
	sizes = nil
	if got := f.Observe(t.Context(), Query{Tasks: ids}); !slices.Equal(sizes, []int{maxAsked, maxAsked, 1}) || len(got.Tasks) != len(ids) {
		t.Errorf("asked for %v, %d answered", sizes, len(got.Tasks))
	}
}

func TestALeaderObservesItself(t *testing.T) {
	o := newOthers()
	f := o.fleet()
	o.set(func() { o.leads = true })
	o.do(func() {
		o.silent, o.tasks["a"], o.holders = map[string]int64{"n1": 3}, &dv1.TaskStatus{Attempt: 4}, map[string][]string{"d": {"n1"}}
	})
	got := f.Observe(t.Context(), Query{Tasks: []string{"a", "b"}, Images: []string{"d", "e"}})
	if !maps.Equal(got.Silence, map[string]int64{"n1": 3}) || got.Status("a").GetAttempt() != 4 || got.Status("b") != nil || len(got.Holders("d")) != 1 || len(got.Holders("e")) > 0 || len(o.asked) > 0 {
		t.Errorf("%+v, after %d questions to others", got, len(o.asked))
	}
	if since, silent := got.Silent("n1"); since != 3 || !silent {
		t.Errorf("n1 is silent since %d: %v", since, silent)
	}
	var none *Observations
	if _, silent := none.Silent("n1"); silent || none.SilentNodes() != nil || none.Status("a") != nil || none.Holders("d") != nil {
		t.Error("without observations something was observed")
	}
}

// How long a state is waited for, where from, and what is said of it.
func TestFind(t *testing.T) {
	never := func(*state.Snapshot) bool { return false }
	leader := func(index uint64) func(int, *dv1.Query) (*dv1.Digest, error) {
		return func(int, *dv1.Query) (*dv1.Digest, error) { return digest(index), nil }
	}
	for name, c := range map[string]struct {
		set    func(o *others)
		least  uint64
		enough func(*state.Snapshot) bool
		within time.Duration // the caller's

		took   time.Duration
		fresh  bool
		waited uint64 // the index that was waited for
		asks   int
		err    error
	}{
		"it leads":                         {set: func(o *others) { o.leads = true }, fresh: true, waited: 5},
		"it leads, and more is demanded":   {set: func(o *others) { o.leads = true }, least: 8, fresh: true, waited: 8},
		"it leads, and more was seen here": {set: func(o *others) { o.leads, o.seen = true, 9 }, least: 8, fresh: true, waited: 9},
		"a leader answers":                 {set: func(o *others) { o.known, o.answer = true, leader(7) }, least: 3, enough: never, fresh: true, waited: 7, asks: 1},
		"a leader is behind what was seen": {set: func(o *others) { o.known, o.seen, o.answer = true, 9, leader(7) }, fresh: true, waited: 9, asks: 1},

		"no leader":                              {took: electionWait, asks: 1},
		"no leader for a while":                  {set: func(o *others) { o.leaderless = electionWait - 10*time.Millisecond }, took: 10 * time.Millisecond, asks: 1},
		"no leader for long":                     {set: func(o *others) { o.leaderless = time.Hour }, asks: 1},
		"no leader, and what is here won't do":   {enough: never, took: patience, asks: 1},
		"no leader, and what is here is too old": {least: 1, took: patience, asks: 1, err: ErrNoLeader},
		"no leader, and more was seen here":      {set: func(o *others) { o.seen, o.leaderless = 4, time.Hour }, asks: 1, err: ErrNoLeader},
		"a caller with less patience":            {enough: never, within: 3 * time.Second, took: 3 * time.Second, asks: 1, err: context.DeadlineExceeded},

		"a leader that does not answer": {set: func(o *others) { o.known = true }, took: electionWait, asks: int(electionWait / pause)},
		"a leader that answers late": {set: func(o *others) {
			o.known = true
			o.answer = func(n int, _ *dv1.Query) (*dv1.Digest, error) {
				if n < 3 {
					return nil, ErrNoLeader
				}
				return digest(7), nil
			}
		}, took: 3 * pause, fresh: true, waited: 7, asks: 4},
		"a leader is elected": {set: func(o *others) {
			time.AfterFunc(700*time.Millisecond, func() { o.set(func() { o.known, o.answer = true, leader(7) }) })
		}, took: 700 * time.Millisecond, fresh: true, waited: 7, asks: 2},
		"this one is elected": {set: func(o *others) {
			time.AfterFunc(4*time.Second, func() { o.set(func() { o.leads = true }) })
		}, enough: never, took: 4 * time.Second, fresh: true, waited: 5, asks: 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOthers()
				if c.set != nil {
					c.set(o)
				}
				ctx := t.Context()
				if c.within > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, c.within)
					defer cancel()
				}
				began := time.Now()
				snap, fresh, err := o.fleet().Find(ctx, c.least, c.enough)
				if took := time.Since(began); took != c.took || fresh != c.fresh || !errors.Is(err, c.err) || (snap == nil) != (err != nil) {
					t.Errorf("after %v: %v, fresh %v, %v", took, snap != nil, fresh, err)
				}
				var waited uint64
				if len(o.waited) > 0 {
					waited = o.waited[len(o.waited)-1]
				}
				if waited != c.waited || len(o.asked) < c.asks || len(o.asked) > c.asks+1 {
					t.Errorf("index %d was waited for, %d questions at %v", waited, len(o.asked), o.asked)
				}
			})
		})
	}
}

// CatchUp waits for a leader, has what it has, and never outlasts its caller.
func TestCatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			set    func(o *others)
			took   time.Duration
			waited []uint64
		}{
			"it leads":          {func(o *others) { o.leads = true }, 0, nil},
			"a leader answers":  {func(o *others) { o.answer = func(int, *dv1.Query) (*dv1.Digest, error) { return digest(7), nil } }, 0, []uint64{7}},
			"none is elected":   {func(*others) {}, time.Minute, nil},
			"one never answers": {func(o *others) { o.known = true }, time.Minute, nil},
			"one is elected": {func(o *others) {
				time.AfterFunc(time.Second, func() {
					o.set(func() { o.answer = func(int, *dv1.Query) (*dv1.Digest, error) { return digest(8), nil } })
				})
			}, time.Second, []uint64{8}},
			"this one is elected": {func(o *others) { time.AfterFunc(time.Second, func() { o.set(func() { o.leads = true }) }) }, time.Second, nil},
		} {
			o := newOthers()
			c.set(o)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			began := time.Now()
			o.fleet().CatchUp(ctx)
			cancel()
			if took := time.Since(began); took != c.took || !slices.Equal(o.waited, c.waited) {
				t.Errorf("%s: it took %v, and waited for %v", name, took, o.waited)
			}
		}
	})
}

// A wait sees the leader's view and what is committed here, one after the other, and
// ends with whichever is enough; no part of it outlives it.
func TestAWaitEndsWithTheFirstViewThatIsEnough(t *testing.T) {
	for name, c := range map[string]struct {
		leader *dv1.TaskView // what the leader says; nil: it hangs
		here   bool          // the task is committed here, too
		elect  bool          // this controller leads meanwhile
		took   time.Duration
		err    error
	}{
		"the leader says so":        {leader: &dv1.TaskView{Task: web(nil)}},
		"it is committed here":      {here: true, took: time.Second},
		"this one is elected first": {elect: true, here: true, took: time.Second},
		"nobody knows":              {took: time.Minute, err: context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOthers()
				f := o.fleet()
				var watched time.Duration // for how long the leader was asked
				o.watched = func(ctx context.Context, done func(*dv1.TaskView) bool) error {
					if c.leader != nil && done(c.leader) && done(c.leader) { // which it may say again
						return nil
					}
					<-ctx.Done()
					watched = time.Since(o.began)
					return ctx.Err()
				}
				if c.here {
					time.AfterFunc(time.Second, func() { o.commit(t, f.Local, put(web(nil))) })
				}
				if c.elect {
					time.AfterFunc(time.Second/2, func() { o.set(func() { o.leads = true }) })
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				began, ends := time.Now(), 0
				err := f.WaitTask(ctx, hexOf(1), func(task *dv1.Task, _ *dv1.TaskStatus) bool {
					if ends > 0 {
						t.Error("it is asked again after its end")
					}
					if task != nil {
						ends++
					}
					return task != nil
				})
				if took := time.Since(began); took != c.took || !errors.Is(err, c.err) {
					t.Errorf("after %v: %v", took, err)
				}
				if want := map[bool]time.Duration{true: c.took / 2, false: c.took}[c.elect]; watched != want {
					t.Errorf("the leader was asked for %v, want %v", watched, want)
				}
				if len(f.waiters) > 0 {
					t.Error("it is still subscribed")
				}
			})
		})
	}
	if err := newOthers().fleet().WaitTask(t.Context(), "no id", nil); err == nil {
		t.Error("what is no id is waited for")
	}
}

// Whatever changes a task, its events come once each, in order.
func TestEventsOfLivesThatAgentsBegin(t *testing.T) {
	s := newScripted()
	l := newLocal(s)
	at := func(attempt, restarts int32, exited bool) *dv1.Effect {
		return put(web(func(t *dv1.Task) {
			t.Attempt, t.Restarts, t.Started = attempt, restarts, 5
			if exited {
				t.Exit = &dv1.Exit{Attempt: attempt, Restarts: restarts, Code: restarts}
			}
		}))
	}
	s.commit(t, l, at(1, 0, false))
	s.commit(t, l, at(1, 0, false)) // again, as with another field's change
	s.commit(t, l, at(1, 0, true))
	s.commit(t, l, at(1, 1, true), at(1, 2, true))
	s.commit(t, l, at(1, 2, true))
	s.commit(t, l, at(2, 0, false))
	s.commit(t, l, drop(1), drop(1))
	got := kept(t, l)
	want := []string{"create web ", "start web ", "die web 0", "start web ", "die web 1", "start web ", "die web 2", "start web ", "destroy web "}
	if !slices.Equal(got, want) {
		t.Errorf("events are %q, not %q", got, want)
	}
}

// Past events are told from a moment on, and no reader stays behind.
func TestEventsSinceAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLocal(newScripted())
		for i := range 5 {
			l.Reported(&dv1.Event{Action: "top", TimeNano: int64(i + 1)})
		}
		for since, want := range map[int64][]int64{0: nil, 1: {1, 2, 3, 4, 5}, 4: {4, 5}, 6: nil, -1: {1, 2, 3, 4, 5}} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			ch := l.Events(ctx, since)
			var got []int64
			for e := range ch {
				got = append(got, e.TimeNano)
			}
			cancel()
			if !slices.Equal(got, want) {
				t.Errorf("since %d: %v, want %v", since, got, want)
			}
		}
		if len(l.events.subs) > 0 {
			t.Errorf("%d readers stay", len(l.events.subs))
		}
	})
}
