package task_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/task/faketask"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// box keeps what the reconciler reports.
type box struct {
	mu      sync.Mutex
	changed chan struct{}
	last    map[string]*dv1.TaskStatus
	removed []string
	left    []string
	acked   uint64
}

func (b *box) note(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	close(b.changed)
	b.changed = make(chan struct{})
}
func (b *box) Status(s *dv1.TaskStatus) { b.note(func() { b.last[string(s.Id)] = s }) }
func (b *box) Ack(i uint64)             { b.note(func() { b.acked = i }) }
func (b *box) Left(task, network []byte) {
	b.note(func() { b.left = append(b.left, string(task[:1])+string(network[:1])) })
}
func (b *box) Removed(id []byte) { b.note(func() { b.removed = append(b.removed, string(id)) }) }

type node struct {
	*task.Reconciler
	*box
	t      *testing.T
	engine *faketask.Engine
	store  *task.Store
	stop   func()
}

// open starts a reconciler on an engine and a store, as a restarted agent does.
func open(t *testing.T, e *faketask.Engine, path string) *node {
	t.Helper()
	store, err := task.OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, engine: e, store: store, box: &box{changed: make(chan struct{}), last: map[string]*dv1.TaskStatus{}}}
	n.Reconciler = task.New(task.Options{Runtime: e, Images: e.Images, Store: store, Reporter: n.box, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = n.Run(ctx) }()
	n.stop = sync.OnceFunc(func() { cancel(); <-done; _ = store.Close() })
	t.Cleanup(n.stop)
	<-n.Ready()
	return n
}

func begin(t *testing.T) (*node, string) {
	t.Helper()
	e := faketask.New()
	e.Images.Add("sha256:busybox")
	t.Cleanup(e.Close)
	path := filepath.Join(t.TempDir(), "tasks.db")
	return open(t, e, path), path
}

func hexID(c byte) string { return hex.EncodeToString(id(c)) }

func id(c byte) []byte { return []byte(strings.Repeat(string(c), 32)) }

func assigned(c byte, desired dv1.Desired, attempt int32, cmd string) *dv1.Assignment {
	return &dv1.Assignment{Task: &dv1.Task{Id: id(c), RunId: id('r'), SpecId: id('s'), Name: string(c), Desired: desired, Attempt: attempt, StopTimeout: 1},
		Spec: &dv1.Spec{Id: id('s'), Image: "busybox", Digest: "sha256:busybox", Body: []byte(`{"Image":"busybox","Cmd":[` + cmd + `]}`)}}
}

func (n *node) take(y *dv1.Sync) error { return n.Take(context.Background(), y) }

func (n *node) must(y *dv1.Sync) {
	n.t.Helper()
	if err := n.take(y); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) until(what string, ok func(b *box) bool) {
	n.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		n.mu.Lock()
		done, ch := ok(n.box), n.changed
		n.mu.Unlock()
		if done {
			return
		}
		select {
		case <-ch:
		case <-limit:
			n.t.Fatalf("never: %s; statuses %v, steps %v", what, n.last, n.engine.Calls())
		}
	}
}

func (n *node) phase(c byte, attempt int32, p dv1.Phase) {
	n.t.Helper()
	n.until(p.String(), func(b *box) bool {
		s := b.last[string(id(c))]
		return s.GetAttempt() == attempt && s.GetPhase() == p
	})
}

func (n *node) did(what string) int {
	k := 0
	for _, c := range n.engine.Calls() {
		if strings.HasPrefix(c, what) {
			k++
		}
	}
	return k
}

// Rule 1: what a full sync leaves out is an orphan, shown and never killed.
func TestAbsenceRemovesNothing(t *testing.T) {
	n, path := begin(t)
	n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 5, Full: true, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_RUNNING, 1, `"sleep","100"`)}})
	n.phase('a', 1, dv1.Phase_ACTIVE)
	n.must(&dv1.Sync{Epoch: 1, Term: 2, Index: 6, Full: true})
	n.until("an orphan", func(b *box) bool { return b.last[string(id('a'))].GetOrphan() })
	n.stop()
	again := open(t, n.engine, path)
	again.phase('a', 1, dv1.Phase_ACTIVE)
	if k := again.did("remove") + again.did("signal"); k != 0 {
		t.Fatalf("an orphan was touched: %v", again.engine.Calls())
	}
	// A tombstone removes it, and is acknowledged only once that is done.
	again.must(&dv1.Sync{Epoch: 1, Term: 2, Index: 7, Tombstones: []*dv1.Tombstone{{TaskId: id('a'), Force: true}}})
	again.until("removed", func(b *box) bool { return slices.Contains(b.removed, string(id('a'))) })
	if found, err := again.engine.List(context.Background()); err != nil || len(found) != 0 {
		t.Fatalf("the engine still holds %v (%v)", found, err)
	}
}

