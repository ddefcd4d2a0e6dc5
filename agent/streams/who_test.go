package streams

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/drover/drover/agent/task/faketask"
	"github.com/drover/drover/pkg/pki"
)

// Who isn't known to be a controller or a node may do nothing, and a node may only
// read content.
func TestOnlyControllersAndNodesAreAnswered(t *testing.T) {
	content := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "content") })
	h := Handler(faketask.New(), Options{Log: slog.New(slog.DiscardHandler), Peers: content})
	for _, c := range []struct {
		kind, method, path string
		code               int
	}{
		{"", http.MethodGet, "/v1/probe", 403},
		{"", http.MethodDelete, "/v1/images/sha256:x", 403},
		{"", http.MethodGet, "/v2/x/blobs/y", 403},
		{pki.KindUser, http.MethodGet, "/v1/probe", 403},
		{pki.KindLocal, http.MethodPost, "/v1/tasks/x/kill", 403},
		{pki.KindNode, http.MethodPost, "/v1/tasks/x/kill", 403},
		{pki.KindNode, http.MethodDelete, "/v1/images/sha256:x", 403},
		{pki.KindNode, http.MethodGet, "/v2/x/blobs/y", 200},
		{pki.KindController, http.MethodGet, "/v1/probe", 204},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, c.path, nil)
		if c.kind != "" {
			r = r.WithContext(pki.WithPrincipal(r.Context(), pki.Principal{Kind: c.kind, ID: "1"}))
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.code {
			t.Errorf("%s %s by %q: %d, want %d", c.method, c.path, c.kind, w.Code, c.code)
		}
	}
}
