package engineapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
	"github.com/moby/term"
)

func agentRequest(r *http.Request, method, path string, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(r.Context(), method, "http://agent"+path, bytes.NewReader(body))
	if err == nil && body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return req, err
}

func encode(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding the answer: %w", err)
	}
	_, _ = w.Write(append(b, '\n'))
	return nil
}

func (s *server) attach(w http.ResponseWriter, r *http.Request) error {
	snap, t, err := s.task(w, r)
	if err != nil && snap != nil {
		if t = ended(snap, r.PathValue("id")); t != nil {
			err = nil // its output is kept a while for who has not read its end
		}
	}
	if err != nil {
		return err
	}
	in := r.URL.Query()
	q := url.Values{}
	for _, k := range []string{"stdin", "stdout", "stderr", "logs", "stream"} {
		if boolean(in, k) {
			q.Set(k, "1")
		}
	}
	if t.Attempt == 0 {
		q.Set("logs", "1") // all there will be; an attach that arrives late must lose nothing
	}
	dial := func(ctx context.Context) (*bulk.Conn, error) {
		// The agent may not have heard of the task yet.
		if err := s.Fleet.WaitTask(ctx, hexID(t), func(t *dv1.Task, st *dv1.TaskStatus) bool { return t == nil || st.GetPhase() >= dv1.Phase_READY }); err != nil {
			return nil, err
		}
		return s.upgrade(ctx, t.NodeId, "/v1/tasks/"+hexID(t)+"/attach?"+q.Encode())
	}
	if since, is := s.silent(t.NodeId); is {
		return refuse(http.StatusServiceUnavailable, "node %s has not answered for %s; the container is there and may still be running", t.NodeId, since)
	}
	return s.hijack(w, r, stream{tty: request(snap, t).Tty, stdin: q.Has("stdin"), keys: in.Get("detachKeys"), fromStart: q.Has("logs"), endless: q.Has("stream")}, dial)
}

// upgrade opens a stream with a node.
func (s *server) upgrade(ctx context.Context, node, path string) (*bulk.Conn, error) {
	if since, is := s.silent(node); is {
		return nil, refuse(http.StatusServiceUnavailable, "node %s has not answered for %s; the container is there and may still be running", node, since)
	}
	c, err := s.Fleet.Agent(node)
	if err != nil {
		return nil, err
	}
	conn, err := bulk.Upgrade(ctx, c, path, nil)
	var refused *bulk.StatusError
	switch {
	case errors.As(err, &refused):
		return nil, &apiError{refused.Code, refused.Message}
	case err != nil && ctx.Err() == nil:
		return nil, refuse(http.StatusServiceUnavailable, "node %s does not answer: %v", node, err)
	}
	return conn, err
}

// stream is what hijack must know of the other end.
type stream struct {
	tty, stdin bool
	keys       string // that detach, "" for docker's
	fromStart  bool   // output begins with its first byte
	endless    bool   // only the node's word ends it: anything else is a break
}

// escape ends what a terminal's user types at the keys that detach.
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

// hijack answers first and dials then, so that an attach never gates the start
// that its client sends next.
func (s *server) hijack(w http.ResponseWriter, r *http.Request, st stream, dial func(context.Context) (*bulk.Conn, error)) error {
	tty, framed := st.tty, r.Header.Get(HeaderFrames) != ""
	if _, err := st.escape(nil); err != nil {
		return err
	}
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("taking over the connection: %w", err)
	}
	defer func() { _ = conn.Close() }()
	upgrade := r.Header.Get("Upgrade") != ""
	kind := "raw-stream"
	if upgrade && !tty && api(r) >= 42 {
		kind = "multiplexed-stream"
	}
	w.Header().Set("Content-Type", "application/vnd.docker."+kind)
	status := "200 OK"
	if upgrade {
		status = "101 UPGRADED"
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "tcp")
	}
	_, _ = fmt.Fprintf(buf, "HTTP/1.1 %s\r\n", status)
	_ = w.Header().Write(buf)
	_, _ = buf.WriteString("\r\n")
	if err := buf.Flush(); err != nil {
		return nil //nolint:nilerr // the client left
	}
	if framed {
		begin := []byte{0}
		if st.fromStart {
			begin[0] = 1
		}
		if bulk.WriteFrame(conn, frameBegin, begin) != nil {
			return nil
		}
		tty = false // its payloads come in frames too
	}
	// The server no longer watches a hijacked connection: its context ends here.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	agent, err := dial(ctx)
	var own *faulty
	if errors.As(err, &own) && !tty {
		_ = bulk.WriteFrame(conn, bulk.FrameStderr, []byte(own.msg+"\n"))
		if framed {
			_ = bulk.WriteFrame(conn, bulk.FrameExit, nil)
		}
		return nil
	}
	if err != nil {
		late(conn, tty, err.Error())
		return nil
	}
	var detached atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		typed, err := st.escape(buf.Reader)
		if err == nil {
			_, err = io.Copy(agent, typed)
		}
		if errors.As(err, new(term.EscapeError)) {
			detached.Store(true)
			_ = agent.Close() // the container's input stays open
			return
		}
		if err == nil {
			_ = agent.CloseWrite()
		}
	}()
	err = frames(conn, agent, tty)
	switch {
	case framed && (err == nil || detached.Load() || errors.Is(err, io.EOF) && !st.endless):
		if st.endless && s.Fleet.Leaderless() {
			_ = bulk.WriteFrame(conn, frameWarn, []byte(unrecorded))
		}
		_ = bulk.WriteFrame(conn, bulk.FrameExit, nil)
	case err != nil && !errors.Is(err, io.EOF) && (!framed || !errors.Is(err, errBroke)):
		late(conn, tty, err.Error())
	}
	_ = agent.Close()
	_ = conn.Close()
	<-done
	return nil
}

