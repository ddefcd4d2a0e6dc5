package engine_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/ttrpc"
	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/life"
)

const (
	launchShim = "launch"
	createTask = "create"
	execTask   = "exec"
	startTask  = "start"
	killTask   = "kill"
)

// waits prints that it began, and exits with 7 when it is signalled to.
const waits = "trap 'exit 7' TERM; echo began; sleep 1000 & wait"

func (w *world) pulled(t *testing.T, e *node) {
	t.Helper()
	if _, err := e.images.Pull(t.Context(), w.ref, w.dgst, nil, func(task.Progress) {}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) spec(script string) task.Spec {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	id := hex.EncodeToString(b)
	return task.Spec{ID: id, Name: "t" + id[:8], Image: w.ref, Digest: w.dgst, SpecHash: "spec",
		Create: container.CreateRequest{Config: &container.Config{Image: w.ref, Cmd: []string{"sh", "-c", script}}, HostConfig: &container.HostConfig{}}}
}

// prepared makes a task that runs script; it goes with the test.
func (w *world) prepared(t *testing.T, e *node, script string) (id string) {
	t.Helper()
	s := w.spec(script)
	w.prepare(t, e, s)
	return s.ID
}

func (w *world) prepare(t *testing.T, e *node, s task.Spec) {
	t.Helper()
	if err := e.Prepare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Remove(context.Background(), s.ID); err != nil {
			t.Errorf("cleaning up: %v", err)
		}
	})
}

