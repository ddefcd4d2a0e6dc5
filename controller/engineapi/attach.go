package engineapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
)

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
			err = nil // the node keeps the output for a while, for clients that have yet to read its end
		}
	}
	if err != nil {
		return err
	}
	in := r.URL.Query()
	if snap != nil && boolean(in, "stdin") {
		if err := s.within(r, snap, t, s.shapeOf(snap, t).req.HostConfig); err != nil {
			return err
		}
	}
	q := url.Values{}
	for _, k := range []string{"stdin", "stdout", "stderr", "logs", "stream"} {
		if boolean(in, k) {
			q.Set(k, "1")
		}
	}
	if t.Attempt == 0 {
		q.Set("logs", "1") // from the first byte: an attach that arrives late must lose nothing
	}
	at := r.Header.Get(wire.HeaderFrom) // position of a broken stream, which its node keeps for a while
	if since, is := s.silent(r.Context(), t.NodeId); is && at == "" {
		return refuse(http.StatusServiceUnavailable, "node %s has not answered for %s; the container is there and may still be running", t.NodeId, since)
	}
	open := func(ctx context.Context, from string) (*bulk.Conn, error) {
		if from != "" {
			q.Set("from", from)
		} else if err := s.Fleet.WaitTask(ctx, hexID(t), func(t *dv1.Task, st *dv1.TaskStatus) bool { return t == nil || st.GetPhase() >= dv1.Phase_READY }); err != nil {
			return nil, err // the agent may not have received the task yet
		}
		return s.upgrade(ctx, t.NodeId, "/v1/tasks/"+hexID(t)+"/attach?"+q.Encode())
	}
	return s.hijack(w, r, stream{
		tty: s.shapeOf(snap, t).req.Tty, stdin: q.Has("stdin"), keys: in.Get("detachKeys"), whole: q.Has("logs"), live: q.Has("stream"),
		node: t.NodeId, task: hexID(t), from: at, again: true,
	}, open)
}

// upgrade opens a stream with a node.
func (s *server) upgrade(ctx context.Context, node, path string) (*bulk.Conn, error) {
	if since, is := s.silent(ctx, node); is {
		return nil, refuse(http.StatusServiceUnavailable, "node %s has not answered for %s; the container is there and may still be running", s.nodeName(ctx, node), since)
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
		return nil, refuse(http.StatusServiceUnavailable, "node %s does not answer: %v", s.nodeName(ctx, node), err)
	}
	return conn, err
}

// flusher flushes each write.
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
	st := stream{tty: s.shapeOf(snap, t).req.Tty, node: t.NodeId, task: hexID(t), from: r.Header.Get(wire.HeaderFrom), again: true}
	open := func(from string) (*http.Response, error) {
		if from != "" {
			q.Set("from", from)
		}
		resp, err := s.agent(r, t.NodeId, http.MethodGet, "/v1/tasks/"+hexID(t)+"/logs?"+q.Encode(), nil)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fromAgent(t.NodeId, resp)
		}
		return resp, err
	}
	resp, err := open(st.from)
	if err != nil {
		return err
	}
	kind := "raw-stream"
	if !st.tty && apiVersion(r) >= 42 {
		kind = "multiplexed-stream"
	}
	w.Header().Set("Content-Type", "application/vnd.docker."+kind)
	w.WriteHeader(http.StatusOK)
	v := &page{flusher: flusher{w, http.NewResponseController(w)}, tty: st.tty, framed: r.Header.Get(wire.HeaderFrames) != ""}
	v.begin()
	var at bulk.Progress
	at.At(st.from)
	for {
		_, err := pass(v, bulk.NewFrameReader(resp.Body), &at)
		_ = resp.Body.Close()
		switch {
		case err == nil, errors.Is(err, errLeft), errors.Is(err, io.EOF), r.Context().Err() != nil:
			return nil
		case !errors.Is(err, errBroke):
			v.fail(err.Error())
			return nil
		}
		from := at.Again()
		resp, err = reach(r.Context(), s, v, st, func(context.Context) (*http.Response, error) { return open(from) })
		if err != nil {
			v.fail("the output is truncated: " + err.Error())
			return nil
		}
	}
}

// page sends a log to a client whose response ends with the log.
type page struct {
	flusher
	tty, framed bool
}

func (p *page) begin() {
	_ = p.c.Flush()
	if p.framed {
		begin := bulk.BeginWhole
		if p.tty {
			begin |= bulk.BeginRaw
		}
		_ = bulk.WriteFrame(p, bulk.FrameBegin, []byte{begin})
	}
}

func (p *page) frame(kind byte, b []byte) error {
	switch {
	case p.framed:
		return bulk.WriteFrame(p, kind, b)
	case kind != bulk.FrameStdout && kind != bulk.FrameStderr:
		return nil
	case p.tty:
		_, err := p.Write(b)
		return err
	}
	return bulk.WriteFrame(p, kind, b)
}

func (p *page) warn(msg string) {
	if p.framed {
		_ = bulk.WriteFrame(p, bulk.FrameWarn, []byte(msg))
	}
}
func (p *page) fail(msg string) { late(p, p.tty && !p.framed, msg) }
func (p *page) warns() bool     { return p.framed }
