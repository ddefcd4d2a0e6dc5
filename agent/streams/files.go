package streams

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/bulk"
)

// files returns a handler that needs files of tasks.
func files(h handler) handler {
	return func(s *server, w http.ResponseWriter, r *http.Request) {
		if s.files == nil {
			refuse(w, &bulk.StatusError{Code: http.StatusNotImplemented, Message: "this node has no files of tasks"})
			return
		}
		h(s, w, r)
	}
}

// refuseFiles tells a task that is missing from a path that is.
func refuseFiles(w http.ResponseWriter, err error) {
	if errors.Is(err, task.ErrNotFound) {
		err = &bulk.StatusError{Code: http.StatusGone, Message: err.Error()}
	}
	refuse(w, err)
}

func describe(w http.ResponseWriter, st *container.PathStat) error {
	b, err := json.Marshal(st)
	if err == nil {
		w.Header().Set(bulk.HeaderPathStat, base64.StdEncoding.EncodeToString(b))
	}
	return err
}

func (s *server) readPath(w http.ResponseWriter, r *http.Request) {
	id, path := r.PathValue("id"), r.URL.Query().Get("path")
	if r.Method == http.MethodHead {
		st, err := s.files.StatPath(r.Context(), id, path)
		if err == nil {
			err = describe(w, st)
		}
		if err != nil {
			refuseFiles(w, err)
		}
		return
	}
	all, st, err := s.files.ReadPath(r.Context(), id, path)
	if err == nil {
		err = describe(w, st)
	}
	s.send(w, "application/x-tar", all, err)
}

func (s *server) export(w http.ResponseWriter, r *http.Request) {
	all, err := s.files.Export(r.Context(), r.PathValue("id"))
	s.send(w, "application/x-tar", all, err)
}

func (s *server) changes(w http.ResponseWriter, r *http.Request) {
	all, err := s.files.Changes(r.Context(), r.PathValue("id"))
	s.send(w, "application/json", all, err)
}

// send answers with a stream, unless there was an error. What breaks off does not look
// like an end.
func (s *server) send(w http.ResponseWriter, kind string, all io.ReadCloser, err error) {
	if all != nil {
		defer func() { _ = all.Close() }()
	}
	if err != nil {
		refuseFiles(w, err)
		return
	}
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(http.StatusOK)
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{all}, make([]byte, bulk.MaxFrame)); err != nil {
		s.log.Debug("a task's files were not sent to the end", "err", err)
		panic(http.ErrAbortHandler)
	}
}

func (s *server) writePath(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	o := task.WriteOptions{NoOverwriteDir: flag(q.Get("nooverwrite")), Chown: flag(q.Get("chown"))}
	body := upload{r.Body, http.NewResponseController(w)}
	if err := s.files.WritePath(r.Context(), r.PathValue("id"), q.Get("path"), o, body); err != nil {
		refuseFiles(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// upload is a request's body. Close ends what is still read of it, but not at once: who
// sends it should have the answer rather than a broken connection.
type upload struct {
	io.Reader
	c *http.ResponseController
}

// Close implements io.Closer.
func (u upload) Close() error { return u.c.SetReadDeadline(time.Now().Add(bulk.Linger)) }
