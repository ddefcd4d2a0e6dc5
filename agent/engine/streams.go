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
	"github.com/drover/drover/pkg/life"
)

// tail reads a task's log and follows it to the end of a life.
type tail struct {
	e      *Engine
	id     string
	of     life.Life // at whose end the stream ends
	follow bool
	r      *logs.Reader
	render func(logs.Record) []byte // nil bytes: skipped
	lines  func() byte              // for positions; nil: none
	last   func(*dv1.Exit) ([]byte, error)

	ctx    context.Context
	cancel context.CancelFunc
	change <-chan struct{}
	stop   func()
	buf    []byte
	since  int    // bytes returned since the last position
	began  bool   // the life has begun
	whole  bool   // a gap is an error
	next   uint64 // where the next record must begin, 0 if anywhere
	over   bool
	once   sync.Once
	busy   sync.Mutex // held while reading, so that Close waits
}

// posEvery is how much output may follow a position: that much is sent again after a
// break.
const posEvery = 64 << 10

// newTail reads from p on, whose life is followed.
func (e *Engine) newTail(id string, p task.LogPosition, follow bool) (*tail, error) {
	t := &tail{e: e, id: id, of: p.Life, follow: follow, r: logs.NewReader(e.o.logDir(id), p.Offset), buf: frame(bulk.FramePos, p.Encode())}
	var err error
	if t.change, t.stop, err = e.follow.listen(e.o.dir(id), e.o.logDir(id)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", short(id), task.ErrNotFound)
		}
		return nil, err
	}
	t.ctx, t.cancel = context.WithCancel(context.Background()) //nolint:forbidigo // it ends with the stream, which its reader closes
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

