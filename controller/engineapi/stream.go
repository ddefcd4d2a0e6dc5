package engineapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/moby/term"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
)

// stream describes the stream that hijack opens.
type stream struct {
	tty, stdin bool
	without    []byte // kinds of frames that the client did not attach to
	keys       string // detach keys, "" for docker's
	whole      bool   // output starts with the first byte
	live       bool   // it lasts until the container exits
	node, task string
	from       string // where output resumes, as the client of a broken stream asked
	again      bool   // it can be resumed after a break
}

// escape returns in, which ends with an error at the detach keys if it is a
// terminal.
func (s stream) escape(in io.Reader) (io.Reader, error) {
	if !s.tty || !s.stdin {
		return in, nil
	}
	keys := s.keys
	if keys == "" {
		keys = "ctrl-p,ctrl-q"
	}
	b, err := term.ToBytes(keys)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "invalid detach keys (%s): %v", keys, err)
	}
	return term.NewEscapeProxy(in, b), nil
}

// hijack responds before it opens the stream with the node, so that an attach never
// blocks the start that its client sends next.
func (s *server) hijack(w http.ResponseWriter, r *http.Request, st stream, open opener) error {
	if _, err := st.escape(nil); err != nil {
		return err
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("taking over the connection: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if st.head(w, r, buf.Writer) != nil {
		return nil // the client is gone
	}
	// The server takes a half-close for a disconnect, and ends the request's context
	// once the input is read: the context of a hijacked connection ends here, or with
	// its server.
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	if server, ok := ctx.Value(serverKey{}).(context.Context); ok {
		defer context.AfterFunc(server, cancel)()
	}
	if r.Header.Get(wire.HeaderFrames) == "" {
		s.stream(r.Context(), ctx, &plain{conn, buf.Reader, st.tty, cancel}, st, open)
		return nil
	}
	c := bulk.NewServerConn(ctx, conn, buf.Reader)
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(c.Context(), cancel)()
	if c.WriteFrame(bulk.FrameBegin, []byte{st.begin()}) == nil {
		s.stream(ctx, ctx, framedViewer{c}, st, open)
	}
	return nil
}

// head writes the response header of a hijacked connection, including w's headers.
func (st stream) head(w http.ResponseWriter, r *http.Request, to *bufio.Writer) error {
	h, status, kind := w.Header(), "200 OK", "raw-stream"
	if r.Header.Get("Upgrade") != "" {
		status = "101 UPGRADED"
		h.Set("Connection", "Upgrade")
		h.Set("Upgrade", "tcp")
		if !st.tty && apiVersion(r) >= 42 {
			kind = "multiplexed-stream"
		}
	}
	h.Set("Content-Type", "application/vnd.docker."+kind)
	_, _ = fmt.Fprintf(to, "HTTP/1.1 %s\r\n", status)
	_ = h.Write(to)
	_, _ = to.WriteString("\r\n")
	return to.Flush()
}

// begin returns the flags of a stream's first frame.
func (st stream) begin() (begin byte) {
	if st.whole {
		begin |= bulk.BeginWhole
	}
	if st.tty {
		begin |= bulk.BeginRaw
	}
	return begin
}

type serverKey struct{}

// ServedBy makes streams over a connection end with ctx: for
// http.Server.ConnContext.
func ServedBy(ctx context.Context) context.Context { return context.WithValue(ctx, serverKey{}, ctx) }

// opener opens a stream with a node from a position, "" for the beginning.
type opener func(ctx context.Context, from string) (*bulk.Conn, error)

// stream connects a client with a node until either ends. If the connection to the
// node breaks, output resumes where it was. opening bounds the first attempt.
func (s *server) stream(opening, ctx context.Context, v viewer, st stream, open opener) {
	var at bulk.Progress
	at.At(st.from)
	agent, err := reach(opening, s, v, st, func(ctx context.Context) (*bulk.Conn, error) { return open(ctx, st.from) })
	var own *faulty
	switch {
	case errors.As(err, &own):
		_ = v.frame(bulk.FrameStderr, []byte(own.msg+"\n"))
		_ = v.end(nil)
		return
	case err != nil:
		v.fail(err.Error())
		return
	}
	v = selective{v, st.without}
	in := bulk.NewInput(agent)
	defer context.AfterFunc(ctx, func() { _ = in.Close() })()
	var detached atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		typed, err := st.escape(v)
		if err == nil {
			_, err = io.Copy(in, typed)
		}
		if errors.As(err, new(term.EscapeError)) {
			detached.Store(true)
			_ = in.Close() // the container's input stays open
			return
		}
		if err == nil {
			_ = in.CloseWrite()
		}
	}()
	defer func() { // when the client disconnects, stop waiting for input
		_ = in.Close()
		v.close()
		<-done
	}()
	for {
		exit, err := pass(v, agent, &at)
		switch {
		case err == nil:
			if known, _ := s.Fleet.Leader(); st.live && !known {
				v.warn(unrecorded)
			}
			if v.end(exit) {
				_ = agent.Acknowledge()
			}
			return
		case errors.Is(err, errLeft):
			return
		case in.Closed():
			if detached.Load() {
				_ = v.end(nil)
			}
			return
		case !errors.Is(err, errBroke):
			v.fail(err.Error())
			return
		case !st.again:
			v.fail("the connection to node " + st.node + " broke; the command goes on in its container")
			return
		}
		_ = agent.Close()
		from := at.Again()
		agent, err = reach(ctx, s, v, st, func(ctx context.Context) (*bulk.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, reachWithin)
			defer cancel()
			return open(ctx, from)
		})
		if err != nil {
			v.fail("the output is truncated: " + err.Error())
			return
		}
		if from == "" && !st.whole {
			v.warn("the connection to node " + st.node + " was made anew: some output may be missing here; drover logs has all")
		}
		if ended := in.Replace(agent); st.stdin && !ended {
			v.warn("the connection to node " + st.node + " was made anew: what was typed meanwhile may be lost")
		}
	}
}

