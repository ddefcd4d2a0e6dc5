package faketask

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/life"
)

type record struct {
	kind byte
	at   time.Time
	b    []byte
}

func (e *Engine) write(t *container_, kind byte, b []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t.log = append(t.log, record{kind, time.Now(), b})
	t.change()
}

// stream returns the frames of a log.
type stream struct {
	ctx    context.Context
	cancel context.CancelFunc
	next   func(ctx context.Context) ([]byte, error)
	stdin  io.WriteCloser // nil: none
	buf    []byte
}

func newStream(next func(context.Context) ([]byte, error), stdin io.WriteCloser) *stream {
	s := &stream{next: next, stdin: stdin}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func (s *stream) Read(p []byte) (int, error) {
	for len(s.buf) == 0 {
		b, err := s.next(s.ctx)
		if err != nil {
			return 0, err
		}
		s.buf = b
	}
	n := copy(p, s.buf)
	s.buf = s.buf[n:]
	return n, nil
}

func (s *stream) Write(p []byte) (int, error) {
	if s.stdin == nil {
		return len(p), nil
	}
	return s.stdin.Write(p)
}

func (s *stream) CloseWrite() error {
	if s.stdin == nil {
		return nil
	}
	return s.stdin.Close()
}

func (s *stream) Close() error { s.cancel(); return nil }

func frame(kind byte, b []byte) []byte {
	var out bytes.Buffer
	_ = bulk.WriteFrame(&out, kind, b)
	return out.Bytes()
}

func exitFrame(x *dv1.Exit) ([]byte, error) {
	b, err := protojson.Marshal(x)
	return frame(bulk.FrameExit, b), err
}

// follow returns the records from pos on, through f (nil bytes: skipped), each after its
// position; after the last one of life l, or of the one that was begun instead, comes
// end, then io.EOF.
func (e *Engine) follow(t *container_, pos int, live bool, l life.Life, f func(record) []byte, end func(*dv1.Exit) ([]byte, error)) func(context.Context) ([]byte, error) {
	over := false
	at := func() []byte { return frame(bulk.FramePos, task.LogPosition{Life: l, Offset: uint64(pos)}.Encode()) }
	first := at()
	return func(ctx context.Context) ([]byte, error) {
		if b := first; b != nil {
			first = nil
			return b, nil
		}
		for {
			if over {
				return nil, io.EOF
			}
			e.mu.Lock()
			log, a, changed, gone := t.log, t.attempt, t.changed, t.gone
			e.mu.Unlock()
			if pos < len(log) {
				here := at()
				pos++
				if b := f(log[pos-1]); b != nil {
					return append(here, b...), nil
				}
				continue
			}
			ended := a.Exit != nil && !a.Life.Before(l)
			if !live || ended || gone {
				over = true
				if ended && end != nil {
					return end(proto.CloneOf(a.Exit))
				}
				continue
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return nil, fmt.Errorf("reading: %w", ctx.Err())
			}
		}
	}
}

// Attach implements task.Streams. For a task that isn't running it waits for the life
// that follows, unless the log of the last one is requested.
func (e *Engine) Attach(_ context.Context, id string, o task.AttachOptions) (task.Stream, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[id]
	if t == nil {
		return nil, notFound(id)
	}
	pos, l := len(t.log), t.attempt.Life
	if o.FromStart {
		pos = t.first
	}
	switch {
	case l.Attempt == 0:
		l = life.First(1)
	case t.p == nil && !o.FromStart:
		l = l.Anew()
	}
	if o.From != nil {
		pos, l = int(o.From.Offset), o.From.Life
	}
	pick := func(r record) []byte {
		if (r.kind == bulk.FrameStdout && !o.Stdout) || (r.kind == bulk.FrameStderr && !o.Stderr) {
			return nil
		}
		return frame(r.kind, r.b)
	}
	s := newStream(e.follow(t, pos, o.Stream, l, pick, exitFrame), nil)
	if o.Stdin {
		s.stdin = &lateStdin{ctx: s.ctx, e: e, t: t}
	}
	return s, nil
}

// lateStdin writes to whichever process runs, and waits for one if none does.
type lateStdin struct {
	ctx context.Context
	e   *Engine
	t   *container_
}

func (l *lateStdin) pipe() *io.PipeWriter {
	for {
		l.e.mu.Lock()
		p, changed, started, gone := l.t.p, l.t.changed, l.t.attempt.Life.Attempt > 0, l.t.gone
		l.e.mu.Unlock()
		if p != nil {
			return p.in
		}
		if started || gone {
			return nil
		}
		select {
		case <-changed:
		case <-l.ctx.Done():
			return nil
		}
	}
}

func (l *lateStdin) Write(b []byte) (int, error) {
	if p := l.pipe(); p != nil {
		return p.Write(b)
	}
	return 0, task.ErrNotRunning
}

func (l *lateStdin) Close() error {
	if p := l.pipe(); p != nil {
		return p.Close()
	}
	return nil
}

func (e *Engine) Logs(_ context.Context, id string, o task.LogOptions) (task.LogReader, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[id]
	if t == nil {
		return nil, notFound(id)
	}
	pick := func(r record) []byte {
		switch {
		case r.kind == bulk.FrameStdout && !o.Stdout, r.kind == bulk.FrameStderr && !o.Stderr,
			!o.Since.IsZero() && r.at.Before(o.Since), !o.Until.IsZero() && r.at.After(o.Until):
			return nil
		}
		b := r.b
		if o.Timestamps {
			b = append([]byte(r.at.UTC().Format(time.RFC3339Nano)+" "), b...)
		}
		return frame(r.kind, b)
	}
	pos := 0
	if o.Tail >= 0 {
		pos = len(t.log)
		for left := o.Tail; pos > 0 && left > 0; pos-- {
			if pick(t.log[pos-1]) != nil {
				left--
			}
		}
	}
	live, l := o.Follow && t.p != nil, t.attempt.Life
	if o.From != nil {
		pos, l = int(o.From.Offset), o.From.Life
	}
	return newStream(e.follow(t, pos, live, l, pick, nil), nil), nil
}

func (e *Engine) Resize(_ context.Context, id string, _, _ uint32) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch t := e.tasks[id]; {
	case t == nil:
		return notFound(id)
	case t.p == nil:
		return task.ErrNotRunning
	}
	return nil
}