// ends waits until the process has begun, tells it to end, and checks that the
// exit is its own and that it ran once.
func ends(t *testing.T, e *node, id string) {
	t.Helper()
	r, err := e.Logs(t.Context(), id, task.LogOptions{Stdout: true, Follow: true, Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	fr := bulk.NewFrameReader(r)
	if kind, _, err := fr.Next(); err != nil || kind != bulk.FramePos {
		t.Fatalf("the log begins with frame %d (%v), not its position", kind, err)
	}
	if _, p, err := fr.Next(); err != nil || string(p) != "began\n" {
		t.Fatalf("the first output is %q (%v)", p, err)
	}
	if err := e.Signal(t.Context(), id, "SIGTERM"); err != nil {
		t.Fatal(err)
	}
	if x, err := e.Wait(t.Context(), id, life.First(1)); err != nil || x.Code != 7 || x.Attempt != 1 {
		t.Fatalf("exit %v (%v), want the process's own 7", x, err)
	}
	if _, p, err := fr.Next(); err == nil {
		t.Fatalf("it ran twice: then came %q", p)
	}
}

// An agent dies at any point before the start of a process. The next agent starts the
// attempt, the end of the first try is not reported as that of the second, and what both
// made goes with the container.
func TestAStartThatADeadAgentLeftIsDoneOnceAndHasItsOwnExit(t *testing.T) {
	w := newWorld(t)
	type death struct {
		at            moment
		reached, dead chan struct{}
		died          atomic.Bool
	}
	var current atomic.Pointer[death]
	between(t, func(m moment) error {
		d := current.Load()
		if m.id = ""; d == nil || m != d.at || d.died.Swap(true) {
			return nil
		}
		close(d.reached)
		<-d.dead
		return errGone
	})
	second := w.open(t)
	w.pulled(t, second)
	for _, at := range []moment{{launchShim, "", false}, {launchShim, "", true}, {createTask, "", false}, {createTask, "", true}, {startTask, "", false}} {
		t.Run(fmt.Sprintf("%s, made: %v", at.call, at.after), func(t *testing.T) {
			id := w.prepared(t, second, waits)
			d := &death{at: at, reached: make(chan struct{}), dead: make(chan struct{})}
			current.Store(d)
			over, first := make(chan struct{}), w.open(t)
			go func() { _, _ = first.Start(t.Context(), id, life.First(1), nil); close(over) }()
			defer func() { close(d.dead); <-over }()
			<-d.reached
			w.assembled(t, id, at)
			_ = first.Close() // the dead watch no shims
			if all, err := second.List(t.Context()); err != nil || len(all) != 1 || all[0].Running || all[0].Attempt.Life != (life.Life{}) {
				t.Fatalf("before it is started again: %+v, %v", all, err)
			}
			if a, err := second.Start(t.Context(), id, life.First(1), nil); err != nil || a.Exit != nil || a.Pid == 0 {
				t.Fatalf("started: %+v, %v", a, err)
			}
			ends(t, second, id)
			if err := second.Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			left := append(w.traces(t, id), w.inContainerd(t, id)...)
			if x := w.o.Network.Get(id); x != nil || len(left) > 0 || exists(filepath.Join(w.dir, "tasks", id)) {
				t.Errorf("left: %s, network %+v", left, x)
			}
		})
	}
}

// assembled waits for what the agent that dies here does at the same time.
func (w *world) assembled(t *testing.T, id string, at moment) {
	t.Helper()
	if at.call != launchShim {
		return
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		staged, err := filepath.Glob(filepath.Join(w.dir, "tasks", id, ".attempt.json.*"))
		if err != nil {
			t.Fatal(err)
		}
		sandbox, err := os.ReadFile(filepath.Join(w.dir, "net", id+".json"))
		if err == nil && strings.Contains(string(sandbox), `"Boot":"`) && !strings.Contains(string(sandbox), `"Boot":""`) && len(staged) > 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("neither network nor record are made while the shim starts")
		}
	}
}

// An agent dies while the start of the process is in flight: it arrives just after the
// next agent has found the process not started.
func TestAStartThatArrivesLateRunsOnce(t *testing.T) {
	w := newWorld(t)
	reached, late, arrived := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var asked, answered atomic.Bool
	arrive := sync.OnceFunc(func() { close(late); <-arrived })
	between(t, func(m moment) error {
		switch m.id = ""; m {
		case moment{startTask, "", false}:
			if !asked.Swap(true) {
				close(reached)
				<-late
				return nil
			}
			arrive()
		case moment{killTask, "", false}:
			arrive()
		case moment{startTask, "", true}:
			if !answered.Swap(true) {
				close(arrived)
				return errGone
			}
		}
		return nil
	})
	first, second := w.open(t), w.open(t)
	w.pulled(t, second)
	id := w.prepared(t, second, waits)
	over := make(chan struct{})
	go func() { _, _ = first.Start(t.Context(), id, life.First(1), nil); close(over) }()
	defer func() { <-over }()
	<-reached
	if a, err := second.Start(t.Context(), id, life.First(1), nil); err != nil || a.Exit != nil || a.Pid == 0 {
		t.Fatalf("started: %+v, %v", a, err)
	}
	ends(t, second, id)
}

// A shim is killed at each point of a start. The engine tries again until it learns that
// the attempt runs, or ran, as its caller does.
func TestAShimThatIsKilledInAStartMakesNothingRunTwice(t *testing.T) {
	w := newWorld(t)
	var at atomic.Pointer[func(moment) error]
	between(t, func(m moment) error {
		if f := at.Load(); f != nil {
			return (*f)(m)
		}
		return nil
	})
	e := w.open(t)
	w.pulled(t, e)
	for _, c := range []struct {
		name string
		at   moment
		over bool // the process may have begun: it was the attempt, and is not begun again
	}{
		{"after the container was created", moment{createTask, "", true}, false},
		{"before the process is started", moment{startTask, "", false}, true},
		{"after the process was started", moment{startTask, "", true}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := w.prepared(t, e, waits)
			var killed atomic.Bool
			kill := func(m moment) error {
				if c.at.id = id; m != c.at || killed.Swap(true) {
					return nil
				}
				if m.after && c.over {
					w.printed(t, e, id, "began\n")
				}
				if err := syscall.Kill(shimOf(t, id), syscall.SIGKILL); err != nil {
					t.Error(err)
				}
				return errGone
			}
			at.Store(&kill)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			a, err := e.Start(ctx, id, life.First(1), nil)
			if err == nil || !killed.Load() {
				t.Fatalf("the start was not disturbed: %+v", a)
			}
			for err != nil && ctx.Err() == nil {
				if errors.As(err, new(*task.StartError)) {
					t.Fatalf("the user gets an error: %v", err)
				}
				a, err = e.Start(ctx, id, life.First(1), nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.over {
				if a.Exit.GetCode() != 137 {
					t.Errorf("it ended with %v", a.Exit)
				}
				return
			}
			if a.Exit != nil {
				t.Fatalf("started: %+v", a)
			}
			if n := w.o.Network.Get(id); n == nil || n.Default().IPv4().Addr().String() != a.IP || !strings.HasPrefix(a.IP, "10.199.") {
				t.Fatalf("it runs with address %q, and the network knows of %+v", a.IP, n)
			}
			ends(t, e, id)
		})
	}
}

// freeze stops a process and blocks until it is stopped: on a busy machine its other
// threads answer for a while after the signal was sent.
func freeze(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(stat), ") T ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d is not stopped: %s", pid, stat)
		}
	}
}

