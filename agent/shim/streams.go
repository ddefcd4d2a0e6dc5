package shim

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/bulk"
)

// drain opens an end, reads it to its end and passes on the data.
func drain(open func() (io.ReadCloser, error), to func([]byte)) {
	f, err := open()
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, logs.MaxPayload)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			to(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// stdin writes the clients' input to a process.
type stdin struct {
	open    func() (io.WriteCloser, error)
	closeIO func()        // closes the task service's own end
	opened  chan struct{} // closed when the task service has opened its own end
	gone    chan struct{} // closed when it never will

	mu     sync.Mutex // guards the fields below
	f      io.WriteCloser
	closed bool
}

func (s *stdin) write(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	if s.f == nil {
		f, err := s.open()
		if err != nil {
			return err
		}
		s.f = f
	}
	_, err := s.f.Write(p)
	return err
}

func (s *stdin) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.f == nil { // the process must still get an EOF
		if f, err := s.open(); err == nil {
			s.f = f
		}
	}
	if s.f != nil {
		_ = s.f.Close()
	}
	select { // an early end would find nothing to close, and never come again
	case <-s.opened:
		s.closeIO()
	case <-s.gone:
	}
}

// feed reads a client's frames: [len32 payload], length 0 is a half-close.
func (s *stdin) feed(c io.Reader, once bool) {
	var head [4]byte
	buf := make([]byte, bulk.MaxFrame)
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return // the client is gone; another may come
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > bulk.MaxFrame {
			return
		}
		if n == 0 {
			if once {
				s.end()
			}
			continue
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return
		}
		if s.write(buf[:n]) != nil {
			return
		}
	}
}

// taskIO is the output and input of one life of a task.
type taskIO struct {
	ends
	addr   shimapi.Stdio
	bundle string
	log    *logs.Writer
	in     *stdin
	l      net.Listener
	oom    atomic.Bool
	made   chan struct{} // closed when runc has created the container
	gone   chan struct{} // closed by close
	out    sync.WaitGroup
	clos   sync.Once

	mu      sync.Mutex // guards the fields below
	timings []shimapi.Timing
	began   time.Time
}

func newTaskIO(a shimapi.Stdio, bundle string, e ends, closeIO func()) (*taskIO, error) {
	t := &taskIO{ends: e, addr: a, bundle: bundle, made: make(chan struct{}), gone: make(chan struct{})}
	w, err := logs.OpenWriter(a.LogDir, logs.Limits{SegmentBytes: a.SegmentBytes, Segments: a.Segments})
	if err != nil {
		return nil, err
	}
	t.log = w
	if a.Stdin {
		if t.l, err = listen(a.Socket); err != nil {
			_ = w.Close()
			return nil, err
		}
		t.in = &stdin{open: e.stdin, closeIO: closeIO, opened: t.made, gone: t.gone}
		go serve(t.l, func(c net.Conn) { t.in.feed(c, a.StdinOnce) })
	}
	t.out.Go(func() { drain(e.stdout, func(p []byte) { t.append(logs.Stdout, p) }) })
	if !a.TTY {
		t.out.Go(func() { drain(e.stderr, func(p []byte) { t.append(logs.Stderr, p) }) })
	}
	return t, nil
}

// append drops output when the disk is full, so that the container keeps running.
func (t *taskIO) append(stream byte, p []byte) {
	if err := t.log.Write(stream, time.Now(), p); err != nil {
		log.L.WithError(err).Error("output was lost")
	}
}

func (t *taskIO) note(what string, began time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timings = append(t.timings, shimapi.Timing{Name: what, Start: began, End: time.Now()})
}

func (t *taskIO) started(at time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.began = at
}

// hasBegun reports whether the process was started: one that was only created has no
// exit.
func (t *taskIO) hasBegun() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.began.IsZero()
}

func (t *taskIO) writeTimings(ctx context.Context) {
	t.mu.Lock()
	b, err := json.Marshal(t.timings)
	t.mu.Unlock()
	if err == nil {
		err = os.WriteFile(shimapi.TimingsFile(t.addr.ExitFile), b, 0o600)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("timings can't be stored")
	}
}

// waitOutput returns when all output is in the log, or after d.
func (t *taskIO) waitOutput(d time.Duration) {
	done := make(chan struct{})
	go func() { t.out.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(d):
	}
}

func (t *taskIO) writeExit(code int32, at time.Time) error {
	t.mu.Lock()
	began := t.began
	t.mu.Unlock()
	return shimapi.WriteExit(t.addr.ExitFile, shimapi.Exit{
		Attempt: t.addr.Life.Attempt, Restarts: t.addr.Life.Restarts, Code: code, At: at, Started: began, OOM: t.oom.Load(), LogEnd: t.log.End(),
	})
}

func (t *taskIO) close() {
	t.clos.Do(func() {
		close(t.gone)
		t.release()
		if t.l != nil {
			_ = t.l.Close()
		}
		t.waitOutput(outputWithin)
		_ = t.log.Close()
	})
}

