package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// goOn is how long a command looks for another controller when its own is gone.
const goOn = 15 * time.Second

// fleetClient is docker's client that survives a controller's death: what is
// asked again has the key of the first time, waits are taken up, and streams of
// output go on where they broke off.
type fleetClient struct {
	client.APIClient
	warn func(string)
	far  bool // there are other controllers to go to
}

// pingWithin is how long this host's controller may take to say that it is there.
const pingWithin = time.Second

// Ping finds out whether this host's controller answers, and goes past one that
// does not.
func (c *fleetClient) Ping(ctx context.Context, o client.PingOptions) (client.PingResult, error) {
	if !c.far {
		return c.APIClient.Ping(ctx, o)
	}
	soon, cancel := context.WithTimeout(ctx, pingWithin)
	r, err := c.APIClient.Ping(soon, o)
	cancel()
	if err == nil || soon.Err() == nil || ctx.Err() != nil {
		return r, err
	}
	frozen.Store(true)
	return c.APIClient.Ping(ctx, o)
}

// keyKey is the context's key of a *call.
type keyKey struct{}

// call is a request that may be asked again, always with one key.
type call struct {
	key   string
	later atomic.Bool // the fleet asks to ask again
}

type afterKey struct{}

// broken says whether a connection, not the fleet, is why something failed.
func broken(err error) bool {
	return client.IsErrConnectionFailed(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}

// again asks until it is not the connection that fails, with one key: what was done
// in the meantime is not done twice. What may be done already, and what a command
// does that has begun, is asked again for lack of a leader, too.
func again[R any](ctx context.Context, f func(context.Context) (R, error)) (R, error) {
	c := &call{key: key()}
	ctx = context.WithValue(ctx, keyKey{}, c)
	for end := time.Now().Add(goOn); ; {
		r, err := f(ctx)
		later := c.later.Swap(false)
		if err == nil || !later && !broken(err) || ctx.Err() != nil || time.Now().After(end) {
			return r, err
		}
		rest(ctx)
	}
}

func rest(ctx context.Context) {
	select {
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
	}
}

func (c *fleetClient) ContainerCreate(ctx context.Context, o client.ContainerCreateOptions) (client.ContainerCreateResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerCreateResult, error) {
		return c.APIClient.ContainerCreate(ctx, o)
	})
}

func (c *fleetClient) ContainerStart(ctx context.Context, id string, o client.ContainerStartOptions) (client.ContainerStartResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerStartResult, error) {
		return c.APIClient.ContainerStart(ctx, id, o)
	})
}

func (c *fleetClient) ContainerStop(ctx context.Context, id string, o client.ContainerStopOptions) (client.ContainerStopResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerStopResult, error) {
		return c.APIClient.ContainerStop(ctx, id, o)
	})
}

func (c *fleetClient) ContainerRemove(ctx context.Context, id string, o client.ContainerRemoveOptions) (client.ContainerRemoveResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerRemoveResult, error) {
		return c.APIClient.ContainerRemove(ctx, id, o)
	})
}

func (c *fleetClient) ContainerRename(ctx context.Context, id string, o client.ContainerRenameOptions) (client.ContainerRenameResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerRenameResult, error) {
		return c.APIClient.ContainerRename(ctx, id, o)
	})
}

func (c *fleetClient) ContainerKill(ctx context.Context, id string, o client.ContainerKillOptions) (client.ContainerKillResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerKillResult, error) {
		return c.APIClient.ContainerKill(ctx, id, o)
	})
}

func (c *fleetClient) ContainerList(ctx context.Context, o client.ContainerListOptions) (client.ContainerListResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerListResult, error) {
		return c.APIClient.ContainerList(ctx, o)
	})
}

func (c *fleetClient) ContainerInspect(ctx context.Context, id string, o client.ContainerInspectOptions) (client.ContainerInspectResult, error) {
	return again(ctx, func(ctx context.Context) (client.ContainerInspectResult, error) {
		return c.APIClient.ContainerInspect(ctx, id, o)
	})
}

func (c *fleetClient) ImageList(ctx context.Context, o client.ImageListOptions) (client.ImageListResult, error) {
	return again(ctx, func(ctx context.Context) (client.ImageListResult, error) { return c.APIClient.ImageList(ctx, o) })
}

