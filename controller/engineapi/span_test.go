package engineapi

import (
	"net/http"
	"net/http/httptest"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/drover/drover/controller/fleet/fleettest"
)

// A span is named after its route, whatever stands for the route's segments: there are as
// many names as routes.
func TestSpansAreNamedAfterRoutes(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	tp := sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))
	f := fleettest.New(t, "web-1")
	h := f.As(fleettest.Admin, New(Options{Fleet: f, Version: "test", Tracer: tp.Tracer("")}))
	for _, c := range []struct{ method, path, want string }{
		{"GET", "/v1.44/containers/json", "engineapi GET /containers/json"},
		{"GET", "/containers/web/json", "engineapi GET /containers/{id}/json"},
		{"HEAD", "/_ping", "engineapi HEAD /_ping"},
		{"DELETE", "/containers/web", "engineapi DELETE /containers/{id}"},
		{"GET", "/exec/0123/json", "engineapi GET /exec/{id}/json"},
		{"GET", "/images/reg:5000/shop/db:2/json", "engineapi GET /images/{name...}/json"},
		{"DELETE", "/images/reg:5000/shop/db:2", "engineapi DELETE /images/{name...}"},
		{"PUT", "/anything/at/all", "engineapi PUT /"},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, c.path, http.NoBody)
		h.ServeHTTP(httptest.NewRecorder(), r)
		ended := spans.Ended()
		if got := ended[len(ended)-1].Name(); got != c.want {
			t.Errorf("%s %s is the span %q, want %q", c.method, c.path, got, c.want)
		}
	}
}
