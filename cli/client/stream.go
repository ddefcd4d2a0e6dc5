package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"google.golang.org/protobuf/encoding/protojson"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

type fromKey struct{}

// ContainerAttach returns a stream that continues at another controller if its own is
// lost. It returns once the stream has begun, since before that nothing can be missed by
// retrying; and at once for the output of a container that this command created.
func (c *fleetClient) ContainerAttach(ctx context.Context, id string, o client.ContainerAttachOptions) (client.ContainerAttachResult, error) {
	m, own := c.own(id)
	if !own || o.Stdin {
		return c.attach(ctx, id, o)
	}
	o.Logs = true // all there is, also after the start
	media := "application/vnd.docker.multiplexed-stream"
	if m.tty {
		media = "application/vnd.docker.raw-stream"
	}
	l := openLater(ctx, c.lose, func(ctx context.Context) (client.HijackedResponse, error) {
		h, err := c.attach(ctx, id, o)
		return h.HijackedResponse, err
	})
	return client.ContainerAttachResult{HijackedResponse: client.NewHijackedResponse(l, media)}, nil
}

func (c *fleetClient) attach(ctx context.Context, id string, o client.ContainerAttachOptions) (client.ContainerAttachResult, error) {
	for end := time.Now().Add(patience); ; rest(ctx) {
		h, err := again(ctx, func(ctx context.Context) (client.ContainerAttachResult, error) {
			return c.APIClient.ContainerAttach(ctx, id, o)
		})
		over := ctx.Err() != nil || time.Now().After(end)
		if err != nil {
			// A controller that just came back may not have caught up yet.
			if over || !strings.Contains(err.Error(), notUpgraded+"503") {
				return h, err
			}
			continue
		}
		s := newStream(ctx, h.HijackedResponse, output{warn: c.s.warn, lose: c.lose})
		kind, b, err := s.conn.Next()
		if err != nil {
			h.Close()
			if over {
				return h, fmt.Errorf("the fleet ended the stream before it began: %w", err)
			}
			continue
		}
		s.take(kind, b)
		s.typed = o.Stdin
		s.again = func(from string) (client.HijackedResponse, error) {
			o := o
			o.Logs = s.begun&bulk.BeginWhole != 0 // before the first position
			h, err := c.APIClient.ContainerAttach(context.WithValue(ctx, fromKey{}, from), id, o)
			return h.HijackedResponse, err
		}
		if !o.Stdout && !o.Stderr {
			// Docker's commands read nothing then. But stdin needs credit, and the fleet an
			// acknowledgement of the end.
			go func() { _, _ = io.Copy(io.Discard, s) }()
		}
		media, _ := h.MediaType()
		return client.ContainerAttachResult{HijackedResponse: client.NewHijackedResponse(s, media)}, nil
	}
}

// ExecAttach returns a stream that can't be resumed, but reports that it broke.
func (c *fleetClient) ExecAttach(ctx context.Context, id string, o client.ExecAttachOptions) (client.ExecAttachResult, error) {
	h, err := c.APIClient.ExecAttach(ctx, id, o)
	if err != nil {
		return h, err
	}
	kind, _ := h.MediaType()
	out := output{warn: c.s.warn, lose: c.lose, exited: func(x *dv1.Exit) { c.ended(id, x) }}
	return client.ExecAttachResult{HijackedResponse: client.NewHijackedResponse(newStream(ctx, h.HijackedResponse, out), kind)}, nil
}

// ended records how an exec ended, as its stream said.
func (c *fleetClient) ended(exec string, x *dv1.Exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exits == nil {
		c.exits = map[string]*dv1.Exit{}
	}
	c.exits[exec] = x
}

// ExecInspect asks only for execs whose stream did not say how they ended: those of old
// controllers, and what was never started.
func (c *fleetClient) ExecInspect(ctx context.Context, id string, o client.ExecInspectOptions) (client.ExecInspectResult, error) {
	c.mu.Lock()
	x := c.exits[id]
	c.mu.Unlock()
	if x != nil {
		return client.ExecInspectResult{ID: id, ExitCode: int(x.Code)}, nil
	}
	return again(ctx, func(ctx context.Context) (client.ExecInspectResult, error) {
		return c.APIClient.ExecInspect(ctx, id, o)
	})
}