// A container that is prepared starts, runs, and ends without containerd.
func TestAStartNeedsNoContainerd(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	id := w.prepared(t, e, waits)
	pid, err := exec.Command("pgrep", "-f", w.dir+"/drover-containerd").Output()
	if err != nil {
		t.Fatal(err)
	}
	stopped, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(stopped, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := sync.OnceFunc(func() { _ = syscall.Kill(stopped, syscall.SIGCONT) })
	defer resume()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if a, err := e.Start(ctx, id, life.First(1), nil); err != nil || a.Exit != nil {
		t.Fatalf("started: %+v, %v", a, err)
	}
	ends(t, e, id)
	if err := e.Release(ctx, id); err != nil {
		t.Fatal(err)
	}
	if a, err := e.Start(ctx, id, life.First(2), nil); err != nil || a.Life != life.First(2) {
		t.Fatalf("started again: %+v, %v", a, err)
	}
	resume()
}

// The files of a container that runs are nobody's but root's: with another account of the
// host, their setuid programs would be root's there.
func TestFilesOfAContainerAreNotOtherAccounts(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	id := w.prepared(t, e, waits)
	if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(w.bundle(id), "rootfs", "bin", "busybox")
	if err := exec.Command(program, "true").Run(); err != nil {
		t.Errorf("root can't run it: %v", err)
	}
	if err := os.Chmod(w.run, 0o755); err != nil { // as RUN is
		t.Fatal(err)
	}
	other := exec.Command(program, "true")
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	other.Dir = "/"
	if err := other.Run(); !errors.Is(err, os.ErrPermission) {
		t.Errorf("another account ran a container's program: %v", err)
	}
	ends(t, e, id)
}

// printed waits until a container has printed this, and returns all that it has.
func (w *world) printed(t *testing.T, e *node, id, want string) (said string) {
	t.Helper()
	r, err := e.Logs(t.Context(), id, task.LogOptions{Stdout: true, Follow: true, Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	for fr := bulk.NewFrameReader(r); ; {
		kind, p, err := fr.Next()
		if err != nil {
			t.Fatal(err)
		}
		if kind != bulk.FramePos {
			said += string(p)
		}
		if strings.Contains(said, want) {
			return said
		}
	}
}

// shimOf returns the process of a container's shim.
func shimOf(t *testing.T, id string) int {
	t.Helper()
	all := shims(t, id)
	if len(all) != 1 {
		t.Fatalf("the shims of %s are %v", id, all)
	}
	return all[0]
}

func TestWhatIsWrongWithOneTaskHidesNoOther(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	started := func() string {
		id := w.prepared(t, e, waits)
		if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
			t.Fatal(err)
		}
		return id
	}
	whole, unknown, ended, hung := started(), started(), started(), started()
	s := w.spec(waits)
	w.prepare(t, e, s)
	if _, err := e.Start(t.Context(), s.ID, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	damage := func(id, file string) {
		if err := os.WriteFile(filepath.Join(w.dir, "tasks", id, file), []byte("{\"ver"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damage(s.ID, "spec.json")
	damage(unknown, "attempt.json")
	ends(t, e, ended)
	damage(ended, "exit.1")
	pid := shimOf(t, hung)
	freeze(t, pid)
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()

	all, err := w.open(t).List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]task.Found{}
	for _, f := range all {
		got[f.Spec.ID] = f
	}
	if f := got[whole]; !f.Running || f.Attempt.Life != life.First(1) {
		t.Errorf("the one with nothing wrong: %+v", f)
	}
	if f := got[ended]; f.Running || f.Attempt.Exit.GetCode() != 255 || f.Attempt.Exit.GetReason() == "" {
		t.Errorf("the one whose end is unreadable: %+v", f.Attempt.Exit)
	}
	// Nothing is known of its process: it is waited on, and not started anew.
	if f := got[hung]; f.Running || f.Attempt.Life != life.First(1) || f.Attempt.Exit != nil {
		t.Errorf("the one whose shim hangs: %+v", f)
	}
	if a, err := e.Start(t.Context(), hung, life.First(1), nil); err == nil {
		t.Errorf("started while its shim hangs: %+v", a)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	ends(t, e, hung)
	// An assigned task is prepared and started again, and is found then.
	if err := e.Prepare(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if a, err := e.Start(t.Context(), s.ID, life.First(1), nil); err != nil || a.Exit != nil {
		t.Fatalf("started: %+v, %v", a, err)
	}
	ends(t, e, s.ID)
	if _, err := e.Start(t.Context(), unknown, life.First(1), nil); err == nil {
		t.Error("an attempt of which nothing is known was started")
	}
}

// An agent dies while a process that ended is deleted: its shim has none any more, and is
// still there. The task starts again, and it goes without a trace.
func TestADeletionThatWasCutShortIsEnded(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	for what, then := range map[string]func(id string) error{
		"started again": func(id string) error {
			a, err := e.Start(t.Context(), id, life.First(2), nil)
			if err == nil && a.Life != life.First(2) {
				err = fmt.Errorf("started %+v", a)
			}
			return err
		},
		"released": func(id string) error { return e.Release(t.Context(), id) },
		"removed":  func(id string) error { return e.Remove(t.Context(), id) },
	} {
		t.Run(what, func(t *testing.T) {
			id := w.prepared(t, e, "exit 3")
			if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
				t.Fatal(err)
			}
			if x, err := e.Wait(t.Context(), id, life.First(1)); err != nil || x.Code != 3 {
				t.Fatalf("exit %v, %v", x, err)
			}
			w.deleteInShim(t, id)
			if err := then(id); err != nil {
				t.Fatal(err)
			}
			if err := e.Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if left := shims(t, id); len(left) > 0 {
				t.Errorf("its shim is left: %v", left)
			}
		})
	}
}

// deleteInShim does what an agent had told a shim before it died.
func (w *world) deleteInShim(t *testing.T, id string) {
	t.Helper()
	c, err := net.Dial("unix", filepath.Join(w.run, "t", id[:24]+".sh"))
	if err != nil {
		t.Fatal(err)
	}
	tc := ttrpc.NewClient(c)
	defer func() { _ = tc.Close() }()
	ctx := namespaces.WithNamespace(t.Context(), "drover")
	if _, err := taskAPI.NewTTRPCTaskClient(tc).Delete(ctx, &taskAPI.DeleteRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
}