// Rule 1: a sync older than the highest (epoch, term, index) changes nothing,
// also after a restart of the agent.
func TestAnOlderSyncIsRefused(t *testing.T) {
	n, path := begin(t)
	n.must(&dv1.Sync{Epoch: 2, Term: 3, Index: 10, Full: true, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_RUNNING, 1, `"sleep","100"`)}})
	n.phase('a', 1, dv1.Phase_ACTIVE)
	for _, restarted := range []bool{false, true} {
		if restarted {
			n.stop()
			n = open(t, n.engine, path)
		}
		for _, old := range []*dv1.Sync{{Epoch: 2, Term: 3, Index: 9}, {Epoch: 2, Term: 2, Index: 11}, {Epoch: 1, Term: 9, Index: 99}} {
			old.Tombstones = []*dv1.Tombstone{{TaskId: id('a'), Force: true}}
			if err := n.take(old); !errors.Is(err, task.ErrStale) {
				t.Fatalf("a sync of epoch %d, term %d, index %d: %v", old.Epoch, old.Term, old.Index, err)
			}
		}
	}
	n.phase('a', 1, dv1.Phase_ACTIVE)
	if n.did("remove") != 0 {
		t.Fatalf("a stale tombstone removed: %v", n.engine.Calls())
	}
}

// Rule 9: a restarted agent continues from its store without a controller: it adopts what
// runs, starts what should run, and does not run again what ended.
func TestAStartNeedsNobody(t *testing.T) {
	n, path := begin(t)
	blocked, entered := make(chan struct{}), make(chan struct{}, 9)
	n.engine.Hook(func(_ context.Context, call, of string) error {
		if call == "start" && strings.HasPrefix(of, "63") { // 'c'
			select {
			case entered <- struct{}{}:
			default:
			}
			<-blocked
			return errors.New("the agent died")
		}
		return nil
	})
	n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 5, Full: true, Tasks: []*dv1.Assignment{
		assigned('a', dv1.Desired_RUNNING, 1, `"sleep","100"`), assigned('b', dv1.Desired_RUNNING, 1, `"sh","-c","exit 3"`), assigned('c', dv1.Desired_RUNNING, 1, `"sleep","100"`)}})
	n.phase('a', 1, dv1.Phase_ACTIVE)
	n.phase('b', 1, dv1.Phase_EXITED)
	<-entered
	close(blocked)
	n.stop()
	n.engine.Hook(nil)
	starts := n.did("start 62")
	again := open(t, n.engine, path)
	again.phase('a', 1, dv1.Phase_ACTIVE)
	again.phase('c', 1, dv1.Phase_ACTIVE)
	again.phase('b', 1, dv1.Phase_EXITED)
	if s := again.last[string(id('b'))]; s.Exit.GetCode() != 3 {
		t.Fatalf("b ended with %v", s.Exit)
	}
	if k := again.did("start 62"); k != starts {
		t.Fatalf("an attempt that had ended ran again: %v", again.engine.Calls())
	}
}

// A stop sends the stop signal first, and kills after the container's timeout.
func TestStopKillsWhatDoesNotListen(t *testing.T) {
	n, _ := begin(t)
	n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 5, Full: true, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_RUNNING, 1, `"sleep","100"`), assigned('b', dv1.Desired_RUNNING, 1, `"trap","7"`)}})
	n.phase('a', 1, dv1.Phase_ACTIVE)
	n.phase('b', 1, dv1.Phase_ACTIVE)
	n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 6, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_STOPPED, 1, `"sleep","100"`), assigned('b', dv1.Desired_STOPPED, 1, `"trap","7"`)}})
	n.phase('a', 1, dv1.Phase_EXITED)
	n.phase('b', 1, dv1.Phase_EXITED)
	if a, b := n.last[string(id('a'))].Exit.GetCode(), n.last[string(id('b'))].Exit.GetCode(); a != 137 || b != 7 {
		t.Fatalf("the deaf one ended with %d, the polite one with %d", a, b)
	}
}