// ContainerLogs returns a log that continues at another controller if its own is lost.
func (c *fleetClient) ContainerLogs(ctx context.Context, id string, o client.ContainerLogsOptions) (client.ContainerLogsResult, error) {
	r, err := again(ctx, func(ctx context.Context) (client.ContainerLogsResult, error) {
		return c.APIClient.ContainerLogs(ctx, id, o)
	})
	if err != nil {
		return nil, err
	}
	return &pages{output: output{warn: c.s.warn, lose: c.lose}, ctx: ctx, cur: r, fr: bulk.NewFrameReader(r), again: func(from string) (io.ReadCloser, error) {
		return c.APIClient.ContainerLogs(context.WithValue(ctx, fromKey{}, from), id, o)
	}}, nil
}

// lose records why the end of a stream was lost. Docker's commands ignore it once they
// know how the container ended.
func (c *fleetClient) lose(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost == nil {
		c.lost = err
	}
}

// Lost returns why requested output is missing, nil if none is.
func (c *fleetClient) Lost() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

// output converts the fleet's frames into what docker's commands read.
type output struct {
	warn   func(string)
	lose   func(error)
	exited func(*dv1.Exit) // nil: of no interest

	at    bulk.Progress
	begun byte // payload of FrameBegin
	out   []byte
	over  bool
	err   error // why it ended
}

// read returns output, which next fetches.
func (o *output) read(p []byte, next func()) (int, error) {
	for len(o.out) == 0 {
		switch {
		case o.err != nil:
			return 0, o.err
		case o.over:
			return 0, io.EOF
		}
		next()
	}
	n := copy(p, o.out)
	o.out = o.out[n:]
	return n, nil
}

func (o *output) fail(err error) {
	o.over, o.err = true, err
	o.lose(err)
}

// take converts a frame into output.
func (o *output) take(kind byte, b []byte) {
	switch kind {
	case bulk.FrameExit:
		o.over = true
		x := &dv1.Exit{}
		if o.exited != nil && len(b) > 0 && protojson.Unmarshal(b, x) == nil {
			o.exited(x)
		}
	case bulk.FrameWarn:
		o.warn(string(b))
	case bulk.FrameBegin:
		if len(b) == 1 {
			o.begun = b[0]
		}
	case bulk.FrameError:
		o.fail(errors.New(string(b)))
	case bulk.FramePos:
		o.at.Take(kind, b)
	case bulk.FrameStdout, bulk.FrameStderr:
		b, fresh := o.at.Take(kind, b)
		switch {
		case !fresh:
		case o.begun&bulk.BeginRaw != 0:
			o.out = append(o.out[:0], b...)
		default:
			o.out = append(o.out[:0], kind, 0, 0, 0)
			o.out = append(binary.BigEndian.AppendUint32(o.out, uint32(len(b))), b...)
		}
	}
}

// resumed reopens a stream where it broke.
func resumed[S any](ctx context.Context, o *output, open func(from string) (S, error), left func() bool) (s S, ok bool) {
	from := o.at.Again()
	for end := time.Now().Add(goOn); ; {
		s, err := open(from)
		switch {
		case err == nil:
			if from == "" && o.begun&bulk.BeginWhole == 0 {
				o.warn("the connection to the fleet was made anew: some output may be missing here; drover logs has all")
			}
			return s, true
		case left():
			o.over = true
			return s, false
		case refused(err):
			o.fail(fmt.Errorf("the connection to the fleet broke, and the rest of the output is not there any more: %w", err))
			return s, false
		case time.Now().After(end):
			o.fail(fmt.Errorf("the connection to the fleet broke, and no controller resumes it: %w", err))
			return s, false
		}
		rest(ctx)
	}
}

