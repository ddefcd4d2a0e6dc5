package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/drover/drover/pkg/api/wire"
)

// Docker's client would ping before its first request.
func TestTheFirstRequestIsTheCommandsOwn(t *testing.T) {
	var asked []string
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		_, _ = io.WriteString(w, "[]")
	}))
	c, err := s.Docker(noop.NewTracerProvider())
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Ping(t.Context(), client.PingOptions{NegotiateAPIVersion: true, ForceNegotiate: true})
	if err != nil || r.APIVersion != client.MaxAPIVersion || r.OSType != "linux" {
		t.Errorf("the fleet is %+v (%v)", r, err)
	}
	if _, err := c.ContainerList(t.Context(), client.ContainerListOptions{}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"GET /v" + client.MaxAPIVersion + "/containers/json"}; !slices.Equal(asked, want) {
		t.Errorf("asked were %q, not %q", asked, want)
	}
}

// A controller of an earlier release refuses our version of the API once; the request is
// sent again as it was, and what follows it speaks the controller's, streams too.
func TestAnOlderControllerIsSpokenToInItsVersion(t *testing.T) {
	type asked struct{ path, body, key string }
	var all []asked
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		all = append(all, asked{r.URL.Path, string(b), r.Header.Get(wire.HeaderKey)})
		w.Header().Set("Api-Version", "1.50")
		if strings.HasPrefix(r.URL.Path, "/v"+client.MaxAPIVersion+"/") {
			http.Error(w, `{"message":"client version is too new"}`, http.StatusBadRequest)
			return
		}
		if strings.HasSuffix(r.URL.Path, "/bad/start") {
			http.Error(w, `{"message":"bad"}`, http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"Id":"x"}`)
	}))
	c, err := s.Docker(noop.NewTracerProvider())
	if err != nil {
		t.Fatal(err)
	}
	made, err := c.ContainerCreate(t.Context(), client.ContainerCreateOptions{Config: &container.Config{Image: "busybox"}})
	if err != nil || made.ID != "x" {
		t.Fatalf("created %+v (%v), asked %q", made, err, all)
	}
	if len(all) != 2 || all[1].path != "/v1.50/containers/create" || all[1].body != all[0].body || all[0].body == "" || all[1].key != all[0].key {
		t.Errorf("asked was %q", all)
	}
	if _, err := c.ContainerAttach(t.Context(), "y", client.ContainerAttachOptions{Stdin: true}); err == nil || all[2].path != "/v1.50/containers/y/attach" {
		t.Errorf("a stream is asked for at %q (%v)", all[2].path, err)
	}
	if _, err := c.ContainerStart(t.Context(), "bad", client.ContainerStartOptions{}); err == nil || len(all) != 4 {
		t.Errorf("what is refused for another reason was asked for %d times (%v)", len(all)-3, err)
	}
}

// host is a fake of what is behind a transport: this host's controller, and others once
// the session has switched to them.
type host struct {
	s       *Session
	answers time.Duration // of requests; 0: never
	pings   bool          // are answered

	mu    sync.Mutex // guards asked
	asked []string
}

func (h *host) RoundTrip(r *http.Request) (*http.Response, error) {
	where, delay := "here", h.answers
	if h.s.frozen.Load() {
		where, delay = "far", time.Millisecond
	} else if r.Method == http.MethodHead && h.pings {
		delay = time.Millisecond
	}
	body := ""
	if r.Body != nil {
		b, _ := io.ReadAll(r.Body)
		body = string(b)
	}
	h.mu.Lock()
	h.asked = append(h.asked, strings.TrimSpace(r.Method+" "+where+" "+body))
	h.mu.Unlock()
	if delay == 0 {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	select {
	case <-time.After(delay):
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(where)), Request: r}, nil
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// A controller that accepts connections and never answers is left for another one after a
// second; one that is only slow is not.
func TestAControllerThatNeverAnswersIsLeft(t *testing.T) {
	for _, c := range []struct {
		name    string
		answers time.Duration
		pings   bool
		once    bool // the body can be read only once
		alone   bool // there is no other controller
		want    string
		took    time.Duration
		asked   []string
	}{
		{"it answers", 10 * time.Millisecond, true, false, false, "here", 10 * time.Millisecond, []string{"POST here body"}},
		{"it is slow", 5 * time.Second, true, false, false, "here", 5 * time.Second, []string{"POST here body", "HEAD here"}},
		{"it never answers", 0, false, false, false, "far", doubtAfter + pingWithin + time.Millisecond, []string{"POST here body", "HEAD here", "POST far body"}},
		{"and the body can't be sent twice", 0, false, true, false, "far", doubtAfter + pingWithin + time.Millisecond, []string{"HEAD here", "POST far body"}},
		{"it is slow, and the only one", 5 * time.Second, false, false, true, "here", 5 * time.Second, []string{"POST here body"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &Session{}
			h := &host{s: s, answers: c.answers, pings: c.pings}
			tr := &transport{s: s, next: h, far: !c.alone}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://drover/x", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			if c.once {
				r.GetBody = nil
			}
			begin := time.Now()
			resp, err := tr.RoundTrip(r)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			b, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if string(b) != c.want || err != nil || time.Since(begin) != c.took || !slices.Equal(h.asked, c.asked) {
				t.Errorf("%s: %q (%v) after %v, asked %q", c.name, b, err, time.Since(begin), h.asked)
			}
			h.asked = nil
			if resp, err := tr.RoundTrip(r); err == nil {
				_ = resp.Body.Close()
			}
			if len(h.asked) != 1 {
				t.Errorf("%s: the next request was %q", c.name, h.asked)
			}
		})
	}
}

// Whoever interrupts a command does not make it look elsewhere.
func TestAnInterruptLeavesNoController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Session{}
		tr := &transport{s: s, next: &host{s: s}, far: true}
		ctx, cancel := context.WithTimeout(t.Context(), doubtAfter+time.Millisecond)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://drover/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.RoundTrip(r); !errors.Is(err, context.DeadlineExceeded) || s.frozen.Load() {
			t.Errorf("%v, and it is left: %v", err, s.frozen.Load())
		}
	})
}

// Where nothing listens, dialing has been retried already: a command that has not begun
// does not go on looking.
func TestNobodyIsLookedForTwice(t *testing.T) {
	dials := 0
	s := &Session{}
	tr := &transport{s: s, next: roundTripper(func(*http.Request) (*http.Response, error) {
		dials++
		return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
	})}
	ask := func() error {
		_, err := again(t.Context(), func(ctx context.Context) (any, error) {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://drover/x", nil)
			if err != nil {
				return nil, err
			}
			resp, err := tr.RoundTrip(r)
			if err != nil {
				return nil, errors.Join(err, io.ErrUnexpectedEOF) // as broken as it gets
			}
			return nil, resp.Body.Close()
		})
		return err
	}
	if err := ask(); err == nil || dials != 1 {
		t.Errorf("dialed %d times (%v)", dials, err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