func (c *fleetClient) ImageRemove(ctx context.Context, id string, o client.ImageRemoveOptions) (client.ImageRemoveResult, error) {
	return again(ctx, func(ctx context.Context) (client.ImageRemoveResult, error) {
		return c.APIClient.ImageRemove(ctx, id, o)
	})
}

func (c *fleetClient) Info(ctx context.Context, o client.InfoOptions) (client.SystemInfoResult, error) {
	return again(ctx, func(ctx context.Context) (client.SystemInfoResult, error) { return c.APIClient.Info(ctx, o) })
}

func (c *fleetClient) ExecInspect(ctx context.Context, id string, o client.ExecInspectOptions) (client.ExecInspectResult, error) {
	return again(ctx, func(ctx context.Context) (client.ExecInspectResult, error) {
		return c.APIClient.ExecInspect(ctx, id, o)
	})
}

// ContainerWait takes a wait up again where it broke off.
func (c *fleetClient) ContainerWait(ctx context.Context, id string, o client.ContainerWaitOptions) client.ContainerWaitResult {
	first := c.APIClient.ContainerWait(ctx, id, o)
	results, errs := make(chan container.WaitResponse, 1), make(chan error, 1)
	go func() {
		w := first
		ctx := context.WithValue(ctx, afterKey{}, seen.Load())
		var end time.Time
		for {
			select {
			case r := <-w.Result:
				results <- r
				return
			case err := <-w.Error:
				if end.IsZero() {
					end = time.Now().Add(goOn)
				}
				if ctx.Err() != nil || errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err) || time.Now().After(end) {
					errs <- err
					return
				}
				rest(ctx)
				w = c.APIClient.ContainerWait(ctx, id, o)
			}
		}
	}()
	return client.ContainerWaitResult{Result: results, Error: errs}
}

// Frames of an attached stream, as the fleet sends them to its own client.
const (
	frameStdout = 1
	frameStderr = 2
	frameEnd    = 16 // nothing comes any more
	frameBegin  = 17 // one byte: 1 if the stream begins with the first byte of output
	frameWarn   = 18 // words for the user
	frameMax    = 64 << 10
)

// ContainerAttach gives a stream that goes on at another controller.
func (c *fleetClient) ContainerAttach(ctx context.Context, id string, o client.ContainerAttachOptions) (client.ContainerAttachResult, error) {
	h, err := again(ctx, func(ctx context.Context) (client.ContainerAttachResult, error) {
		return c.APIClient.ContainerAttach(ctx, id, o)
	})
	if err != nil {
		return h, err
	}
	s := newStream(h.HijackedResponse, c.warn)
	s.stdin = o.Stdin
	s.again = func(fromStart bool) (client.HijackedResponse, error) {
		o := o
		o.Logs = fromStart
		h, err := c.APIClient.ContainerAttach(ctx, id, o)
		return h.HijackedResponse, err
	}
	kind, _ := h.MediaType()
	return client.ContainerAttachResult{HijackedResponse: client.NewHijackedResponse(s, kind)}, nil
}

// ExecAttach can't be taken up, but says so.
func (c *fleetClient) ExecAttach(ctx context.Context, id string, o client.ExecAttachOptions) (client.ExecAttachResult, error) {
	h, err := c.APIClient.ExecAttach(ctx, id, o)
	if err != nil {
		return h, err
	}
	kind, _ := h.MediaType()
	return client.ExecAttachResult{HijackedResponse: client.NewHijackedResponse(newStream(h.HijackedResponse, c.warn), kind)}, nil
}

// stream is a net.Conn over streams that may break.
type stream struct {
	warn  func(string)
	raw   bool // a terminal's: payloads only
	stdin bool
	again func(fromStart bool) (client.HijackedResponse, error) // nil: can't

	out       []byte // decoded, not read yet
	fromStart bool
	given     [3]int64 // bytes by kind
	skip      [3]int64
	over      bool

	mu     sync.Mutex // guards cur, closed and half
	cur    client.HijackedResponse
	closed bool
	half   bool
}

func newStream(h client.HijackedResponse, warn func(string)) *stream {
	kind, _ := h.MediaType()
	return &stream{cur: h, warn: warn, raw: kind == "application/vnd.docker.raw-stream"}
}

