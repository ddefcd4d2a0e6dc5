package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// tail reads a task's log and follows it to the end of an attempt.
type tail struct {
	e      *Engine
	id     string
	n      int32 // the attempt whose end is the end
	follow bool
	r      *logs.Reader
	render func(logs.Record) []byte // nil bytes: skipped
	last   func(*dv1.Exit) ([]byte, error)

	ctx    context.Context
	cancel context.CancelFunc
	change <-chan struct{}
	stop   func()
	buf    []byte
	over   bool
	once   sync.Once
	busy   sync.Mutex // held while reading, so that Close waits for it
}

func (e *Engine) newTail(id string, n int32, follow bool, from uint64) (*tail, error) {
	t := &tail{e: e, id: id, n: n, follow: follow, r: logs.NewReader(e.o.logDir(id), from)}
	var err error
	if t.change, t.stop, err = e.follow.listen(e.o.dir(id), e.o.logDir(id)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", short(id), task.ErrNotFound)
		}
		return nil, err
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

func (t *tail) Read(p []byte) (int, error) {
	t.busy.Lock()
	defer t.busy.Unlock()
	for len(t.buf) == 0 {
		if t.over {
			return 0, io.EOF
		}
		if err := t.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, t.buf)
	t.buf = t.buf[n:]
	return n, nil
}

// fill gets more to read, waiting for it where that is wanted.
func (t *tail) fill() error {
	if err := t.ctx.Err(); err != nil {
		return io.ErrClosedPipe
	}
	// The exit is looked for before the log, so that a log that has no more after
	// it never will have.
	x, err := t.e.readExit(t.id, t.n)
	if err != nil {
		return err
	}
	rec, err := t.r.Next()
	if err == nil {
		if x != nil && x.LogEnd > 0 && rec.Offset >= x.LogEnd {
			return t.end(x) // of a later attempt
		}
		t.buf = t.render(rec)
		return nil
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	if x != nil {
		return t.end(x)
	}
	if !t.follow {
		t.over = true
		return nil
	}
	if _, err := os.Stat(t.e.o.dir(t.id)); errors.Is(err, os.ErrNotExist) {
		t.over = true // removed
		return nil
	}
	if a, err := t.e.readAttempt(t.id); err == nil && a.Number > t.n {
		t.over = true // its attempt failed, and another began
		return nil
	}
	select {
	case <-t.change:
		return nil
	case <-t.ctx.Done():
		return io.ErrClosedPipe
	}
}

func (t *tail) end(x *dv1.Exit) (err error) {
	t.over = true
	if t.last != nil {
		t.buf, err = t.last(x)
	}
	return err
}

// Ended says whether the end of the attempt was read.
func (t *tail) Ended() bool {
	t.busy.Lock()
	defer t.busy.Unlock()
	return t.over
}

func (t *tail) Close() error {
	t.cancel()
	t.once.Do(func() {
		t.stop()
		t.busy.Lock()
		defer t.busy.Unlock()
		_ = t.r.Close()
	})
	return nil
}

func frame(kind byte, b []byte) []byte {
	w := &sliceWriter{}
	_ = bulk.WriteFrame(w, kind, b) // never fails
	return w.b
}

type sliceWriter struct{ b []byte }

func (w *sliceWriter) Write(p []byte) (int, error) { w.b = append(w.b, p...); return len(p), nil }

func exitFrame(x *dv1.Exit) ([]byte, error) {
	b, err := protojson.Marshal(x)
	return frame(bulk.FrameExit, b), err
}

// attached is an attach: the log for output, the shim's socket for input.
type attached struct {
	*tail
	in *input // nil: none
}

// Attach implements task.Engine. To a task that doesn't run it waits for the
// next attempt, unless the last one's log is asked for.
func (e *Engine) Attach(_ context.Context, id string, o task.AttachOptions) (task.Stream, error) {
	s, err := e.readSpec(id)
	if err != nil {
		return nil, err
	}
	a, err := e.readAttempt(id)
	if err != nil {
		return nil, err
	}
	n := a.Number
	if n == 0 {
		n = 1
	} else if x, err := e.readExit(id, n); err != nil {
		return nil, err
	} else if x != nil && !o.FromStart {
		n++
	}
	from := a.LogStart
	if !o.FromStart {
		if from, err = logs.End(e.o.logDir(id)); err != nil {
			return nil, err
		}
	}
	t, err := e.newTail(id, n, o.Stream, from)
	if err != nil {
		return nil, err
	}
	t.last = exitFrame
	t.render = func(r logs.Record) []byte {
		if (r.Stream == logs.Stdout && !o.Stdout) || (r.Stream == logs.Stderr && !o.Stderr) {
			return nil
		}
		return frame(r.Stream, r.Data)
	}
	st := &attached{tail: t}
	if c := s.Create.Config; o.Stdin && c != nil && c.OpenStdin {
		st.in = &input{ctx: t.ctx, e: e, id: id, n: n, once: c.StdinOnce && !c.Tty}
	}
	return st, nil
}

func (a *attached) Write(p []byte) (int, error) {
	if a.in == nil {
		return len(p), nil
	}
	return a.in.Write(p)
}

func (a *attached) CloseWrite() error {
	if a.in == nil {
		return nil
	}
	return a.in.half()
}

// Close of a client that is gone ends the input of a task that has no other.
func (a *attached) Close() error {
	if a.in != nil {
		a.in.leave()
	}
	return a.tail.Close()
}

// input writes to a shim's socket, once that is there.
type input struct {
	ctx  context.Context
	e    *Engine
	id   string
	n    int32
	once bool

	mu     sync.Mutex // guards the fields below
	c      net.Conn
	halved bool
}

const dialEvery = 10 * time.Millisecond

// dial is called with mu held. It waits for the attempt to begin.
func (i *input) dial() error {
	for i.c == nil {
		if x, err := i.e.readExit(i.id, i.n); x != nil || err != nil {
			return task.ErrNotRunning
		}
		if a, err := i.e.readAttempt(i.id); err != nil {
			return err
		} else if a.Number >= i.n {
			if c, err := net.Dial("unix", i.e.o.stdinSocket(i.id)); err == nil {
				i.c = c
				return nil
			}
		}
		select {
		case <-time.After(dialEvery):
		case <-i.ctx.Done():
			return io.ErrClosedPipe
		}
	}
	return nil
}

func (i *input) Write(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.dial(); err != nil {
		return 0, err
	}
	return writeInput(i.c, p)
}

// writeInput frames p for a shim: [len32 payload].
func writeInput(c net.Conn, p []byte) (n int, err error) {
	for len(p) > 0 {
		k := min(len(p), bulk.MaxFrame)
		b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+k), uint32(k))
		if _, err := c.Write(append(b, p[:k]...)); err != nil {
			return n, fmt.Errorf("writing to stdin: %w", err)
		}
		n += k
		p = p[k:]
	}
	return n, nil
}

func (i *input) half() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.halved {
		return nil
	}
	if err := i.dial(); err != nil {
		if errors.Is(err, task.ErrNotRunning) {
			return nil // nobody reads any more
		}
		return err
	}
	i.halved = true
	_, err := i.c.Write(make([]byte, 4))
	return err
}

func (i *input) leave() {
	if !i.mu.TryLock() { // a write that waits for a full pipe ends with its connection
		return
	}
	defer i.mu.Unlock()
	if i.c == nil {
		return
	}
	if i.once && !i.halved {
		_, _ = i.c.Write(make([]byte, 4))
	}
	_ = i.c.Close()
}
