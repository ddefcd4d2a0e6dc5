package fleet_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/fleet/fleettest"
)

func TestAsk(t *testing.T) {
	f := fleettest.New(t, "a", "b")
	f.HandleAgent("n0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, `{"message":"`+r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("Content-Type")+" "+string(b)+`"}`)
	}))
	for body, want := range map[string]string{"": "DELETE /v1/x?y=1  ", "1": "DELETE /v1/x?y=1 application/json 1"} {
		sent := []byte(body)
		if body == "" {
			sent = nil
		}
		resp, err := fleet.Ask(t.Context(), f, "n0", http.MethodDelete, "/v1/x?y=1", sent)
		if err != nil {
			t.Fatal(err)
		}
		if got := fleet.Refusal(resp); resp.StatusCode != http.StatusTeapot || got != want {
			t.Errorf("%d %q, want %q", resp.StatusCode, got, want)
		}
		_ = resp.Body.Close()
	}

	f.Silence("n0", time.Now().Add(-time.Minute))
	_, err := fleet.Ask(t.Context(), f, "n0", http.MethodGet, "/", nil)
	var silent *fleet.SilentError
	if !errors.As(err, &silent) || silent.Node != "n0" || !strings.Contains(err.Error(), "node n0 has not answered for 1m0s") {
		t.Errorf("a silent node: %v", err)
	}
	_, err = fleet.Ask(t.Context(), f, "nobody", http.MethodGet, "/", nil)
	var unreachable *fleet.UnreachableError
	if !errors.As(err, &unreachable) || unreachable.Node != "nobody" {
		t.Errorf("a node that is not there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := fleet.Ask(ctx, f, "n1", http.MethodGet, "/", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("asked by who left: %v", err)
	}
}