// fill reads more, blocking if requested.
func (t *tail) fill() error {
	if err := t.ctx.Err(); err != nil {
		return io.ErrClosedPipe
	}
	// The exit is checked before the log: a log that has no more output after the exit
	// never will.
	x, err := t.e.readExit(t.id, t.of)
	if err != nil {
		return err
	}
	rec, err := t.r.Next()
	if err == nil {
		if x != nil && x.LogEnd > 0 && rec.Offset >= x.LogEnd {
			return t.end(x) // of a later life
		}
		if t.whole && t.next > 0 && rec.Offset > t.next {
			return fmt.Errorf("%d bytes of the output of %s were rotated away before they were read", rec.Offset-t.next, short(t.id))
		}
		t.next = rec.Next
		p := task.LogPosition{Life: t.of, Offset: rec.Offset}
		if t.lines != nil {
			p.Lines = t.lines()
		}
		b := t.render(rec)
		if t.since += len(b); len(b) > 0 && t.since >= posEvery {
			t.since, b = 0, append(frame(bulk.FramePos, p.Encode()), b...)
		}
		t.buf = b
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
		if t.whole && t.began {
			return fmt.Errorf("%s was removed before its output was read: %w", short(t.id), task.ErrNotFound)
		}
		t.over = true
		return nil
	}
	if a, err := t.e.readAttempt(t.id); err == nil {
		switch now := a.life(); {
		case now == t.of:
			t.began = true
		case !t.began && t.of.Restarts > 0 && !now.Before(life.First(t.of.Attempt+1)):
			t.of = life.First(t.of.Attempt + 1) // what followed was not the agent's doing, but a user's start
			return nil
		case t.of.Before(now):
			t.over = true // its life failed to begin, and another one began
			return nil
		}
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

// Attach implements task.Streams. For a task that isn't running it waits for the life
// that follows, whoever begins that one, unless the log of the last one is requested.
func (e *Engine) Attach(_ context.Context, id string, o task.AttachOptions) (task.Stream, error) {
	s, err := e.readSpec(id)
	if err != nil {
		return nil, err
	}
	a, err := e.readAttempt(id)
	if err != nil {
		return nil, err
	}
	of := a.life()
	if a.Number == 0 {
		of = life.First(1)
	} else if x, err := e.readExit(id, of); err != nil {
		return nil, err
	} else if x != nil && !o.FromStart {
		of = of.Anew()
	}
	from := task.LogPosition{Life: of, Offset: a.LogStart}
	switch {
	case o.From != nil:
		from = *o.From
	case !o.FromStart:
		if from.Offset, err = logs.End(e.o.logDir(id)); err != nil {
			return nil, err
		}
	}
	t, err := e.newTail(id, from, o.Stream)
	if err != nil {
		return nil, err
	}
	t.whole = true
	if o.From != nil {
		t.next = from.Offset
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
		st.in = &input{ctx: t.ctx, e: e, id: id, of: from.Life, once: c.StdinOnce && !c.Tty}
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

// Close also ends the input of a task that takes it from one client only (StdinOnce).
func (a *attached) Close() error {
	if a.in != nil {
		a.in.leave()
	}
	return a.tail.Close()
}

// input writes to a shim's socket, once that exists.
type input struct {
	ctx  context.Context
	e    *Engine
	id   string
	of   life.Life // or, if its agent does not begin that one, the life that follows
	once bool

	busy sync.Mutex // orders frames: held while one is written

	mu     sync.Mutex // guards the fields below
	c      net.Conn
	halved bool
	left   bool
}

const dialEvery = 10 * time.Millisecond

// conn must be called with busy held. It blocks until the life begins.
func (i *input) conn() (net.Conn, error) {
	for {
		if c, err := i.made(nil); c != nil || err != nil {
			return c, err
		}
		if x, err := i.e.readExit(i.id, i.of); x != nil || err != nil {
			return nil, task.ErrNotRunning
		}
		if a, err := i.e.readAttempt(i.id); err != nil {
			return nil, err
		} else if !a.life().Before(i.of) {
			if c, err := (&net.Dialer{}).DialContext(i.ctx, "unix", i.e.o.stdinSocket(i.id)); err == nil {
				return i.made(c)
			}
		}
		select {
		case <-time.After(dialEvery):
		case <-i.ctx.Done():
			return nil, io.ErrClosedPipe
		}
	}
}

// made returns the connection, after setting it to c unless c is nil.
func (i *input) made(c net.Conn) (net.Conn, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.left {
		if c != nil {
			_ = c.Close()
		}
		return nil, io.ErrClosedPipe
	}
	if c != nil {
		i.c = c
	}
	return i.c, nil
}

func (i *input) Write(p []byte) (int, error) {
	i.busy.Lock()
	defer i.busy.Unlock()
	c, err := i.conn()
	if err != nil {
		return 0, err
	}
	return writeInput(c, p)
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
	i.busy.Lock()
	defer i.busy.Unlock()
	c, err := i.conn()
	if err != nil {
		if errors.Is(err, task.ErrNotRunning) {
			return nil // nobody reads anymore
		}
		return err
	}
	i.mu.Lock()
	halved := i.halved
	i.halved = true
	i.mu.Unlock()
	if halved {
		return nil
	}
	return endInput(c)
}

func endInput(c net.Conn) error {
	_, err := c.Write(make([]byte, 4))
	return err
}

// leave closes the connection, even during a write that is blocked by a container which
// does not read.
func (i *input) leave() {
	i.mu.Lock()
	c, ends := i.c, i.once && !i.halved && !i.left
	i.left = true
	i.mu.Unlock()
	if c == nil {
		return
	}
	if !ends || i.busy.TryLock() {
		if ends {
			_ = endInput(c)
			i.busy.Unlock()
		}
		_ = c.Close()
		return
	}
	// The interrupted write leaves part of a frame, so the end is sent on a connection of
	// its own.
	_ = c.Close()
	if c, err := (&net.Dialer{}).DialContext(context.WithoutCancel(i.ctx), "unix", i.e.o.stdinSocket(i.id)); err == nil {
		_ = endInput(c)
		_ = c.Close()
	}
}
