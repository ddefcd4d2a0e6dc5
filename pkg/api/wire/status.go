package wire

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// statuses maps each kind of refusal to its answer: docker's HTTP status over docker's
// API (where docker has one), and connect's code over the fleet API.
var statuses = map[dv1.Error_Kind]struct {
	http int
	code connect.Code
}{
	dv1.Error_INTERNAL:     {http.StatusInternalServerError, connect.CodeInternal},
	dv1.Error_INVALID:      {http.StatusBadRequest, connect.CodeInvalidArgument},
	dv1.Error_NOT_FOUND:    {http.StatusNotFound, connect.CodeNotFound},
	dv1.Error_NO_IMAGE:     {http.StatusNotFound, connect.CodeNotFound},
	dv1.Error_CONFLICT:     {http.StatusConflict, connect.CodeFailedPrecondition},
	dv1.Error_NAME_TAKEN:   {http.StatusConflict, connect.CodeAlreadyExists},
	dv1.Error_PORT_TAKEN:   {http.StatusInternalServerError, connect.CodeFailedPrecondition},
	dv1.Error_UNAVAILABLE:  {http.StatusServiceUnavailable, connect.CodeUnavailable},
	dv1.Error_FORBIDDEN:    {http.StatusForbidden, connect.CodePermissionDenied},
	dv1.Error_NOT_MODIFIED: {http.StatusNotModified, connect.CodeAlreadyExists},
	dv1.Error_AGENTS_ONLY:  {http.StatusNotAcceptable, connect.CodeFailedPrecondition},
	dv1.Error_STALE_KEY:    {http.StatusConflict, connect.CodeFailedPrecondition},
}

// Status returns the HTTP status for a refusal of this kind.
func Status(k dv1.Error_Kind) int {
	if s, ok := statuses[k]; ok {
		return s.http
	}
	return http.StatusInternalServerError
}

// Code returns connect's code for a refusal of this kind.
func Code(k dv1.Error_Kind) connect.Code {
	if s, ok := statuses[k]; ok {
		return s.code
	}
	return connect.CodeInternal
}

// KindOf returns the kind of a refusal over the fleet API, INTERNAL for any other error
// and for none.
func KindOf(err error) dv1.Error_Kind {
	var e *connect.Error
	if errors.As(err, &e) {
		for _, d := range e.Details() {
			if m, err := d.Value(); err == nil {
				if r, ok := m.(*dv1.Error); ok {
					return r.Kind
				}
			}
		}
	}
	return dv1.Error_INTERNAL
}

// Word returns an enum's value in lower case, as people read and write it.
func Word(v interface{ String() string }) string { return strings.ToLower(v.String()) }

// Refuse answers with an error in docker's form, {"message": ...}. A caller that should
// retry is told when (Retry-After).
func Refuse(w http.ResponseWriter, code int, message string) {
	if code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message}) // a client that left needs no answer
}
