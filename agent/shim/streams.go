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
	"syscall"
	"time"

	"github.com/containerd/log"

	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/bulk"
)

// fifos are a process's ends, in a directory; the shim itself is at the other ends.
type fifos struct {
	dir        string
	stdin, tty bool
}

func (f fifos) paths() (in, out, err string) {
	if f.stdin {
		in = filepath.Join(f.dir, "stdin")
	}
	if !f.tty {
		err = filepath.Join(f.dir, "stderr")
	}
	return in, filepath.Join(f.dir, "stdout"), err
}

func (f fifos) make() error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	in, out, errp := f.paths()
	for _, p := range []string{in, out, errp} {
		if p == "" {
			continue
		}
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := syscall.Mkfifo(p, 0o600); err != nil {
			return fmt.Errorf("making fifo %s: %w", p, err)
		}
	}
	return nil
}

// release unblocks whoever waits for the other end of a fifo that will never be opened,
// and removes the fifos, so that whoever comes later does not wait either.
func (f fifos) release() {
	in, out, errp := f.paths()
	for _, p := range []string{in, out, errp} {
		if p == "" {
			continue
		}
		fd, err := syscall.Open(p, syscall.O_RDWR|syscall.O_NONBLOCK, 0)
		_ = os.Remove(p)
		if err == nil {
			_ = syscall.Close(fd)
		}
	}
}

// drain reads a fifo to its end and passes on the data.
func drain(path string, to func([]byte)) {
	f, err := os.OpenFile(path, os.O_RDONLY, 0) // blocks until the writer has opened it
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

// stdin writes the clients' input into a fifo.
type stdin struct {
	path    string
	closeIO func()        // closes containerd's own end
	open    chan struct{} // closed when containerd has opened its own end
	gone    chan struct{} // closed when it never will
	mu      sync.Mutex
	f       *os.File
	closed  bool
}

func (s *stdin) write(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	if s.f == nil {
		f, err := os.OpenFile(s.path, os.O_WRONLY, 0)
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
		s.f, _ = os.OpenFile(s.path, os.O_WRONLY, 0)
	}
	if s.f != nil {
		_ = s.f.Close()
	}
	select { // an early end would find nothing to close, and never come again
	case <-s.open:
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
	fifos
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

func newTaskIO(a shimapi.Stdio, bundle string, closeIO func()) (*taskIO, error) {
	t := &taskIO{fifos: fifos{dir: filepath.Join(bundle, "drover"), stdin: a.Stdin, tty: a.TTY}, addr: a, bundle: bundle, made: make(chan struct{}), gone: make(chan struct{})}
	if err := t.make(); err != nil {
		return nil, err
	}
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
		in, _, _ := t.paths()
		t.in = &stdin{path: in, closeIO: closeIO, open: t.made, gone: t.gone}
		go serve(t.l, func(c net.Conn) { t.in.feed(c, a.StdinOnce) })
	}
	_, out, errp := t.paths()
	t.out.Go(func() { drain(out, func(p []byte) { t.append(logs.Stdout, p) }) })
	if errp != "" {
		t.out.Go(func() { drain(errp, func(p []byte) { t.append(logs.Stderr, p) }) })
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
	fifos
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

func newExecIO(a shimapi.ExecIO, dir string, closeIO func()) (*execIO, error) {
	e := &execIO{fifos: fifos{dir: dir, stdin: a.Stdin, tty: a.TTY}, first: make(chan struct{}), gone: make(chan struct{}), full: make(chan struct{}),
		begun: make(chan struct{}), over: make(chan struct{}), exited: make(chan struct{})}
	if err := e.make(); err != nil {
		return nil, err
	}
	in, out, errp := e.paths()
	if a.Stdin {
		e.in = &stdin{path: in, closeIO: closeIO, open: e.begun, gone: e.gone}
	}
	var err error
	if e.l, err = listen(a.Socket); err != nil {
		return nil, err
	}
	go serve(e.l, e.take)
	pump := func(path string, kind byte) {
		e.out.Go(func() {
			if !a.Attach {
				drain(path, func([]byte) {})
				return
			}
			select {
			case <-e.first:
			case <-e.gone:
			}
			drain(path, func(p []byte) { e.send(kind, p) })
		})
	}
	pump(out, bulk.FrameStdout)
	if errp != "" {
		pump(errp, bulk.FrameStderr)
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