// execIO is the streams of one exec: no log, live frames to the first client, followed
// by its exit.
type execIO struct {
	ends
	l     net.Listener
	in    *stdin
	out   sync.WaitGroup
	slow  stopwatch // runs while waiting for a client
	sent  atomic.Int64
	most  atomic.Int64  // bytes to be sent; 0: not known yet
	full  chan struct{} // closed when most bytes were sent
	fill  sync.Once
	clos  sync.Once
	gone  chan struct{}
	begun chan struct{} // closed when its process has started
	over  chan struct{} // closed after the last frame
	first chan struct{} // closed when a client has connected

	once   sync.Once        // guards the two below
	exit   shimapi.ExecExit // set before exited is closed
	exited chan struct{}

	mu     sync.Mutex // guards client; held while a frame is written, so that frames stay whole
	client net.Conn
}

func newExecIO(a shimapi.ExecIO, x ends, closeIO func()) (*execIO, error) {
	e := &execIO{ends: x, first: make(chan struct{}), gone: make(chan struct{}), full: make(chan struct{}),
		begun: make(chan struct{}), over: make(chan struct{}), exited: make(chan struct{})}
	if a.Stdin {
		e.in = &stdin{open: x.stdin, closeIO: closeIO, opened: e.begun, gone: e.gone}
	}
	var err error
	if e.l, err = listen(a.Socket); err != nil {
		return nil, err
	}
	go serve(e.l, e.take)
	pump := func(open func() (io.ReadCloser, error), kind byte) {
		e.out.Go(func() {
			if !a.Attach {
				drain(open, func([]byte) {})
				return
			}
			select {
			case <-e.first:
			case <-e.gone:
			}
			drain(open, func(p []byte) { e.send(kind, p) })
		})
	}
	pump(x.stdout, bulk.FrameStdout)
	if !a.TTY {
		pump(x.stderr, bulk.FrameStderr)
	}
	go e.finish()
	return e, nil
}

func (e *execIO) take(c net.Conn) {
	e.mu.Lock()
	if e.client != nil {
		e.mu.Unlock()
		return
	}
	e.client = c
	close(e.first)
	e.mu.Unlock()
	if e.in != nil {
		e.in.feed(c, true)
		select {
		case <-e.gone:
		default:
			e.in.end() // no other client will come
		}
	} else {
		_, _ = io.Copy(io.Discard, c)
	}
	<-e.over
}

func (e *execIO) send(kind byte, p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.slow.start()
	defer e.slow.stop()
	if most := e.most.Load(); e.sent.Add(int64(len(p))) > most && most != 0 {
		e.fill.Do(func() { close(e.full) })
	}
	if e.client != nil {
		_ = bulk.WriteFrame(e.client, kind, p) // if the client left, the process continues unread
	}
}

// ended is called when the process has ended; containerd may report that more than once.
func (e *execIO) ended(x shimapi.ExecExit) {
	e.once.Do(func() {
		e.exit = x
		close(e.exited)
	})
}

// finish sends the exit after all output, which ends the stream.
func (e *execIO) finish() {
	select {
	case <-e.exited:
		e.waitOutput()
		select {
		case <-e.first:
		case <-e.gone:
		case <-time.After(outputWithin): // nobody is reading
		}
	case <-e.gone:
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil {
		select {
		case <-e.exited:
			if b, err := json.Marshal(e.exit); err == nil {
				_ = bulk.WriteFrame(e.client, bulk.FrameExit, b)
			}
		default: // it never began
		}
	}
	close(e.over)
	_ = e.l.Close()
}

// waitOutput returns when all output was sent, or more than the pipes held when the
// process ended, or after outputWithin: background processes may hold the pipes open,
// and write to them, for ever. Time during which a client reads slowly doesn't count.
func (e *execIO) waitOutput() {
	e.most.Store(e.sent.Load() + maxBehind)
	done := make(chan struct{})
	go func() { e.out.Wait(); close(done) }()
	began, before := time.Now(), e.slow.total()
	for left := outputWithin; left > 0; left = outputWithin - (time.Since(began) - (e.slow.total() - before)) {
		select {
		case <-done:
			return
		case <-e.gone:
			return
		case <-e.full:
			return
		case <-time.After(max(left, outputWithin/10)):
		}
	}
}

// stopwatch accumulates time. Safe for concurrent use.
type stopwatch struct {
	mu    sync.Mutex // guards the fields below
	sum   time.Duration
	since time.Time // zero: stopped
}

func (s *stopwatch) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = time.Now()
}

func (s *stopwatch) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sum, s.since = s.sum+time.Since(s.since), time.Time{}
}

func (s *stopwatch) total() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		return s.sum
	}
	return s.sum + time.Since(s.since)
}

func (e *execIO) close() {
	e.clos.Do(func() {
		close(e.gone)
		e.release()
		_ = e.l.Close()
	})
}

func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l, err := net.Listen("unix", path) //nolint:noctx // a path is not resolved
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	return l, nil
}

func serve(l net.Listener, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			f(c)
		}()
	}
}