// refused reports whether a retry would be futile.
func refused(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsConflict(err) || errdefs.IsPermissionDenied(err) || errdefs.IsInvalidArgument(err) ||
		strings.Contains(err.Error(), notUpgraded+"4")
}

// notUpgraded is how docker's client reports the status of a failed attach, in an error
// without a type.
const notUpgraded = "unable to upgrade to tcp, received "

// stream is a net.Conn over streams that may break.
type stream struct {
	output
	ctx   context.Context
	typed bool                                               // stdin is attached
	again func(from string) (client.HijackedResponse, error) // nil: can't be resumed
	conn  *bulk.Conn                                         // used by the reader
	in    *bulk.Input

	mu  sync.Mutex // guards net
	net net.Conn
}

func newStream(ctx context.Context, h client.HijackedResponse, o output) *stream {
	c := bulk.NewConn(h.Conn, h.Reader)
	return &stream{output: o, ctx: ctx, conn: c, in: bulk.NewInput(c), net: h.Conn}
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) { return s.read(p, s.next) }

func (s *stream) next() {
	kind, b, err := s.conn.Next()
	if err == nil {
		// A caller that reads on has written what it got before, so everything was written
		// by the time the end is acknowledged.
		if s.take(kind, b); kind == bulk.FrameExit {
			_ = s.conn.Acknowledge()
		}
		return
	}
	switch {
	case s.left():
		s.over = true
		return
	case s.again == nil:
		s.fail(errors.New("the connection to the fleet broke; the command goes on in its container"))
		return
	}
	_ = s.conn.Close()
	h, ok := resumed(s.ctx, &s.output, s.again, s.left)
	if !ok {
		return
	}
	s.mu.Lock()
	s.net = h.Conn
	s.mu.Unlock()
	s.conn = bulk.NewConn(h.Conn, h.Reader)
	if ended := s.in.Replace(s.conn); s.typed && !ended {
		s.warn("the connection to the fleet was made anew: what was typed meanwhile may be lost")
	}
}

func (s *stream) left() bool { return s.in.Closed() || s.ctx.Err() != nil }

// Write implements net.Conn.
func (s *stream) Write(p []byte) (int, error) { return s.in.Write(p) }

// CloseWrite ends the input.
func (s *stream) CloseWrite() error { return s.in.CloseWrite() }

// Close implements net.Conn.
func (s *stream) Close() error { return s.in.Close() }

func (s *stream) now() net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.net
}

func (s *stream) LocalAddr() net.Addr                { return s.now().LocalAddr() }
func (s *stream) RemoteAddr() net.Addr               { return s.now().RemoteAddr() }
func (s *stream) SetDeadline(t time.Time) error      { return s.now().SetDeadline(t) }
func (s *stream) SetReadDeadline(t time.Time) error  { return s.now().SetReadDeadline(t) }
func (s *stream) SetWriteDeadline(t time.Time) error { return s.now().SetWriteDeadline(t) }

// pages is a log over responses that may break.
type pages struct {
	output
	ctx   context.Context
	again func(from string) (io.ReadCloser, error)
	fr    *bulk.FrameReader

	mu     sync.Mutex // guards the fields below
	cur    io.ReadCloser
	closed bool
}

func (s *pages) Read(p []byte) (int, error) { return s.read(p, s.next) }

func (s *pages) next() {
	kind, b, err := s.fr.Next()
	switch {
	case err == nil:
		s.take(kind, b)
		return
	case errors.Is(err, io.EOF): // the regular end of a response, unlike a break
		s.over = true
		return
	case s.left():
		s.over, s.err = true, s.ctx.Err()
		return
	}
	_ = s.cur.Close()
	r, ok := resumed(s.ctx, &s.output, s.again, s.left)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur, s.fr = r, bulk.NewFrameReader(r); s.closed {
		_ = r.Close()
	}
}

func (s *pages) left() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed || s.ctx.Err() != nil
}

func (s *pages) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.cur.Close()
}