// A task that is removed or stopped while its image is pulled is not started, and its
// pull ends.
func TestWhatIsNotWantedAnyMoreIsNotStartedAfterItsPull(t *testing.T) {
	gone := &dv1.Sync{Epoch: 1, Term: 1, Index: 6, Tombstones: []*dv1.Tombstone{{TaskId: id('a'), Force: true}}}
	for name, c := range map[string]struct {
		then  *dv1.Sync
		whole bool // the image came all the same
		ends  func(n *node)
	}{
		"removed":                     {gone, false, (*node).removedA},
		"removed, and the image came": {gone, true, (*node).removedA},
		"stopped": {&dv1.Sync{Epoch: 1, Term: 1, Index: 6, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_STOPPED, 1, `"true"`)}}, false,
			func(n *node) { n.phase('a', 1, dv1.Phase_FAILED) }},
	} {
		t.Run(name, func(t *testing.T) {
			e := faketask.New()
			e.Images.AddRemote("sha256:busybox")
			t.Cleanup(e.Close)
			n := open(t, e, filepath.Join(t.TempDir(), "tasks.db"))
			taken := make(chan struct{})
			e.Hook(func(ctx context.Context, call, _ string) error {
				if call != "pull" {
					return nil
				}
				if c.whole {
					<-taken
					return nil
				}
				<-ctx.Done()
				return ctx.Err()
			})
			n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 5, Full: true, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_RUNNING, 1, `"true"`)}})
			n.phase('a', 1, dv1.Phase_PULLING)
			n.must(c.then)
			close(taken)
			c.ends(n)
			if k := n.did("start"); k != 0 {
				t.Fatalf("it was started: %v", e.Calls())
			}
		})
	}
}

func (n *node) removedA() {
	n.t.Helper()
	n.until("a is removed", func(b *box) bool { return slices.Contains(b.removed, string(id('a'))) })
}

// An engine that failed only after a long silence, or after a long pull, has as much time
// to come back as any.
func TestAStartIsTriedAgainHoweverLongTheFirstTryTook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _ := begin(t)
		tries := 0
		n.engine.Hook(func(_ context.Context, call, _ string) error {
			if call != "start" {
				return nil
			}
			if tries++; tries > 1 {
				return nil
			}
			time.Sleep(16 * time.Second) // more than a start is tried for
			return errors.New("the engine is away")
		})
		n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 5, Full: true, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_RUNNING, 1, `"true"`)}})
		n.phase('a', 1, dv1.Phase_EXITED)
	})
}

// What docker refuses is said in its words alone, in a preparation and in a start.
func TestARefusalIsDockersWords(t *testing.T) {
	for name, a := range map[string]*dv1.Assignment{"prepare": assigned('a', dv1.Desired_CREATED, 0, `"true"`), "start": assigned('a', dv1.Desired_RUNNING, 1, `"true"`)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, _ := begin(t)
				n.engine.Hook(func(_ context.Context, call, _ string) error {
					if call == name {
						return fmt.Errorf("preparing it: %w", task.Refuse("bind source path does not exist"))
					}
					return nil
				})
				n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 5, Full: true, Tasks: []*dv1.Assignment{a}})
				n.phase('a', a.Task.Attempt, dv1.Phase_FAILED)
				if why := n.Statuses()[0].Why; why != "bind source path does not exist" {
					t.Errorf("it says %q", why)
				}
			})
		})
	}
}

// While the engine is away, a container that is to be prepared is neither ready nor failed:
// both would let in those who wait to attach. A start is not held up by that.
func TestAPreparationWaitsForTheEngine(t *testing.T) {
	for name, c := range map[string]struct {
		away  time.Duration
		start bool
		want  dv1.Phase
	}{
		"it comes back":         {5 * time.Second, false, dv1.Phase_READY},
		"it stays away":         {time.Hour, false, dv1.Phase_FAILED},
		"a start comes between": {5 * time.Second, true, dv1.Phase_EXITED},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, _ := begin(t)
				began := time.Now()
				n.engine.Hook(func(_ context.Context, call, _ string) error {
					if call == "prepare" && time.Since(began) < c.away {
						return errors.New("the engine is away")
					}
					return nil
				})
				n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 5, Full: true, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_CREATED, 0, `"true"`)}})
				time.Sleep(4 * time.Second)
				synctest.Wait()
				if s := n.Statuses(); len(s) != 1 || s[0].Phase != dv1.Phase_PENDING {
					t.Fatalf("it is %v", s)
				}
				attempt := int32(0)
				if c.start {
					tries := n.did("prepare")
					attempt = 1
					n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 6, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_RUNNING, 1, `"true"`)}})
					synctest.Wait()
					if n.did("prepare") == tries {
						t.Error("a start waits for the next try")
					}
				}
				n.phase('a', attempt, c.want)
				if c.away == time.Hour && time.Since(began) > 20*time.Second {
					t.Errorf("it was given up after %v", time.Since(began))
				}
			})
		})
	}
}

