// Package enginetest is what every task.Engine must do, as a suite that both the
// real and the fake one pass. It runs busybox's programs; how an engine is set
// up, and what only one of them can do, is left to that engine's own tests.
package enginetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// Subject is an engine under test.
type Subject struct {
	Engine task.Engine
	// Image, Digest: busybox (or what acts so), in the engine's store.
	Image, Digest string
	// Reopen gives the engine as a restarted agent finds it; nil: the same.
	Reopen func() task.Engine
}

// limit bounds each test: an engine that hangs fails instead.
const limit = 60 * time.Second

// Run runs the suite; each test gets a subject of its own from open.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, c := range []struct {
		name string
		f    func(*suite)
	}{
		{"a prepared task is listed and has no attempt", (*suite).prepared},
		{"an absent image is ErrNoImage", (*suite).noImage},
		{"an attempt ends with its code, and every step can be repeated", (*suite).exits},
		{"an attempt that ended is not started again", (*suite).startedOnce},
		{"a command that is not there is docker's 127", (*suite).notThere},
		{"a killed attempt ends with 137", (*suite).killed},
		{"a second attempt has its own exit", (*suite).attempts},
		{"an attach before the start gets every byte and the exit", (*suite).attach},
		{"stdin reaches the process and its half-close ends it", (*suite).stdin},
		{"logs outlive the attempt and its release", (*suite).logs},
		{"a stream that broke is taken up where it was", (*suite).takenUp},
		{"exec runs beside the task and has its own exit", (*suite).exec},
		{"a running task is found again by a restarted agent", (*suite).adopted},
		{"what was removed is gone, and removing it again is no error", (*suite).removed},
		{"a wait ends with its context, not with the task", (*suite).waitEnds},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			s := &suite{T: t, ctx: ctx, Subject: open(t)}
			s.e = s.Engine
			c.f(s)
		})
	}
}

type suite struct {
	*testing.T
	Subject
	ctx context.Context
	e   task.Engine
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
	if change != nil {
		change(&c)
	}
	return task.Spec{ID: id, Name: "t" + id[:8], Image: s.Image, Digest: s.Digest, SpecHash: "spec", Create: c}
}

// make prepares a task that is removed with the test.
func (s *suite) make(change func(*container.CreateRequest), cmd ...string) string {
	s.Helper()
	p := s.spec(change, cmd...)
	s.ok(s.e.Prepare(s.ctx, p))
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		_ = s.Engine.Signal(ctx, p.ID, "SIGKILL") // reopened ones are closed by now
		if err := s.Engine.Remove(ctx, p.ID); err != nil {
			s.Errorf("cleaning up: %v", err)
		}
	})
	return p.ID
}

func (s *suite) start(id string, n int32) task.Attempt {
	s.Helper()
	a, err := s.e.Start(s.ctx, id, n, nil)
	s.ok(err)
	if a.Number != n || a.Started.IsZero() {
		s.Fatalf("attempt %d started at %v, want %d", a.Number, a.Started, n)
	}
	return a
}

