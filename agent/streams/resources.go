package streams

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
)

func (s *server) top(w http.ResponseWriter, r *http.Request) {
	list, err := s.tasks.Top(r.Context(), r.PathValue("id"), r.URL.Query().Get("ps_args"))
	if err != nil {
		refuse(w, err)
		return
	}
	writeJSON(w, http.StatusOK, list)
}

const (
	// sampleEvery is the interval of a stream of samples, as in docker.
	sampleEvery = time.Second
	// sampleApart is the interval between the two samples of an answer that is no stream.
	// Docker's is a second; shares of CPUs are right with less, since all clocks involved
	// count nanoseconds.
	sampleApart = 100 * time.Millisecond
)

// stats answers what a task uses. As with docker, what does not run uses nothing, and a
// stream goes on until the task is removed.
func (s *server) stats(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	stream := flag(q.Get("stream"))
	var last container.StatsResponse
	if flag(q.Get("previous")) {
		var err error
		if last, err = s.sample(r, last); err != nil {
			refuse(w, err)
			return
		}
		if !last.Read.IsZero() && !after(r, sampleApart) {
			return
		}
	}
	last, err := s.sample(r, last)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	rc, enc := http.NewResponseController(w), json.NewEncoder(w)
	for enc.Encode(last) == nil && stream && rc.Flush() == nil && after(r, sampleEvery) {
		if last, err = s.sample(r, last); err != nil {
			return
		}
	}
}

// sample reads one that follows the sample before; the zero time says that the task does
// not run.
func (s *server) sample(r *http.Request, before container.StatsResponse) (container.StatsResponse, error) {
	now, err := s.tasks.Stats(r.Context(), r.PathValue("id"))
	if errors.Is(err, task.ErrNotRunning) {
		now, before, err = container.StatsResponse{}, container.StatsResponse{}, nil
	}
	now.ID, now.Name, now.OSType = r.PathValue("id"), r.URL.Query().Get("name"), "linux"
	now.PreRead, now.PreCPUStats = before.Read, before.CPUStats
	return now, err
}

// after blocks for a while, and reports whether the caller is still there.
func after(r *http.Request, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.Context().Done():
		return false
	}
}
