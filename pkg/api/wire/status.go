package wire

import (
	"encoding/json"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// statuses are how refusals of each kind are answered: over docker's API with
// docker's status, where docker has one, and over the fleet API with connect's code.
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

// Status is the HTTP status of an answer that is a refusal of this kind.
func Status(k dv1.Error_Kind) int {
	if s, ok := statuses[k]; ok {
		return s.http
	}
	return http.StatusInternalServerError
}

// Code is connect's code of a refusal of this kind.
func Code(k dv1.Error_Kind) connect.Code {
	if s, ok := statuses[k]; ok {
		return s.code
	}
	return connect.CodeInternal
}

// Word is how an enum's value is shown to people and read from them: in lower case.
func Word(v interface{ String() string }) string { return strings.ToLower(v.String()) }

// Refuse answers with an error in docker's form, {"message": ...}. Who is asked to wait
// is told for how long.
func Refuse(w http.ResponseWriter, code int, message string) {
	if code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message}) // who left needs no answer
}
