package enginetest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// Runtime runs the suite of task.Runtime; each test gets a subject of its own from open.
func Runtime(t *testing.T, open func(t *testing.T) Subject) {
	play(t, open, []scene{
		{"a prepared task is listed and has no attempt", (*suite).prepared},
		{"an absent image is ErrNoImage", (*suite).noImage},
		{"an attempt ends with its code, and every step can be repeated", (*suite).exits},
		{"an attempt that ended is not started again", (*suite).startedOnce},
		{"a command that is not there is docker's 127", (*suite).notThere},
		{"a killed attempt ends with 137", (*suite).killed},
		{"a second attempt has its own exit", (*suite).attempts},
		{"an attempt that follows at once has its predecessor's place in the network", (*suite).followed},
		{"an attempt begun anew has its own exit, and waits for either tell them apart", (*suite).anew},
		{"a life that its agent did not begin anew is followed by the next attempt", (*suite).notAnew},
		{"a running task is found again by a restarted agent", (*suite).adopted},
		{"what was removed is gone, and removing it again is no error", (*suite).removed},
		{"a wait ends with its context, not with the task", (*suite).waitEnds},
	})
}

func (s *suite) prepared() {
	id := s.make(nil, "true")
	f := s.found(id)
	if f == nil || f.Running || f.Attempt.Life.Attempt != 0 || f.Spec.SpecHash != "spec" {
		s.Fatalf("found %+v", f)
	}
}

func (s *suite) noImage() {
	p := s.spec(nil, "true")
	p.Digest = "sha256:" + strings.Repeat("0", 64)
	if err := s.e.Prepare(s.ctx, p); !errors.Is(err, task.ErrNoImage) {
		s.Fatalf("got %v", err)
	}
	if s.found(p.ID) != nil {
		s.Fatal("a refused task was left behind")
	}
}

func (s *suite) exits() {
	p := s.spec(nil, "sh", "-c", "exit 3")
	s.Cleanup(func() { _ = s.e.Remove(context.Background(), p.ID) })
	for range 2 {
		s.ok(s.e.Prepare(s.ctx, p))
	}
	s.start(p.ID, 1)
	for range 2 {
		s.exit(p.ID, 1, 3)
	}
	for range 2 {
		s.ok(s.e.Release(s.ctx, p.ID))
	}
	s.exit(p.ID, 1, 3)
	if err := s.e.Signal(s.ctx, p.ID, "SIGTERM"); !errors.Is(err, task.ErrNotRunning) {
		s.Fatalf("signal to an ended attempt: %v", err)
	}
}

func (s *suite) startedOnce() {
	id := s.make(nil, "echo", "once")
	s.start(id, 1)
	s.exit(id, 1, 0)
	if a := s.start(id, 1); a.Exit == nil || a.Exit.Attempt != 1 {
		s.Fatalf("a repeated start returned %+v", a)
	}
	r, err := s.Streams.Logs(s.ctx, id, task.LogOptions{Stdout: true, Tail: -1})
	s.ok(err)
	defer func() { _ = r.Close() }()
	if out, _, _ := s.all(r); out != "once\n" {
		s.Fatalf("it wrote %q", out)
	}
}

func (s *suite) notThere() {
	id := s.make(nil, "no-such-program")
	if err := s.e.Rewire(s.ctx, id, nil); err != nil {
		s.Fatalf("changing the networks of one that does not run: %v", err)
	}
	_, err := s.e.Start(s.ctx, id, life.First(1), nil)
	var se *task.StartError
	if !errors.As(err, &se) || se.Code != 127 {
		s.Fatalf("got %v", err)
	}
	s.ok(s.e.Release(s.ctx, id))
	if f := s.found(id); f == nil || f.Running || f.Attempt.Life.Attempt != 0 {
		s.Fatalf("after a start that failed: %+v", f)
	}
}

func (s *suite) killed() {
	id := s.make(nil, "sleep", "1000")
	s.start(id, 1)
	s.ok(s.e.Signal(s.ctx, id, "SIGKILL"))
	s.exit(id, 1, 137)
}

func (s *suite) attempts() {
	id := s.make(nil, "sleep", "1000")
	for n := range int32(3) {
		s.start(id, n+1)
		s.ok(s.e.Signal(s.ctx, id, "9"))
		s.exit(id, n+1, 137)
		s.ok(s.e.Release(s.ctx, id))
	}
	if f := s.found(id); f == nil || f.Running || f.Attempt.Life != life.First(3) || f.Attempt.Exit.GetAttempt() != 3 {
		s.Fatalf("found %+v", f)
	}
}

