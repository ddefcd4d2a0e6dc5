// Package enginetest is what every task.Runtime, task.Streams and task.Images must
// do, as suites that both the real and the fake ones pass. It runs busybox's
// programs; how an engine is set up, and what only one of them can do, is left to
// that engine's own tests.
package enginetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/life"
)

// Subject is the engine under test, in parts.
type Subject struct {
	Runtime task.Runtime
	Streams task.Streams
	Images  task.Images
	// Image, Digest: busybox (or what acts so), in the store and where Images pulls from.
	Image, Digest string
	// Reopen returns the runtime as a restarted agent would find it; nil: unchanged.
	Reopen func() task.Runtime
	// Change changes the request of each task; nil: none.
	Change func(*container.CreateRequest)
}

// limit bounds each test, so that an engine that hangs fails.
const limit = 60 * time.Second

// scene is a test of a suite, named after what it proves.
type scene struct {
	name string
	f    func(*suite)
}

// play runs scenes, each with a subject of its own from open.
func play(t *testing.T, open func(t *testing.T) Subject, scenes []scene) {
	for _, c := range scenes {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			s := &suite{T: t, ctx: ctx, Subject: open(t)}
			s.e = s.Runtime
			c.f(s)
		})
	}
}

type suite struct {
	*testing.T
	Subject
	ctx context.Context
	e   task.Runtime // Subject's, or as it was reopened
}

func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *suite) spec(change func(*container.CreateRequest), cmd ...string) task.Spec {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	id := hex.EncodeToString(b)
	c := container.CreateRequest{Config: &container.Config{Image: s.Image, Cmd: cmd}, HostConfig: &container.HostConfig{}}
	for _, f := range []func(*container.CreateRequest){s.Change, change} {
		if f != nil {
			f(&c)
		}
	}
	return task.Spec{ID: id, Name: "t" + id[:8], Image: s.Image, Digest: s.Digest, SpecHash: "spec", Create: c}
}

// make prepares a task that is removed at the end of the test.
func (s *suite) make(change func(*container.CreateRequest), cmd ...string) string {
	s.Helper()
	p := s.spec(change, cmd...)
	s.ok(s.e.Prepare(s.ctx, p))
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		_ = s.Runtime.Signal(ctx, p.ID, "SIGKILL") // reopened ones are closed by now
		if err := s.Runtime.Remove(ctx, p.ID); err != nil {
			s.Errorf("cleaning up: %v", err)
		}
	})
	return p.ID
}

func (s *suite) start(id string, n int32) task.Attempt { return s.begin(id, life.First(n)) }

func (s *suite) begin(id string, l life.Life) task.Attempt {
	s.Helper()
	a, err := s.e.Start(s.ctx, id, l, nil)
	s.ok(err)
	if a.Life != l || a.Started.IsZero() {
		s.Fatalf("attempt %s started at %v, want %s", a.Life, a.Started, l)
	}
	return a
}

func (s *suite) exit(id string, n, code int32) { s.end(id, life.First(n), code) }

func (s *suite) end(id string, l life.Life, code int32) {
	s.Helper()
	x, err := s.e.Wait(s.ctx, id, l)
	s.ok(err)
	if life.Of(x) != l || x.Code != code || x.At == 0 {
		s.Fatalf("exit %v, want code %d of attempt %s", x, code, l)
	}
}

func (s *suite) found(id string) *task.Found {
	s.Helper()
	all, err := s.e.List(s.ctx)
	s.ok(err)
	for _, f := range all {
		if f.Spec.ID == id {
			return &f
		}
	}
	return nil
}
