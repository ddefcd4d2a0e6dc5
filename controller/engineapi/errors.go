package engineapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types/common"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/images"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/fields"
)

// apiError is an error with an HTTP status of its own.
type apiError struct {
	code int
	msg  string
}

func (e *apiError) Error() string { return e.msg }

func refuse(code int, format string, args ...any) error {
	return &apiError{code, fmt.Sprintf(format, args...)}
}

// decided converts the leader's refusal into an error with docker's status.
func decided(e *dv1.Error) error {
	return &apiError{wire.Status(e.Kind), e.Message}
}

// status returns the HTTP status for an error.
func status(err error) int {
	var e *apiError
	var field *fields.Error
	var img *images.Error
	var refused *create.Error
	switch {
	case errors.As(err, &e):
		return e.code
	case errors.As(err, &field) && field.Unavailable:
		return http.StatusNotImplemented
	case field != nil:
		return http.StatusBadRequest
	case errors.As(err, &img):
		return wire.Status(img.Kind)
	case errors.As(err, &refused):
		return wire.Status(refused.Kind)
	case errors.Is(err, consensus.ErrKeyReused):
		return http.StatusConflict
	case errors.Is(err, fleet.ErrNoLeader), errors.Is(err, context.DeadlineExceeded), fleet.Unanswered(err):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func (s *server) fail(w http.ResponseWriter, r *http.Request, err error) {
	code := status(err)
	switch {
	case errors.Is(err, fleet.ErrNoLeader):
		w.Header().Set("Retry-After", "1")
		if errors.Is(err, fleet.ErrUndecided) {
			w.Header().Set(wire.HeaderUndecided, "1")
		}
	case code >= 500 && r.Context().Err() != nil:
		return // nobody reads it
	}
	if code == http.StatusNotModified {
		w.WriteHeader(code)
		return
	}
	if code >= 500 && code != http.StatusNotImplemented {
		s.Logger.Warn("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	_ = answer(w, code, common.ErrorResponse{Message: err.Error()})
}

// fromAgent converts an agent's refusal into an error. It closes the body.
func fromAgent(node string, resp *http.Response) error {
	defer func() { _ = resp.Body.Close() }()
	msg := fleet.Refusal(resp)
	if msg == "" {
		msg = fmt.Sprintf("node %s answered %s", node, resp.Status)
	}
	return &apiError{resp.StatusCode, msg}
}

// observed returns a task's latest status, nil if none was reported.
func (s *server) observed(ctx context.Context, t *dv1.Task) *dv1.TaskStatus {
	id := hexID(t)
	return s.Fleet.Observe(ctx, fleet.Query{Tasks: []string{id}}).Status(id)
}

// silent reports whether a node is silent, and for how long.
func (s *server) silent(ctx context.Context, node string) (string, bool) {
	return silence(s.Fleet.Observe(ctx, fleet.Query{}), node)
}

func silence(o *fleet.Observations, node string) (string, bool) {
	since, ok := o.Silent(node)
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
		if name, ok := strings.CutSuffix(rest, "/json"); ok && r.Method == http.MethodGet { // docker inspect asks for one of anything
			return refuse(http.StatusNotFound, "plugin %q not found", name)
		}
		return refuse(http.StatusNotImplemented, "plugins are not available on a fleet")
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
