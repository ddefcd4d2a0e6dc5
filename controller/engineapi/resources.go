package engineapi

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"runtime"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// maxTop bounds the list of a container's processes, in bytes.
const maxTop = 16 << 20

func (s *server) top(w http.ResponseWriter, r *http.Request) error {
	_, t, err := s.task(w, r)
	if err != nil {
		return err
	}
	if !s.running(r, t) {
		return notRunning(t)
	}
	q := url.Values{"ps_args": {r.URL.Query().Get("ps_args")}}
	resp, err := s.agent(r, t.NodeId, http.MethodGet, "/v1/tasks/"+hexID(t)+"/top?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode == http.StatusConflict:
		return notRunning(t)
	case resp.StatusCode != http.StatusOK:
		return fromAgent(t.NodeId, resp)
	}
	list, err := io.ReadAll(io.LimitReader(resp.Body, maxTop))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(list)
	return nil
}

// stats answers what a container uses: one sample, or one a second until it is removed.
func (s *server) stats(w http.ResponseWriter, r *http.Request) error {
	_, t, err := s.task(w, r)
	if err != nil {
		return err
	}
	asked := r.URL.Query()
	live := !asked.Has("stream") || boolean(asked, "stream")
	if !live && !s.running(r, t) {
		return answer(w, http.StatusOK, container.StatsResponse{ID: hexID(t), Name: "/" + t.Name, OSType: runtime.GOOS})
	}
	q := url.Values{"name": {"/" + t.Name}}
	switch {
	case live:
		q.Set("stream", "1")
	case apiVersion(r) < 41 || !boolean(asked, "one-shot"):
		q.Set("previous", "1")
	}
	open := func() (*http.Response, error) {
		resp, err := s.agent(r, t.NodeId, http.MethodGet, "/v1/tasks/"+hexID(t)+"/stats?"+q.Encode(), nil)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fromAgent(t.NodeId, resp)
		}
		return resp, err
	}
	resp, err := open()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := flusher{w, http.NewResponseController(w)}
	for {
		samples(out, resp.Body)
		_ = resp.Body.Close()
		if !live || r.Context().Err() != nil || !s.known(r.Context(), hexID(t)) {
			return nil
		}
		// The connection to the node broke, or its agent is being restarted.
		resp, err = reach(r.Context(), s, mute{}, stream{node: t.NodeId, task: hexID(t), again: true}, func(context.Context) (*http.Response, error) { return open() })
		if err != nil {
			return nil // it is too late to say so
		}
	}
}

// maxSample bounds a sample, in bytes.
const maxSample = 1 << 20

// samples passes whole lines on: a sample that broke off is no sample.
func samples(to io.Writer, from io.Reader) {
	lines := bufio.NewScanner(from)
	lines.Buffer(nil, maxSample)
	lines.Split(wholeLines)
	for lines.Scan() {
		if _, err := to.Write(lines.Bytes()); err != nil {
			return
		}
	}
}

// wholeLines splits into lines with their ends, without an unfinished last one.
func wholeLines(b []byte, _ bool) (int, []byte, error) {
	n := bytes.IndexByte(b, '\n') + 1
	if n == 0 {
		return 0, nil, nil
	}
	return n, b[:n], nil
}

// mute is a client to whom nothing can be said beside the output.
type mute struct{ sink }

func (mute) warn(string) {}
func (mute) warns() bool { return false }

// running reports whether a task runs: its node may know so before the log does.
func (s *server) running(r *http.Request, t *dv1.Task) bool {
	return state.Running(t) || s.observed(r.Context(), t).GetPhase() == dv1.Phase_ACTIVE
}

func notRunning(t *dv1.Task) error {
	return refuse(http.StatusConflict, "container %s is not running", hexID(t))
}