// faulty is what the user's own command did wrong.
type faulty struct{ msg string }

func (f *faulty) Error() string { return f.msg }

func late(w io.Writer, tty bool, msg string) {
	if tty {
		_, _ = io.WriteString(w, msg+"\r\n")
		return
	}
	_ = bulk.WriteFrame(w, bulk.FrameError, []byte(msg))
}

// errBroke: the way to the node broke, not what runs there.
var errBroke = errors.New("the stream broke")

// frameBegin is the first frame for our own client: one byte, 1 if the stream
// begins with the first byte of output.
const frameBegin byte = 17

// frameWarn is words for its user.
const frameWarn byte = 18

// frames copies an agent's frames to a client until the exit frame, with nil, or
// the end, with io.EOF.
func frames(w io.Writer, r io.Reader, tty bool) error {
	br := bufio.NewReaderSize(r, 32<<10)
	var b [8 + bulk.MaxFrame]byte
	for {
		if _, err := io.ReadFull(br, b[:8]); errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return io.EOF
		} else if err != nil {
			return fmt.Errorf("%w: %w", errBroke, err)
		}
		n := binary.BigEndian.Uint32(b[4:8])
		if n > bulk.MaxFrame {
			return fmt.Errorf("%w: a frame of %d bytes", errBroke, n)
		}
		if _, err := io.ReadFull(br, b[8:8+n]); err != nil {
			return fmt.Errorf("%w: %w", errBroke, err)
		}
		switch b[0] {
		case bulk.FrameExit:
			return nil
		case bulk.FrameError:
			return errors.New(string(b[8 : 8+n]))
		}
		out := b[:8+n]
		if tty {
			out = b[8 : 8+n]
		}
		if _, err := w.Write(out); err != nil {
			return nil //nolint:nilerr // the client left
		}
	}
}

// flusher sends each write at once.
type flusher struct {
	http.ResponseWriter
	c *http.ResponseController
}

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = f.c.Flush()
	}
	return n, err
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) error {
	snap, t, err := s.task(w, r)
	if err != nil {
		return err
	}
	in, q := r.URL.Query(), url.Values{}
	for _, k := range []string{"stdout", "stderr", "follow", "timestamps"} {
		if boolean(in, k) {
			q.Set(k, "1")
		}
	}
	for _, k := range []string{"since", "until"} {
		n, err := moment(in.Get(k))
		if err != nil {
			return err
		}
		if n != 0 {
			q.Set(k, strconv.FormatInt(n, 10))
		}
	}
	if in.Get("tail") != "" {
		q.Set("tail", in.Get("tail"))
	}
	if q.Get("stdout")+q.Get("stderr") == "" {
		return refuse(http.StatusBadRequest, "Bad parameters: you must choose at least one stream")
	}
	tty := request(snap, t).Tty
	resp, err := s.agent(r, t.NodeId, http.MethodGet, "/v1/tasks/"+hexID(t)+"/logs?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fromAgent(t.NodeId, resp)
	}
	defer func() { _ = resp.Body.Close() }()
	kind := "raw-stream"
	if !tty && api(r) >= 42 {
		kind = "multiplexed-stream"
	}
	w.Header().Set("Content-Type", "application/vnd.docker."+kind)
	w.WriteHeader(http.StatusOK)
	out := flusher{w, http.NewResponseController(w)}
	_ = out.c.Flush()
	if err := frames(out, resp.Body, tty); err != nil && !errors.Is(err, io.EOF) && r.Context().Err() == nil {
		late(out, tty, err.Error())
	}
	return nil
}