func (s *suite) exit(id string, n, code int32) {
	s.Helper()
	x, err := s.e.Wait(s.ctx, id, n)
	s.ok(err)
	if x.Attempt != n || x.Code != code || x.At == 0 {
		s.Fatalf("exit %v, want code %d of attempt %d", x, code, n)
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

// all reads frames until the stream ends.
func (s *suite) all(r io.Reader) (out, errs string, exit *dv1.Exit) {
	s.Helper()
	for fr := bulk.NewFrameReader(r); ; {
		kind, p, err := fr.Next()
		if errors.Is(err, io.EOF) {
			return out, errs, exit
		}
		s.ok(err)
		switch kind {
		case bulk.FrameStdout:
			out += string(p)
		case bulk.FrameStderr:
			errs += string(p)
		case bulk.FrameExit:
			exit = &dv1.Exit{}
			s.ok(protojson.Unmarshal(p, exit))
			return out, errs, exit
		case bulk.FramePos:
		default:
			s.Fatalf("frame %d: %s", kind, p)
		}
	}
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
	r, err := s.e.Logs(s.ctx, id, task.LogOptions{Stdout: true, Tail: -1})
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

func (s *suite) attach() {
	id := s.make(nil, "echo", "hello world")
	st, err := s.e.Attach(s.ctx, id, task.AttachOptions{Stdout: true, Stderr: true, Stream: true})
	s.ok(err)
	defer func() { _ = st.Close() }()
	s.start(id, 1)
	out, errs, x := s.all(st)
	if out != "hello world\n" || errs != "" || x == nil || x.Code != 0 {
		s.Fatalf("out %q, err %q, exit %v", out, errs, x)
	}
}

func (s *suite) stdin() {
	id := s.make(func(c *container.CreateRequest) { c.OpenStdin, c.StdinOnce, c.AttachStdin = true, true, true }, "cat")
	st, err := s.e.Attach(s.ctx, id, task.AttachOptions{Stdin: true, Stdout: true, Stream: true})
	s.ok(err)
	defer func() { _ = st.Close() }()
	s.start(id, 1)
	in := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	done := make(chan error, 1)
	go func() {
		_, err := st.Write(in)
		done <- errors.Join(err, st.CloseWrite())
	}()
	out, _, x := s.all(st)
	s.ok(<-done)
	if out != string(in) || x.GetCode() != 0 {
		s.Fatalf("%d bytes of %d came back, exit %v", len(out), len(in), x)
	}
}

func (s *suite) logs() {
	id := s.make(nil, "echo", "kept")
	s.start(id, 1)
	s.exit(id, 1, 0)
	s.ok(s.e.Release(s.ctx, id))
	for _, o := range []task.LogOptions{{Stdout: true, Tail: -1}, {Stdout: true, Stderr: true, Tail: 1, Follow: true}} {
		r, err := s.e.Logs(s.ctx, id, o)
		s.ok(err)
		out, _, _ := s.all(r)
		_ = r.Close()
		if out != "kept\n" {
			s.Fatalf("%+v gave %q", o, out)
		}
	}
	r, err := s.e.Logs(s.ctx, id, task.LogOptions{Stdout: true, Timestamps: true, Tail: -1})
	s.ok(err)
	defer func() { _ = r.Close() }()
	out, _, _ := s.all(r)
	at, text, _ := strings.Cut(out, " ")
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil || text != "kept\n" {
		s.Fatalf("with timestamps: %q", out)
	}
}

// positions reads frames until n bytes of output came, some of them ahead of a
// position, or the stream ended, and gives the last position with what came behind it.
func (s *suite) positions(r io.Reader, n int) (out string, from task.LogPosition, behind int) {
	s.Helper()
	found := false
	for fr := bulk.NewFrameReader(r); len(out) < n || behind == len(out); {
		kind, p, err := fr.Next()
		if errors.Is(err, io.EOF) || kind == bulk.FrameExit {
			break
		}
		s.ok(err)
		switch kind {
		case bulk.FramePos:
			from, err = task.DecodeLogPosition(p)
			s.ok(err)
			behind, found = 0, true
		case bulk.FrameStdout:
			out += string(p)
			behind += len(p)
		}
	}
	if !found {
		s.Fatal("a stream without a position")
	}
	return out, from, behind
}

func (s *suite) takenUp() {
	id := s.make(nil, "seq", "1", "60000")
	st, err := s.e.Attach(s.ctx, id, task.AttachOptions{Stdout: true, Stream: true})
	s.ok(err)
	s.start(id, 1)
	s.exit(id, 1, 0)
	var all []byte
	for i := range 60_000 {
		all = append(strconv.AppendInt(all, int64(i+1), 10), '\n')
	}
	want, got := string(all), ""
	for read := 1; len(got) < len(want); read += 90_000 {
		out, from, behind := s.positions(st, read)
		_ = st.Close()
		got += out
		if len(got) >= len(want) {
			break
		}
		got = got[:len(got)-behind] // comes again
		st, err = s.e.Attach(s.ctx, id, task.AttachOptions{Stdout: true, Stream: true, From: &from})
		s.ok(err)
	}
	_ = st.Close()
	if got != want {
		s.Fatalf("%d bytes came of an attach, not %d", len(got), len(want))
	}
	for _, o := range []task.LogOptions{{Stdout: true, Tail: -1}, {Stdout: true, Tail: 9000}, {Stdout: true, Tail: 20_000, Timestamps: true}} {
		r, err := s.e.Logs(s.ctx, id, o)
		s.ok(err)
		whole, _, _ := s.all(r)
		_ = r.Close()
		got := ""
		for from := (*task.LogPosition)(nil); ; {
			o.From = from
			r, err := s.e.Logs(s.ctx, id, o)
			s.ok(err)
			out, pos, behind := s.positions(r, 80_000)
			_ = r.Close()
			got += out
			if len(got) >= len(whole) {
				break
			}
			got, from = got[:len(got)-behind], &pos
		}
		if got != whole {
			s.Fatalf("logs %+v gave %d bytes when taken up, else %d", o, len(got), len(whole))
		}
	}
}

func (s *suite) exec() {
	id := s.make(nil, "sleep", "1000")
	o := container.ExecCreateRequest{Cmd: []string{"cat"}, AttachStdin: true, AttachStdout: true, AttachStderr: true}
	if err := s.e.ExecCreate(s.ctx, id, "e0"+id[:8], o); err == nil {
		s.Fatal("an exec in a task that does not run")
	}
	s.start(id, 1)
	eid := "e1" + id[:8]
	s.ok(s.e.ExecCreate(s.ctx, id, eid, o))
	st, err := s.e.ExecStart(s.ctx, id, eid, true, 0, 0)
	s.ok(err)
	defer func() { _ = st.Close() }()
	_, err = st.Write([]byte("through exec"))
	s.ok(err)
	s.ok(st.CloseWrite())
	if out, _, _ := s.all(st); out != "through exec" {
		s.Fatalf("got %q", out)
	}
	x, err := s.e.ExecInspect(s.ctx, id, eid)
	s.ok(err)
	if x.Running || x.ExitCode == nil || *x.ExitCode != 0 || x.TaskID != id {
		s.Fatalf("inspected %+v", x)
	}
	if f := s.found(id); f == nil || !f.Running {
		s.Fatal("the task went with its exec")
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
	if _, err := s.e.Logs(s.ctx, id, task.LogOptions{Stdout: true, Tail: -1}); !errors.Is(err, task.ErrNotFound) {
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