type exec struct {
	*container_ // its log and its end
	of          string
	o           container.ExecCreateRequest
}

func (e *Engine) ExecCreate(_ context.Context, id, execID string, o container.ExecCreateRequest) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch t := e.tasks[id]; {
	case t == nil:
		return notFound(id)
	case t.p == nil:
		return task.ErrNotRunning
	}
	e.execs[execID] = &exec{&container_{changed: make(chan struct{})}, id, o}
	return nil
}

func (e *Engine) exec(id, execID string) (*exec, error) {
	x := e.execs[execID]
	if x == nil || (id != "" && x.of != id) {
		return nil, fmt.Errorf("exec %s: %w", execID, task.ErrNotFound)
	}
	return x, nil
}

func (e *Engine) ExecStart(_ context.Context, id, execID string, attach bool, _, _ uint32) (task.Stream, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x, err := e.exec(id, execID)
	if err != nil {
		return nil, err
	}
	if x.attempt.Life.Attempt > 0 {
		return nil, fmt.Errorf("exec %s has run already", execID)
	}
	prog, err := program(x.o.Cmd)
	if err != nil {
		return nil, err
	}
	p := newProcess(attach && x.o.AttachStdin)
	x.p, x.attempt = p, task.Attempt{Life: life.First(1), Pid: 2000, Started: time.Now()}
	e.wg.Go(func() {
		code := prog(p, func(kind byte, b []byte) { e.write(x.container_, kind, b) })
		e.mu.Lock()
		defer e.mu.Unlock()
		x.attempt.Exit = &dv1.Exit{Attempt: 1, Code: int32(p.ended(code)), At: time.Now().UnixNano()}
		x.p = nil
		x.change()
	})
	if !attach {
		return nil, nil
	}
	all := func(r record) []byte { return frame(r.kind, r.b) }
	return newStream(e.follow(x.container_, 0, true, life.First(1), all, exitFrame), p.in), nil
}

func (e *Engine) ExecResize(_ context.Context, id, execID string, _, _ uint32) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, err := e.exec(id, execID)
	return err
}

func (e *Engine) ExecInspect(_ context.Context, id, execID string) (task.ExecState, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x, err := e.exec(id, execID)
	if err != nil {
		return task.ExecState{}, err
	}
	s := task.ExecState{ID: execID, TaskID: x.of, Running: x.p != nil, Options: x.o}
	if a := x.attempt; a.Life.Attempt > 0 {
		s.Pid = a.Pid
	}
	if a := x.attempt; a.Exit != nil {
		c := int(a.Exit.Code)
		s.ExitCode = &c
	}
	return s, nil
}
