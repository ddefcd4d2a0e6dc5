package enginetest

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/drover/drover/agent/task"
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
		{"a running task is found again by a restarted agent", (*suite).adopted},
		{"what was removed is gone, and removing it again is no error", (*suite).removed},
		{"a wait ends with its context, not with the task", (*suite).waitEnds},
	})
}

func (s *suite) prepared() {
	id := s.make(nil, "true")
	f := s.found(id)
	if f == nil || f.Running || f.Attempt.Number != 0 || f.Spec.SpecHash != "spec" {
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
		s.Fatalf("a repeated start gave %+v", a)
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
	_, err := s.e.Start(s.ctx, id, 1, nil)
	var se *task.StartError
	if !errors.As(err, &se) || se.Code != 127 {
		s.Fatalf("got %v", err)
	}
	s.ok(s.e.Release(s.ctx, id))
	if f := s.found(id); f == nil || f.Running || f.Attempt.Number != 0 {
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
	if f := s.found(id); f == nil || f.Running || f.Attempt.Number != 3 || f.Attempt.Exit.GetAttempt() != 3 {
		s.Fatalf("found %+v", f)
	}
}

func (s *suite) adopted() {
	id := s.make(nil, "sleep", "1000")
	a := s.start(id, 1)
	if s.Reopen != nil {
		s.e = s.Reopen()
	}
	f := s.found(id)
	if f == nil || !f.Running || f.Attempt.Number != 1 || f.Attempt.Pid != a.Pid || f.Attempt.IP != a.IP {
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
	if _, err := s.e.Wait(ctx, id, 1); !errors.Is(err, context.Canceled) {
		s.Fatalf("got %v", err)
	}
	if f := s.found(id); f == nil || !f.Running {
		s.Fatal("the task ended with the wait")
	}
}