// The exit of a container that filled the disk can't be recorded by its shim, so the
// container is not released. Removing it frees the space.
func TestWhatCannotBeReleasedCanBeRemoved(t *testing.T) {
	for name, c := range map[string]struct{ autoRemove, force bool }{
		"docker rm":                  {false, false},
		"docker run --rm, unread":    {true, false},
		"docker rm -f of a run --rm": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, _ := begin(t)
				n.engine.Hook(func(_ context.Context, call, _ string) error {
					if call == "release" {
						return errors.New("its shim has not recorded its exit yet")
					}
					return nil
				})
				a := assigned('a', dv1.Desired_RUNNING, 1, `"true"`)
				a.Task.AutoRemove = c.autoRemove
				n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 5, Full: true, Tasks: []*dv1.Assignment{a}})
				n.phase('a', 1, dv1.Phase_EXITED)
				synctest.Wait() // it is being released
				n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 6, Tombstones: []*dv1.Tombstone{{TaskId: id('a'), Force: c.force}}})
				time.Sleep(time.Minute) // more than logs are kept for
				synctest.Wait()
				if !n.gone('a') {
					t.Fatalf("it is still there: %v", n.engine.Calls())
				}
			})
		})
	}
}

func (n *node) gone(c byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.removed, string(id(c)))
}

// An attempt that follows one that ran keeps its place in the network; what nothing
// follows gives it up.
func TestARestartReleasesNothing(t *testing.T) {
	n, _ := begin(t)
	at := func() string {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.last[string(id('a'))].GetIp()
	}
	n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 1, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_RUNNING, 1, `"sleep","1000"`)}})
	n.phase('a', 1, dv1.Phase_ACTIVE)
	was := at()
	n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 2, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_RUNNING, 2, `"sleep","1000"`)}})
	n.phase('a', 2, dv1.Phase_ACTIVE)
	if k := n.did("release"); k != 0 || at() != was {
		t.Errorf("released %d times: %v; it is at %s, was at %s", k, n.engine.Calls(), at(), was)
	}
	n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 3, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_STOPPED, 2, `"sleep","1000"`)}})
	n.phase('a', 2, dv1.Phase_EXITED)
	n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 4, Tombstones: []*dv1.Tombstone{{TaskId: id('a')}}})
	n.removedA()
	if k := n.did("release"); k != 1 {
		t.Errorf("released %d times: %v", k, n.engine.Calls())
	}
}

// A later attempt of the same task keeps its id and counts on.
func TestTheNextAttemptIsTheSameTask(t *testing.T) {
	n, _ := begin(t)
	for k := int32(1); k <= 3; k++ {
		n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: uint64(k), Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_RUNNING, k, `"true"`)}})
		n.phase('a', k, dv1.Phase_EXITED)
	}
	if k := n.did("prepare"); k != 1 {
		t.Fatalf("prepared %d times: %v", k, n.engine.Calls())
	}
}

// A restarted agent finds the life that its engine has, and reports all of it: its
// count of restarts, also along with the exit. A later attempt begins without any.
func TestALifeIsReportedWithItsCountOfRestarts(t *testing.T) {
	n, path := begin(t)
	a := assigned('a', dv1.Desired_RUNNING, 1, `"sleep","1000"`)
	n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 1, Tasks: []*dv1.Assignment{a}})
	n.phase('a', 1, dv1.Phase_ACTIVE)
	n.stop()
	if err := n.engine.Signal(t.Context(), hexID('a'), "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	l := life.Life{Attempt: 1, Restarts: 2}
	if _, err := n.engine.Wait(t.Context(), hexID('a'), life.First(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.engine.Start(t.Context(), hexID('a'), l, nil); err != nil {
		t.Fatal(err)
	}
	again := open(t, n.engine, path)
	again.phase('a', 1, dv1.Phase_ACTIVE)
	reported := func() *dv1.TaskStatus {
		again.mu.Lock()
		defer again.mu.Unlock()
		return again.last[string(id('a'))]
	}
	if s := reported(); life.Of(s) != l || life.Of(s.Exit) != life.First(1) || s.Exit.Code != 137 {
		t.Errorf("it runs, and is reported as %v", s)
	}
	again.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 2, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_STOPPED, 1, `"sleep","1000"`)}})
	again.phase('a', 1, dv1.Phase_EXITED)
	if s := reported(); life.Of(s) != l || life.Of(s.Exit) != l {
		t.Errorf("it ended, and is reported as %v", s)
	}
	again.must(&dv1.Sync{Epoch: 1, Term: 1, Index: 3, Tasks: []*dv1.Assignment{assigned('a', dv1.Desired_RUNNING, 2, `"sleep","1000"`)}})
	again.phase('a', 2, dv1.Phase_ACTIVE)
	if s := reported(); life.Of(s) != life.First(2) || s.Exit != nil {
		t.Errorf("the next attempt is reported as %v", s)
	}
}

