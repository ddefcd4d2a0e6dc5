package streams

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/drover/drover/agent/task/faketask"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
)

// Who may do what, route by route: whoever adds one says so here, too.
func TestRoutesAreForControllersAndContentForNodes(t *testing.T) {
	var want []string
	for _, r := range []string{
		"POST /v1/tasks/{id}/attach", "GET /v1/tasks/{id}/logs", "GET /v1/tasks/{id}/wait", "POST /v1/tasks/{id}/kill", "POST /v1/tasks/{id}/resize",
		"GET /v1/tasks/{id}/top", "GET /v1/tasks/{id}/stats",
		"GET /v1/tasks/{id}/archive", "PUT /v1/tasks/{id}/archive", "GET /v1/tasks/{id}/export", "GET /v1/tasks/{id}/changes",
		"POST /v1/tasks/{id}/exec 1048576", "POST /v1/exec/{id}/start", "POST /v1/exec/{id}/resize", "GET /v1/exec/{id}",
		"POST /v1/images/pull 1048576", "DELETE /v1/images/{digest}", "POST /v1/volumes/sizes 4194304", "POST /v1/volumes/{id}/fetch 1048576",
		"GET /v1/network/check", "GET /v1/network/ways", "GET /v1/probe",
	} {
		want = append(want, "controller: "+r)
	}
	want = append(want, "node: GET /v2/{name...}/manifests/{reference}", "node: GET /v2/{name...}/blobs/{digest}", "node: GET /v1/volumes/{id}/files")
	for i, r := range Routes {
		got := r.Who.String() + ": " + r.String()
		if r.Body.Max > 0 {
			got += fmt.Sprintf(" %d", r.Body.Max)
		}
		if i >= len(want) || got != want[i] {
			t.Errorf("a route that is not in the test: %s", got)
		}
	}
	if len(Routes) != len(want) {
		t.Errorf("%d routes, want %d", len(Routes), len(want))
	}
}

// Each route is answered for whom the table says, and for nobody else; what is in no
// route is there for nobody, and to strangers not even that is told.
func TestOnlyWhomTheTableNamesIsAnswered(t *testing.T) {
	content := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "content") })
	e := faketask.New()
	h := Handler(e, e.Images, Options{Log: slog.New(slog.DiscardHandler), Files: &someFiles{}, Peers: content, Network: &asked{}, Volumes: &disk{}, Granted: func(*http.Request) (string, error) { return bulk.GrantOfVolume("x"), nil }})
	ask := func(kind, method, path string, body int64) int {
		r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(strings.Repeat("x", int(body))))
		if kind != "" {
			// Roles come from no caller's own words.
			r = r.WithContext(pki.WithPrincipal(r.Context(), pki.Principal{Kind: kind, ID: "1", Roles: []string{pki.KindController, pki.RoleAdmin}}))
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	kinds := map[string]route.Who{"": 0, pki.KindUser: 0, pki.KindLocal: 0, pki.KindToken: 0, pki.KindNode: route.Node, pki.KindController: route.Controller}
	fill := regexp.MustCompile(`\{[a-z]+(\.\.\.)?\}`)
	for kind, is := range kinds {
		for _, rt := range Routes {
			path := fill.ReplaceAllString(rt.Pattern, "x")
			code := ask(kind, rt.Method, path, 0)
			if may := is&rt.Who != 0; may == (code == http.StatusForbidden) {
				t.Errorf("%s by %q: %d", rt, kind, code)
			}
			if long := ask(kind, rt.Method, path, rt.Body.Max+1); is&rt.Who != 0 && rt.Body.Max > 0 && long != http.StatusRequestEntityTooLarge {
				t.Errorf("%s with more than %d bytes: %d", rt, rt.Body.Max, long)
			}
		}
		want := http.StatusForbidden
		if is != 0 {
			want = http.StatusNotFound
		}
		for _, path := range []string{"/", "/v1/tasks/x", "/v1/exec/x/start/", "/v2/", "/v2/x/tags/list", "/v1/exec/x/../../probe"} {
			for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
				if code := ask(kind, method, path, 0); code != want {
					t.Errorf("%s %s by %q: %d, want %d", method, path, kind, code, want)
				}
			}
		}
	}
	for path, code := range map[string]int{"/v1/probe": 204, "/v2/x/blobs/y": 403} {
		if got := ask(pki.KindController, http.MethodGet, path, 0); got != code {
			t.Errorf("%s by a controller: %d, want %d", path, got, code)
		}
	}
	if got := ask(pki.KindNode, http.MethodHead, "/v2/docker.io/library/x/manifests/sha256:y", 0); got != 200 {
		t.Errorf("a manifest's head by a node: %d", got)
	}
}
