package wire

import (
	"encoding/json"
	"net/http"
	"strings"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Status is the HTTP status of an answer that is a refusal of this kind: docker's,
// where docker has one.
func Status(k dv1.Error_Kind) int {
	switch k {
	case dv1.Error_INVALID:
		return http.StatusBadRequest
	case dv1.Error_NOT_FOUND, dv1.Error_NO_IMAGE:
		return http.StatusNotFound
	case dv1.Error_CONFLICT, dv1.Error_NAME_TAKEN, dv1.Error_STALE_KEY:
		return http.StatusConflict
	case dv1.Error_UNAVAILABLE:
		return http.StatusServiceUnavailable
	case dv1.Error_FORBIDDEN:
		return http.StatusForbidden
	case dv1.Error_NOT_MODIFIED:
		return http.StatusNotModified
	case dv1.Error_AGENTS_ONLY:
		return http.StatusNotAcceptable
	}
	return http.StatusInternalServerError // PORT_TAKEN too, as docker
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
