package client

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/client"
	"go.opentelemetry.io/otel/trace/noop"
)

// fleet answers on a socket, and gives a client of it.
func fleet(t *testing.T, h http.HandlerFunc) client.APIClient {
	t.Helper()
	dir, err := os.MkdirTemp("", "dc") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "drover.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	c, err := Target{Host: "unix://" + path}.Docker(noop.NewTracerProvider())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// The leader was lost after it had started the container: a run goes on when there
// is another one, which knows that from the key.
func TestAStartIsAskedAgainWithItsKeyUntilThereIsALeader(t *testing.T) {
	var keys []string
	c := fleet(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/start") {
			return
		}
		if keys = append(keys, r.Header.Get("Drover-Idempotency-Key")); len(keys) < 3 {
			w.Header().Set("Retry-After", "1")
			w.Header().Set("Drover-Undecided", "1")
			http.Error(w, `{"message":"the controllers have no leader"}`, http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	if _, err := c.ContainerStart(t.Context(), "web", client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(keys) != 3 || keys[0] == "" || keys[1] != keys[0] || keys[2] != keys[0] {
		t.Errorf("asked with the keys %q", keys)
	}
}

// A run that has begun goes on, too, if nobody was asked to start its container yet.
func TestACommandThatHasBegunIsNotGivenUpForLackOfALeader(t *testing.T) {
	seen.Store(0)
	t.Cleanup(func() { seen.Store(0) })
	asked := map[string]int{}
	c := fleet(t, func(w http.ResponseWriter, r *http.Request) {
		what := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		if asked[what]++; what != "json" && asked[what] < 3 {
			w.Header().Set("Retry-After", "1")
			http.Error(w, `{"message":"the controllers have no leader"}`, http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Drover-Index", "7")
		_, _ = w.Write([]byte("{}"))
	})
	if _, err := c.ContainerStart(t.Context(), "web", client.ContainerStartOptions{}); err == nil || asked["start"] != 1 {
		t.Errorf("a command that had not begun asked %d times: %v", asked["start"], err)
	}
	if _, err := c.ContainerInspect(t.Context(), "web", client.ContainerInspectOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ContainerStart(t.Context(), "web", client.ContainerStartOptions{}); err != nil {
		t.Errorf("a command that had begun asked %d times: %v", asked["start"], err)
	}
}

// What will not be other in a moment is said at once.
func TestANodeThatDoesNotAnswerIsNotAskedForAgain(t *testing.T) {
	asked := 0
	c := fleet(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/start") {
			asked++
			http.Error(w, `{"message":"node n1 does not answer"}`, http.StatusServiceUnavailable)
		}
	})
	if _, err := c.ContainerStart(t.Context(), "web", client.ContainerStartOptions{}); err == nil || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}