// Rule 8: a retried signal is distinguished from a new one, also by a restarted agent, and
// the number of calls remembered is bounded.
func TestCallsAreRememberedOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tasks.db")
	store, err := task.OpenStore(path)
	if err != nil {
		t.Fatal(err)
	}
	first := func(key string, want bool) {
		t.Helper()
		if got, err := store.First(key); err != nil || got != want {
			t.Errorf("%s is new: %v (%v)", key, got, err)
		}
	}
	first("task/1/a", true)
	first("task/1/a", false)
	first("task/2/a", true)
	if err := store.Undo("task/2/a"); err != nil {
		t.Fatal(err)
	}
	first("task/2/a", true)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if store, err = task.OpenStore(path); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	first("task/1/a", false)
}

func endpoint(network byte, ip string, leaving bool) *dv1.Endpoint {
	return &dv1.Endpoint{TaskId: id('a'), NetworkId: id(network), Id: id(network), Ip: ip, Leaving: leaving}
}

func TestARunningTaskFollowsItsEndpoints(t *testing.T) {
	n, path := begin(t)
	index := uint64(0)
	take := func(desired dv1.Desired, attempt int32, ends ...*dv1.Endpoint) {
		t.Helper()
		index++
		a := assigned('a', desired, attempt, `"sleep","100"`)
		a.Endpoints = ends
		n.must(&dv1.Sync{Epoch: 1, Term: 1, Index: index, Tasks: []*dv1.Assignment{a}})
	}
	left := func(want ...string) {
		t.Helper()
		n.until("left "+strings.Join(want, " "), func(b *box) bool { return slices.Equal(b.left, want) })
	}
	wired := func(want string) {
		t.Helper()
		got := ""
		for _, e := range n.engine.Wiring(hexID('a')).Endpoints {
			got += e.Ip + " "
		}
		if got != want {
			t.Errorf("its endpoints are %q, want %q", got, want)
		}
	}
	red, blue := endpoint('r', "10.0.0.1", false), endpoint('b', "10.1.0.1", false)
	take(dv1.Desired_CREATED, 0, red)
	take(dv1.Desired_RUNNING, 1, red, blue)
	n.phase('a', 1, dv1.Phase_ACTIVE)
	wired("10.0.0.1 10.1.0.1 ")
	if n.did("rewire") != 0 {
		t.Error("what it started with was changed")
	}
	failed := false
	n.engine.Hook(func(_ context.Context, call, _ string) error {
		if call == "rewire" && !failed {
			failed = true
			return errors.New("no")
		}
		return nil
	})
	leaving := endpoint('b', "10.1.0.1", true)
	take(dv1.Desired_RUNNING, 1, red, leaving)
	left("ab")
	wired("10.0.0.1 ")
	if !failed || n.did("rewire") != 2 {
		t.Errorf("the networks were changed %d times", n.did("rewire"))
	}
	// Told again, it says so again: what it said may not have reached the log.
	take(dv1.Desired_RUNNING, 1, red, leaving)
	left("ab", "ab")

	// An agent that starts does not know what a task has.
	n.stop()
	rewired := make(chan struct{}, 1)
	n.engine.Hook(func(_ context.Context, call, _ string) error {
		if call == "rewire" {
			rewired <- struct{}{}
		}
		return nil
	})
	n = open(t, n.engine, path)
	<-rewired
	left("ab")
	take(dv1.Desired_RUNNING, 1, red)
	take(dv1.Desired_STOPPED, 1, endpoint('r', "10.0.0.1", true))
	n.phase('a', 1, dv1.Phase_EXITED)
	left("ab", "ar") // without a process it has none
}