func (s *suite) followed() {
	id := s.make(nil, "sleep", "1000")
	first := s.start(id, 1)
	s.ok(s.e.Signal(s.ctx, id, "SIGKILL"))
	s.exit(id, 1, 137)
	second := s.start(id, 2)
	if second.IP == "" || second.IP != first.IP || second.MAC != first.MAC {
		s.Fatalf("it is at %s (%s), was at %s (%s)", second.IP, second.MAC, first.IP, first.MAC)
	}
	s.exit(id, 1, 137)
	s.ok(s.e.Signal(s.ctx, id, "SIGKILL"))
	s.exit(id, 2, 137)
	s.ok(s.e.Release(s.ctx, id))
	s.start(id, 3)
	s.ok(s.e.Signal(s.ctx, id, "SIGKILL"))
	s.exit(id, 3, 137)
	s.ok(s.e.Release(s.ctx, id))
}

// anew also checks that an exit of an earlier life never ends a wait for a later one.
func (s *suite) anew() {
	id := s.make(nil, "sleep", "1000")
	first := life.First(2)
	second := first.Anew()
	s.begin(id, first)
	waiting := make(chan *dv1.Exit, 1)
	go func() {
		x, err := s.e.Wait(s.ctx, id, second)
		if err != nil {
			s.Error(err)
		}
		waiting <- x
	}()
	s.ok(s.e.Signal(s.ctx, id, "SIGKILL"))
	s.end(id, first, 137)
	s.ok(s.e.Release(s.ctx, id))
	a := s.begin(id, second)
	if b := s.begin(id, second); b.Pid != a.Pid {
		s.Fatalf("started twice: pids %d and %d", a.Pid, b.Pid)
	}
	if _, err := s.e.Start(s.ctx, id, first, nil); !errors.Is(err, task.ErrNotFound) {
		s.Fatalf("an earlier life is started: %v", err)
	}
	if f := s.found(id); f == nil || !f.Running || f.Attempt.Life != second || life.Of(f.Attempt.Before) != first || life.Of(a.Before) != first {
		s.Fatalf("found %+v, started %+v", f, a)
	}
	s.end(id, first, 137) // is known as before
	select {
	case x := <-waiting:
		s.Fatalf("a wait for attempt %s ended with %v while it runs", second, x)
	default:
	}
	s.ok(s.e.Signal(s.ctx, id, "SIGKILL"))
	if x := <-waiting; life.Of(x) != second {
		s.Fatalf("a wait for attempt %s ended with %v", second, x)
	}
	if f := s.found(id); f == nil || f.Running || life.Of(f.Attempt.Exit) != second {
		s.Fatalf("found %+v", f)
	}
	s.ok(s.e.Release(s.ctx, id))
}

func (s *suite) notAnew() {
	id := s.make(nil, "echo", "out")
	s.start(id, 1)
	s.exit(id, 1, 0)
	s.ok(s.e.Release(s.ctx, id))
	st, err := s.Streams.Attach(s.ctx, id, task.AttachOptions{Stream: true, Stdout: true})
	s.ok(err)
	defer func() { _ = st.Close() }()
	s.start(id, 2)
	if out, _, x := s.all(st); out != "out\n" || life.Of(x) != life.First(2) {
		s.Fatalf("it wrote %q and ended with %v", out, x)
	}
	if _, err := s.e.Wait(s.ctx, id, life.First(1).Anew()); !errors.Is(err, task.ErrNotFound) {
		s.Fatalf("a wait for a life that never was: %v", err)
	}
}

func (s *suite) adopted() {
	id := s.make(nil, "sleep", "1000")
	a := s.start(id, 1)
	if s.Reopen != nil {
		s.e = s.Reopen()
	}
	f := s.found(id)
	if f == nil || !f.Running || f.Attempt.Life != life.First(1) || f.Attempt.Pid != a.Pid || f.Attempt.IP != a.IP {
		s.Fatalf("found %+v, was %+v", f, a)
	}
	if b := s.start(id, 1); b.Pid != a.Pid {
		s.Fatalf("started anew: pid %d, was %d", b.Pid, a.Pid)
	}
	s.ok(s.e.Signal(s.ctx, id, "SIGKILL"))
	s.exit(id, 1, 137)
}

func (s *suite) removed() {
	id := s.make(nil, "true")
	s.start(id, 1)
	s.exit(id, 1, 0)
	s.ok(s.e.Release(s.ctx, id))
	for range 2 {
		s.ok(s.e.Remove(s.ctx, id))
	}
	if s.found(id) != nil {
		s.Fatal("it is still listed")
	}
	if _, err := s.Streams.Logs(s.ctx, id, task.LogOptions{Stdout: true, Tail: -1}); !errors.Is(err, task.ErrNotFound) {
		s.Fatalf("its logs: %v", err)
	}
}

func (s *suite) waitEnds() {
	id := s.make(nil, "sleep", "1000")
	s.start(id, 1)
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.e.Wait(ctx, id, life.First(1)); !errors.Is(err, context.Canceled) {
		s.Fatalf("got %v", err)
	}
	if f := s.found(id); f == nil || !f.Running {
		s.Fatal("the task ended with the wait")
	}
}
