package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
)

// fleet serves on a socket, and returns a client of it.
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
	c, err := (&Session{Target: Target{Host: "unix://" + path}}).Docker(noop.NewTracerProvider())
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
		if keys = append(keys, r.Header.Get(wire.HeaderKey)); len(keys) < 3 {
			w.Header().Set("Retry-After", "1")
			w.Header().Set(wire.HeaderUndecided, "1")
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

// So is every other change to a container that is not a stream.
func TestChangesAreAskedAgainWithTheirKey(t *testing.T) {
	for path, change := range map[string]func(context.Context, client.APIClient) error{
		"stop": func(ctx context.Context, c client.APIClient) error {
			_, err := c.ContainerStop(ctx, "web", client.ContainerStopOptions{})
			return err
		},
		"restart": func(ctx context.Context, c client.APIClient) error {
			_, err := c.ContainerRestart(ctx, "web", client.ContainerRestartOptions{})
			return err
		},
		"kill": func(ctx context.Context, c client.APIClient) error {
			_, err := c.ContainerKill(ctx, "web", client.ContainerKillOptions{})
			return err
		},
		"rename": func(ctx context.Context, c client.APIClient) error {
			_, err := c.ContainerRename(ctx, "web", client.ContainerRenameOptions{NewName: "new"})
			return err
		},
		"web": func(ctx context.Context, c client.APIClient) error {
			_, err := c.ContainerRemove(ctx, "web", client.ContainerRemoveOptions{})
			return err
		},
	} {
		t.Run(path, func(t *testing.T) {
			var keys []string
			c := fleet(t, func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasSuffix(r.URL.Path, "/"+path) {
					return
				}
				if keys = append(keys, r.Header.Get(wire.HeaderKey)); len(keys) == 1 {
					panic(http.ErrAbortHandler) // the controller dies
				}
				w.WriteHeader(http.StatusNoContent)
			})
			if err := change(t.Context(), c); err != nil {
				t.Error(err)
			}
			if len(keys) != 2 || keys[0] == "" || keys[1] != keys[0] {
				t.Errorf("asked with the keys %q", keys)
			}
		})
	}
}

// A run that has begun goes on, too, if nobody was asked to start its container yet.
func TestACommandThatHasBegunIsNotGivenUpForLackOfALeader(t *testing.T) {
	asked := map[string]int{}
	c := fleet(t, func(w http.ResponseWriter, r *http.Request) {
		what := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		if asked[what]++; what != "json" && asked[what] < 3 {
			w.Header().Set("Retry-After", "1")
			http.Error(w, `{"message":"the controllers have no leader"}`, http.StatusServiceUnavailable)
			return
		}
		w.Header().Set(wire.HeaderIndex, "7")
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

// What is in progress goes on when its controller is gone and the next one is only
// starting: "ask again" is no end.
func TestAStartingControllerEndsNothingThatIsInProgress(t *testing.T) {
	frames := func(w io.Writer, frames ...string) {
		for i := 0; i < len(frames); i += 2 {
			_ = bulk.WriteFrame(w, frames[i][0], []byte(frames[i+1]))
		}
	}
	kind := func(k byte) string { return string([]byte{k}) }
	part := [][]string{
		{kind(bulk.FrameBegin), "\x00", kind(bulk.FramePos), "a", kind(bulk.FrameStdout), "one", kind(bulk.FramePos), "b"},
		{kind(bulk.FrameBegin), "\x00", kind(bulk.FramePos), "b", kind(bulk.FrameStdout), "two", kind(bulk.FrameExit), ""},
	}
	const starting = 3 // answers
	asked := map[string]*atomic.Int32{"wait": {}, "attach": {}, "logs": {}}
	c := fleet(t, func(w http.ResponseWriter, r *http.Request) {
		what := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		n := asked[what]
		if n == nil {
			return
		}
		i := int(n.Add(1))
		last := i == starting+2
		if i > 1 && !last {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"message":"this controller is starting: its log is not ready yet"}`)
			return
		}
		script := part[0]
		if last {
			script = part[1]
		}
		switch what {
		case "attach":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
			frames(conn, script...)
			if last {
				_, _ = io.Copy(io.Discard, conn) // until it is read
			}
			_ = conn.Close()
			return
		case "logs":
			frames(w, script...)
		case "wait":
			if last {
				_, _ = io.WriteString(w, `{"StatusCode":7}`)
			}
		}
		_ = http.NewResponseController(w).Flush()
		if !last {
			panic(http.ErrAbortHandler) // as a controller that dies
		}
	})
	output := func(what string, r io.Reader) {
		var b bytes.Buffer
		if _, err := stdcopy.StdCopy(&b, &b, r); err != nil || b.String() != "onetwo" {
			t.Errorf("%s gave %q: %v", what, b.String(), err)
		}
	}
	w := c.ContainerWait(t.Context(), "web", client.ContainerWaitOptions{})
	select {
	case r := <-w.Result:
		if r.StatusCode != 7 {
			t.Errorf("the wait ended with %v", r)
		}
	case err := <-w.Error:
		t.Errorf("the wait failed: %v", err)
	}
	h, err := c.ContainerAttach(t.Context(), "web", client.ContainerAttachOptions{Stream: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	output("attach", h.Reader)
	h.Close()
	l, err := c.ContainerLogs(t.Context(), "web", client.ContainerLogsOptions{ShowStdout: true, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	output("logs", l)
	_ = l.Close()
	for what, n := range asked {
		if n.Load() != starting+2 {
			t.Errorf("%s was asked for %d times, want %d", what, n.Load(), starting+2)
		}
	}
}

// waits returns waits that the fleet accepts, and that break after some time.
type waits struct {
	client.APIClient
	took  bool
	lasts time.Duration
	left  int // that break
}

func (f *waits) ContainerWait(ctx context.Context, _ string, _ client.ContainerWaitOptions) client.ContainerWaitResult {
	if taken, ok := ctx.Value(underway{}).(*atomic.Bool); ok && f.took {
		taken.Store(true)
	}
	r := client.ContainerWaitResult{Result: make(chan container.WaitResponse, 1), Error: make(chan error, 1)}
	results, errs := make(chan container.WaitResponse, 1), make(chan error, 1)
	r.Result, r.Error = results, errs
	if f.left--; f.left < 0 {
		results <- container.WaitResponse{StatusCode: 7}
		return r
	}
	time.AfterFunc(f.lasts, func() { errs <- errors.New("broken") })
	return r
}

// A long wait outlives any number of controllers; one that nobody takes ends.
func TestAWaitIsTakenUpEachTimeItBreaks(t *testing.T) {
	for _, took := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := (&fleetClient{s: &Session{}, APIClient: &waits{took: took, lasts: time.Hour, left: 5}}).ContainerWait(t.Context(), "web", client.ContainerWaitOptions{})
			select {
			case r := <-w.Result:
				if !took || r.StatusCode != 7 {
					t.Errorf("a wait that nobody took gave %v", r)
				}
			case err := <-w.Error:
				if took {
					t.Errorf("a wait that was taken each time: %v", err)
				}
			}
		})
	}
}
