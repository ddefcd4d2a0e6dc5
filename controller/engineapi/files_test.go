package engineapi

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/drover/drover/pkg/bulk"
)

// serveFiles serves a task's files as agents do: /etc is a directory with one file, and
// paths in it say how they fail.
func serveFiles(mux *http.ServeMux) {
	refused := map[string]int{"/none": http.StatusNotFound, "/gone": http.StatusGone, "/readonly": http.StatusBadRequest, "/broken": http.StatusInternalServerError}
	mux.HandleFunc("GET /v1/tasks/{id}/archive", func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Query().Get("path")
		if code := refused[path]; code != 0 {
			_ = answer(w, code, map[string]string{"message": "the agent's words"})
			return
		}
		w.Header().Set(bulk.HeaderPathStat, "stat of "+path)
		w.Header().Set("Content-Type", "application/x-tar")
		_, _ = io.WriteString(w, "tar of "+path)
		if path == "/breaks" {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	mux.HandleFunc("PUT /v1/tasks/{id}/archive", func(w http.ResponseWriter, r *http.Request) {
		if code := refused[r.URL.Query().Get("path")]; code != 0 { // before all was read
			_ = answer(w, code, map[string]string{"message": "the agent's words"})
			return
		}
		b, _ := io.ReadAll(r.Body)
		if !strings.HasPrefix(string(b), "tar") {
			_ = answer(w, http.StatusInternalServerError, map[string]string{"message": "no tar: " + string(b)})
			return
		}
		w.Header().Set("Said", r.URL.RawQuery)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /v1/tasks/{id}/export", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "all") })
	mux.HandleFunc("GET /v1/tasks/{id}/changes", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `[{"Path":"/etc","Kind":0}]`)
	})
}

func TestFilesOfAContainer(t *testing.T) {
	a := newAPI(t)
	a.run("web")
	for _, c := range []struct {
		method, path, body string
		code               int
		words              string
	}{
		{"GET", "/containers/web/archive?path=/etc", "", 200, "tar of /etc"},
		{"GET", "/containers/web/archive?path=/etc/a%20b%26c", "", 200, "tar of /etc/a b&c"},
		{"HEAD", "/containers/web/archive?path=/etc", "", 200, ""},
		{"HEAD", "/containers/web/archive?path=/none", "", 404, ""},
		{"GET", "/containers/web/archive?path=/none", "", 404, "Could not find the file /none in container web"},
		{"GET", "/containers/web/archive?path=/gone", "", 404, "No such container: web"},
		{"GET", "/containers/web/archive?path=/broken", "", 500, "the agent's words"},
		{"GET", "/containers/web/archive", "", 400, "bad parameter: path cannot be empty"},
		{"GET", "/containers/nope/archive?path=/", "", 404, "No such container: nope"},
		{"PUT", "/containers/web/archive?path=/etc&noOverwriteDirNonDir=true&copyUIDGID=1", "tar", 200, ""},
		{"PUT", "/containers/web/archive?path=/readonly", strings.Repeat("x", 4<<20), 400, "the agent's words"},
		{"PUT", "/containers/web/archive?path=/none", "", 404, "Could not find the file /none in container web"},
		{"PUT", "/containers/web/archive", "tar", 400, "bad parameter: path cannot be empty"},
		{"GET", "/containers/web/export", "", 200, "all"},
		{"GET", "/containers/web/changes", "", 200, `[{"Path":"/etc","Kind":0}]`},
	} {
		got := a.do(c.method, c.path, c.body)
		a.is(got, c.method+" "+c.path, c.code, c.words)
		if has := got.header.Get(bulk.HeaderPathStat) != ""; has != (got.code == 200 && c.method != "PUT" && strings.Contains(c.path, "archive")) {
			t.Errorf("%s %s: described %v", c.method, c.path, has)
		}
	}
}

// An archive that broke off at its node must not end well at its reader.
func TestAnArchiveThatBreaksOff(t *testing.T) {
	a := newAPI(t)
	a.run("web")
	resp, err := http.Get(a.url + "/containers/web/archive?path=/breaks")
	if err != nil { // before it began
		return
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q, %v", b, err)
	}
}
