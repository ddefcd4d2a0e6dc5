package engineapi

import (
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/drover/drover/controller/fleet"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// filesOf returns the task whose files a request is about, once its node has them.
func (s *server) filesOf(w http.ResponseWriter, r *http.Request) (*dv1.Task, error) {
	snap, t, err := s.task(w, r)
	if err != nil {
		return nil, err
	}
	if err := s.within(r, snap, t, s.shapeOf(snap, t).req.HostConfig); err != nil {
		return nil, err
	}
	if since, is := s.silent(r.Context(), t.NodeId); is {
		return nil, refuse(http.StatusServiceUnavailable, "node %s has not answered for %s; the container is there and may still be running", s.nodeName(r.Context(), t.NodeId), since)
	}
	return t, s.Fleet.WaitTask(r.Context(), hexID(t), func(t *dv1.Task, st *dv1.TaskStatus) bool { return t == nil || st.GetPhase() >= dv1.Phase_READY })
}

func pathOf(r *http.Request) (string, error) {
	path := r.URL.Query().Get("path")
	if path == "" {
		return "", refuse(http.StatusBadRequest, "bad parameter: path cannot be empty")
	}
	return path, nil
}

// notFiles is a node's refusal, in docker's words. It closes the body.
func notFiles(r *http.Request, t *dv1.Task, resp *http.Response) error {
	err := fromAgent(t.NodeId, resp)
	switch resp.StatusCode {
	case http.StatusNotFound:
		return refuse(http.StatusNotFound, "Could not find the file %s in container %s", r.URL.Query().Get("path"), r.PathValue("id"))
	case http.StatusGone:
		return refuse(http.StatusNotFound, "No such container: %s", r.PathValue("id"))
	}
	return err
}

func (s *server) readPath(w http.ResponseWriter, r *http.Request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	return s.files(w, r, r.Method, "archive?"+url.Values{"path": {path}}.Encode())
}

func (s *server) export(w http.ResponseWriter, r *http.Request) error {
	return s.files(w, r, http.MethodGet, "export")
}

func (s *server) changes(w http.ResponseWriter, r *http.Request) error {
	return s.files(w, r, http.MethodGet, "changes")
}

// files answers with what the task's node does.
func (s *server) files(w http.ResponseWriter, r *http.Request, method, what string) error {
	t, err := s.filesOf(w, r)
	if err != nil {
		return err
	}
	resp, err := s.agent(r, t.NodeId, method, "/v1/tasks/"+hexID(t)+"/"+what, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return notFiles(r, t, resp)
	}
	defer func() { _ = resp.Body.Close() }()
	for _, name := range []string{"Content-Type", bulk.HeaderPathStat} {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	w.WriteHeader(http.StatusOK)
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, resp.Body, make([]byte, bulk.MaxFrame)); err != nil {
		s.Logger.Debug("a container's files were not sent to the end", "node", t.NodeId, "err", err)
		panic(http.ErrAbortHandler) // what breaks off must not look like an end
	}
	return nil
}

func (s *server) writePath(w http.ResponseWriter, r *http.Request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	t, err := s.filesOf(w, r)
	if err != nil {
		return err
	}
	q := url.Values{"path": {path}}
	for name, to := range map[string]string{"noOverwriteDirNonDir": "nooverwrite", "copyUIDGID": "chown"} {
		if boolean(r.URL.Query(), name) {
			q.Set(to, "1")
		}
	}
	resp, err := fleet.Send(r.Context(), s.Fleet, t.NodeId, http.MethodPut, "/v1/tasks/"+hexID(t)+"/archive?"+q.Encode(), "application/x-tar", r.Body)
	// Who is answered in the middle of what it sends is not waited for long.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bulk.Linger))
	if err != nil {
		return s.named(r.Context(), err)
	}
	if resp.StatusCode >= 300 {
		return notFiles(r, t, resp)
	}
	_ = resp.Body.Close()
	w.WriteHeader(http.StatusOK)
	return nil
}