const (
	// reachEvery is the delay before a node that didn't answer is retried.
	reachEvery = 100 * time.Millisecond
	// reachWithin bounds the retries if nobody knows that the node will be back.
	reachWithin = 30 * time.Second
)

// reach opens a stream, retrying while the node doesn't answer: its agent is
// restarting, or its link is down. As long as the container exists and the client
// sees the warning, it retries without limit.
func reach[S any](ctx context.Context, s *server, v sink, st stream, open func(context.Context) (S, error)) (S, error) {
	warned := false
	for began := time.Now(); ; {
		c, err := open(ctx)
		if err == nil || ctx.Err() != nil || !st.again || status(err) != http.StatusServiceUnavailable {
			return c, err
		}
		if since, is := s.silent(ctx, st.node); is && !warned {
			warned = true
			v.warn(fmt.Sprintf("node %s has not answered for %s; its container is there and may still be running, and its output is waited for", st.node, since))
		}
		if time.Since(began) > reachWithin && (!v.warns() || !s.known(ctx, st.task)) {
			return c, err
		}
		select {
		case <-time.After(reachEvery):
		case <-ctx.Done():
			return c, ctx.Err()
		}
	}
}

// known reports whether the fleet has a task.
func (s *server) known(ctx context.Context, id string) bool {
	snap, err := s.Fleet.State(ctx, 0)
	return err != nil || len(snap.TasksByPrefix(id)) > 0
}

// faulty is an error in the user's own command.
type faulty struct{ msg string }

func (f *faulty) Error() string { return f.msg }

var (
	// errBroke: the connection to the node broke, not what runs there.
	errBroke = errors.New("the stream broke")
	// errLeft: the client disconnected.
	errLeft = errors.New("the client left")
)

// frames is the source of an agent's frames.
type frames interface {
	Next() (kind byte, p []byte, err error)
}

// pass forwards an agent's frames to a client, until the exit frame, whose payload it
// returns, or an error.
func pass(v sink, from frames, at *bulk.Progress) (exit []byte, err error) {
	for {
		kind, b, err := from.Next()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errBroke, err)
		}
		switch kind {
		case bulk.FrameExit:
			return b, nil
		case bulk.FrameError:
			return nil, errors.New(string(b))
		}
		if b, fresh := at.Take(kind, b); fresh {
			if v.frame(kind, b) != nil {
				return nil, errLeft
			}
		}
	}
}

// sink receives what a client is to read.
type sink interface {
	frame(kind byte, p []byte) error // output, or a position in it
	warn(msg string)                 // a warning for the user
	fail(msg string)                 // what went wrong; ends the output
	warns() bool                     // the client shows warnings
}

// viewer is a client that is connected to a stream: docker's, or drover's, which
// uses pkg/bulk's frames in both directions.
type viewer interface {
	sink
	io.Reader // the user's input
	// end ends the output, and says how the process did; exit is a payload of
	// bulk.FrameExit. It reports whether the client has received everything.
	end(exit []byte) bool
	close() // stops reading
}

// selective drops frames that its client did not ask for.
type selective struct {
	viewer
	without []byte
}

func (s selective) frame(kind byte, p []byte) error {
	if slices.Contains(s.without, kind) {
		return nil
	}
	return s.viewer.frame(kind, p)
}

// plain is docker's client.
type plain struct {
	net.Conn
	typed *bufio.Reader
	tty   bool
	gone  func() // called once the connection is known to be closed in both directions
}

func (c *plain) Read(p []byte) (int, error) {
	n, err := c.typed.Read(p)
	if err != nil && !errors.Is(err, io.EOF) { // otherwise there is only no more input
		c.gone()
	}
	return n, err
}

func (c *plain) frame(kind byte, p []byte) error {
	switch {
	case kind != bulk.FrameStdout && kind != bulk.FrameStderr:
		return nil
	case c.tty:
		_, err := c.Write(p)
		return err
	}
	return bulk.WriteFrame(c.Conn, kind, p)
}

func (c *plain) warn(string)     {}
func (c *plain) fail(msg string) { late(c.Conn, c.tty, msg) }
func (c *plain) end([]byte) bool { return true } // it was written, and more can't be known
func (c *plain) warns() bool     { return false }
func (c *plain) close()          { _ = c.Close() }

func late(w io.Writer, tty bool, msg string) {
	if tty {
		_, _ = io.WriteString(w, msg+"\r\n")
		return
	}
	_ = bulk.WriteFrame(w, bulk.FrameError, []byte(msg))
}

// framedViewer is drover's client.
type framedViewer struct{ *bulk.ServerConn }

func (c framedViewer) frame(kind byte, p []byte) error { return c.WriteFrame(kind, p) }
func (c framedViewer) warn(msg string)                 { _ = c.WriteFrame(bulk.FrameWarn, []byte(msg)) }
func (c framedViewer) fail(msg string)                 { _ = c.WriteFrame(bulk.FrameError, []byte(msg)) }
func (c framedViewer) warns() bool                     { return true }
func (c framedViewer) close()                          { _ = c.Close() }

func (c framedViewer) end(exit []byte) bool {
	if c.WriteFrame(bulk.FrameExit, exit) != nil {
		return false
	}
	return c.WaitAcknowledged()
}
