package engineapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types/common"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/fields"
)

// ErrNoLeader says that a Fleet found no controller that decides. Asking again
// later, with the same key, does no harm.
var ErrNoLeader = errors.New("the controllers have no leader: a majority of them must reach each other")

// ErrUndecided goes with ErrNoLeader where a leader was asked that is no more.
var ErrUndecided = errors.New("whether this was done is not known: the last leader was lost meanwhile")

// apiError is an answer with a status of its own.
type apiError struct {
	code int
	msg  string
}

func (e *apiError) Error() string { return e.msg }

func refuse(code int, format string, args ...any) error {
	return &apiError{code, fmt.Sprintf(format, args...)}
}

// decided turns the leader's refusal into docker's status.
func decided(e *dv1.Error) error {
	return &apiError{wire.Status(e.Kind), e.Message}
}

func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	code := http.StatusInternalServerError
	var e *apiError
	var f *fields.Error
	switch {
	case errors.As(err, &e):
		code = e.code
	case errors.As(err, &f):
		if code = http.StatusBadRequest; f.Unavailable {
			code = http.StatusNotImplemented
		}
	case errors.Is(err, ErrNoLeader):
		code = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
		if errors.Is(err, ErrUndecided) {
			w.Header().Set(wire.HeaderUndecided, "1")
		}
	case r.Context().Err() != nil:
		return // nobody reads it
	case errors.Is(err, context.DeadlineExceeded):
		code = http.StatusServiceUnavailable
	}
	if code == http.StatusNotModified {
		w.WriteHeader(code)
		return
	}
	if code >= 500 && code != http.StatusNotImplemented {
		s.Logger.Warn("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	_ = answer(w, code, common.ErrorResponse{Message: err.Error()})
}

// fromAgent turns an agent's refusal into an error. It closes the body.
func fromAgent(node string, resp *http.Response) error {
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var m common.ErrorResponse
	if json.Unmarshal(b, &m) != nil || m.Message == "" {
		m.Message = fmt.Sprintf("node %s answered %s", node, resp.Status)
	}
	return &apiError{resp.StatusCode, m.Message}
}

// silent tells since when a node has not answered, as docker's clients should read it.
func (s *server) silent(node string) (string, bool) {
	since, ok := s.Fleet.Silent()[node]
	if !ok {
		return "", false
	}
	return time.Since(time.Unix(0, since)).Round(time.Second).String(), true
}

func (s *server) notYet(_ http.ResponseWriter, r *http.Request) error {
	first, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch first {
	case "swarm", "nodes", "services", "tasks", "secrets", "configs":
		return refuse(http.StatusServiceUnavailable, "This node is not a swarm manager. drover node ls lists this fleet")
	case "build", "session", "grpc":
		return refuse(http.StatusNotImplemented, "this fleet has no built-in builder: docker buildx create --use --driver docker-container, then build --load")
	case "plugins":
		return refuse(http.StatusNotImplemented, "plugins are not available on a fleet")
	case "networks", "volumes":
		// docker's inspect asks for these when nothing else has the name.
		if r.Method == http.MethodGet && rest != "" {
			return refuse(http.StatusNotFound, "%s %s not found", strings.TrimSuffix(first, "s"), rest)
		}
	case "containers":
		if strings.Contains(rest, "/checkpoints") {
			return refuse(http.StatusNotImplemented, "checkpoints are not available on a fleet")
		}
	}
	return refuse(http.StatusNotImplemented, "%s %s is not available on this fleet yet", r.Method, r.URL.Path)
}

func (s *server) buildPrune(w http.ResponseWriter, _ *http.Request) error {
	return answer(w, http.StatusOK, struct{}{})
}

func (s *server) plugins(w http.ResponseWriter, _ *http.Request) error {
	return answer(w, http.StatusOK, []struct{}{})
}