func (s *stream) now() (client.HijackedResponse, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur, s.closed
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	for len(s.out) == 0 {
		if s.over {
			return 0, io.EOF
		}
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.out)
	s.out = s.out[n:]
	return n, nil
}

func (s *stream) next() error {
	cur, _ := s.now()
	var head [8]byte
	_, err := io.ReadFull(cur.Reader, head[:])
	var body []byte
	if err == nil {
		n := binary.BigEndian.Uint32(head[4:])
		if n > frameMax {
			return fmt.Errorf("the stream broke: a frame of %d bytes", n)
		}
		body = make([]byte, n)
		_, err = io.ReadFull(cur.Reader, body)
	}
	if err != nil {
		if _, closed := s.now(); closed {
			s.over = true
			return nil
		}
		return s.resume()
	}
	switch kind := head[0]; kind {
	case frameEnd:
		s.over = true
	case frameWarn:
		s.warn(string(body))
	case frameBegin:
		s.fromStart = len(body) == 1 && body[0] == 1
	case frameStdout, frameStderr:
		if k := min(s.skip[kind], int64(len(body))); k > 0 {
			s.skip[kind] -= k
			body = body[k:]
		}
		if len(body) == 0 {
			return nil
		}
		s.given[kind] += int64(len(body))
		s.emit(kind, body)
	default: // an error's words
		s.emit(kind, body)
		s.over = true
	}
	return nil
}

func (s *stream) emit(kind byte, body []byte) {
	if s.raw {
		s.out = body
		return
	}
	s.out = make([]byte, 8, 8+len(body))
	s.out[0] = kind
	binary.BigEndian.PutUint32(s.out[4:], uint32(len(body)))
	s.out = append(s.out, body...)
}

// resume opens the stream anew and skips what was given.
func (s *stream) resume() error {
	if s.again == nil {
		return errors.New("the connection to the fleet broke; the command goes on in its container")
	}
	for end := time.Now().Add(goOn); ; {
		h, err := s.again(s.fromStart)
		if err == nil {
			s.mu.Lock()
			_ = s.cur.Conn.Close()
			s.cur = h
			half, closed := s.half, s.closed
			s.mu.Unlock()
			if closed {
				h.Close()
				s.over = true
				return nil
			}
			if half {
				_ = h.CloseWrite()
			}
			switch {
			case s.fromStart:
				s.skip = s.given
			default:
				s.warn("the connection to the fleet was made anew: some output may be missing here; drover logs has all")
			}
			if s.stdin && !half {
				s.warn("the connection to the fleet was made anew: what was typed meanwhile may be lost")
			}
			return nil
		}
		if errdefs.IsNotFound(err) || errdefs.IsConflict(err) {
			s.over = true // it is gone, and with it what it had to say
			return nil
		}
		if _, closed := s.now(); closed || time.Now().After(end) {
			return fmt.Errorf("the connection to the fleet broke, and no controller takes it up: %w", err)
		}
		rest(context.Background())
	}
}

// Write implements net.Conn. What a broken connection swallows is lost, as the
// warning of its successor says.
func (s *stream) Write(p []byte) (int, error) {
	cur, closed := s.now()
	if closed {
		return 0, net.ErrClosed
	}
	n, err := cur.Conn.Write(p)
	if err != nil && s.again != nil {
		return len(p), nil
	}
	return n, err
}

// CloseWrite ends the input.
func (s *stream) CloseWrite() error {
	s.mu.Lock()
	s.half = true
	cur := s.cur
	s.mu.Unlock()
	return cur.CloseWrite()
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.cur.Conn.Close()
}

func (s *stream) LocalAddr() net.Addr           { c, _ := s.now(); return c.Conn.LocalAddr() }
func (s *stream) RemoteAddr() net.Addr          { c, _ := s.now(); return c.Conn.RemoteAddr() }
func (s *stream) SetDeadline(t time.Time) error { c, _ := s.now(); return c.Conn.SetDeadline(t) }
func (s *stream) SetReadDeadline(t time.Time) error {
	c, _ := s.now()
	return c.Conn.SetReadDeadline(t)
}
func (s *stream) SetWriteDeadline(t time.Time) error {
	c, _ := s.now()
	return c.Conn.SetWriteDeadline(t)
}

func toStderr(msg string) { _, _ = fmt.Fprintln(os.Stderr, "drover: "+msg) }
