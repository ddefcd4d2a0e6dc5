package peer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/route"
)

// surface is an API of a test's own.
type surface route.Table[http.HandlerFunc]

func (s surface) Match(r *http.Request) (route.Route, http.Handler) {
	h, _, ok := route.Table[http.HandlerFunc](s).Match(r.Method, r.URL.Path)
	if !ok {
		return route.Route{Who: route.User}, http.NotFoundHandler()
	}
	return h.Route, h.Handle
}

// limit of the streamed body that has one.
const limit = 1 << 20

// bodies is a surface with a route for each kind of body: load is handed on as it comes,
// and so is limited, up to a limit; small is held.
func bodies(h http.HandlerFunc) surface {
	row := func(pattern string, b route.Body) route.Handled[http.HandlerFunc] {
		return route.Handled[http.HandlerFunc]{Route: route.Route{Method: "POST", Pattern: pattern, At: route.Leader, Who: route.User, Body: b}, Handle: h}
	}
	return surface{row("/load", route.Streamed(0)), row("/limited", route.Streamed(limit)), row("/small", route.Bounded(64<<10))}
}

// leading serves an API as a controller that leads does, and returns its address.
func leading(t *testing.T, api route.API) string {
	t.Helper()
	m := newMember()
	m.leads("me")
	srv := httptest.NewUnstartedServer(as("spiffe://fleet/controller/c1", follower(t, m).Callers(api, http.NotFoundHandler())))
	srv.EnableHTTP2 = true
	srv.Config.HTTP2 = &http.HTTP2Config{MaxReadFrameSize: wire.PeerFrame, MaxReceiveBufferPerStream: wire.PeerRequestWindow, MaxReceiveBufferPerConnection: wire.PeerConnWindow}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// following is a follower of the leader at addr, and its own API for callers.
func following(t *testing.T, addr string) (*member, http.Handler) {
	t.Helper()
	m := newMember()
	m.addrs = map[string]string{"l": addr}
	m.leads("l")
	return m, as(caller, follower(t, m).API(bodies(func(http.ResponseWriter, *http.Request) { t.Error("a follower answered itself") })))
}

// source is a body of n bytes that counts what is taken of it.
type source struct {
	n, most int64
	taken   atomic.Int64
	over    chan struct{} // closed when more than most was taken
}

func newSource(n, most int64) *source { return &source{n: n, most: most, over: make(chan struct{})} }

func (s *source) Read(b []byte) (int, error) {
	before := s.taken.Load()
	if before == s.n {
		return 0, io.EOF
	}
	k := min(int64(len(b)), s.n-before)
	for i := range b[:k] {
		b[i] = byte((before + int64(i)) >> 9)
	}
	if after := s.taken.Add(k); before <= s.most && after > s.most {
		close(s.over)
	}
	return int(k), nil
}

// stands fails if more than its most is taken of a body within a moment.
func (s *source) stands(t *testing.T) {
	t.Helper()
	select {
	case <-s.over:
		t.Fatalf("more than %d KiB of a body were taken, of which the handler read none", s.most>>10)
	case <-time.After(200 * time.Millisecond):
	}
}

func TestAStreamedBodyIsTakenAsItsHandlerReadsIt(t *testing.T) {
	const long, first = 64 << 20, 32 << 10
	began, goOn := make(chan struct{}), make(chan struct{})
	_, h := following(t, leading(t, bodies(func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		_, _ = io.CopyN(sum, r.Body, first)
		close(began)
		<-goOn
		n, err := io.Copy(sum, r.Body)
		_, _ = fmt.Fprintf(w, "%d %v %x", n+first, err, sum.Sum(nil))
	})))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	body := newSource(long, first+wire.PeerRequestWindow+2*wire.PeerFrame)
	w := httptest.NewRecorder()
	var sent sync.WaitGroup
	sent.Go(func() { h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "POST", "/load", body)) })
	<-began
	body.stands(t)
	close(goOn)
	sent.Wait()
	runtime.ReadMemStats(&after)
	sum := sha256.New()
	_, _ = io.Copy(sum, newSource(long, long))
	if want := fmt.Sprintf("%d <nil> %x", long, sum.Sum(nil)); w.Code != http.StatusOK || w.Body.String() != want {
		t.Errorf("%d %s, want %s", w.Code, w.Body, want)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > long { // held, it takes several times its length
		t.Errorf("%d MiB were allocated for a body of %d MiB", took>>20, long>>20)
	}
}

// Many streams stand still, on the connection that other streams take, too.
func TestStreamsThatStandStillHoldUpNoOthers(t *testing.T) {
	began := make(chan struct{})
	_, h := following(t, leading(t, bodies(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Still") == "" {
			n, err := io.Copy(io.Discard, r.Body)
			_, _ = fmt.Fprint(w, n, err)
			return
		}
		began <- struct{}{}
		<-r.Context().Done()
	})))
	ctx, cancel := context.WithCancel(t.Context())
	var sent sync.WaitGroup
	t.Cleanup(func() { cancel(); sent.Wait() })
	for range 16 {
		body := newSource(64<<20, wire.PeerRequestWindow+2*wire.PeerFrame)
		sent.Go(func() {
			r := httptest.NewRequestWithContext(ctx, "POST", "/load", body)
			r.Header.Set("Still", "1")
			h.ServeHTTP(httptest.NewRecorder(), r)
		})
		<-began
		t.Cleanup(func() { body.stands(t) })
	}
	for path, n := range map[string]int64{"/load": 8 << 20, "/limited": limit, "/small": 64 << 10} {
		soon, enough := context.WithTimeout(t.Context(), patience)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(soon, "POST", path, newSource(n, n)))
		enough()
		if want := fmt.Sprint(n, nil); w.Body.String() != want {
			t.Errorf("%s: %d %q, want %q", path, w.Code, w.Body, want)
		}
	}
}

// fronts are a follower's callers: docker's over HTTP/1.1, others over HTTP/2.
func fronts(t *testing.T, f func(t *testing.T, serve func(http.Handler) *httptest.Server)) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", h2), func(t *testing.T) {
			f(t, func(h http.Handler) *httptest.Server {
				srv := httptest.NewUnstartedServer(h)
				srv.EnableHTTP2 = h2
				srv.StartTLS()
				t.Cleanup(srv.Close)
				return srv
			})
		})
	}
}

// A body that was begun is nowhere else, and the caller may wait for an answer before
// it sends more: it is told at once that nobody knows.
func TestAStreamThatLosesItsLeaderIsNotAskedAgain(t *testing.T) {
	for name, lose := range map[string]func(m *member){
		"it dies": func(m *member) {
			m.leads("next")
			panic(http.ErrAbortHandler)
		},
		"it dies, and there is no other": func(m *member) {
			m.leads("")
			panic(http.ErrAbortHandler)
		},
		"it is deposed and hangs": func(m *member) { m.leads("next") },
	} {
		t.Run(name, func(t *testing.T) {
			fronts(t, func(t *testing.T, serve func(http.Handler) *httptest.Server) {
				var m *member
				m, h := following(t, leading(t, bodies(func(_ http.ResponseWriter, r *http.Request) {
					_, _ = io.ReadFull(r.Body, make([]byte, 5))
					lose(m)
					<-r.Context().Done()
				})))
				next := leading(t, bodies(func(http.ResponseWriter, *http.Request) { t.Error("the next leader was asked") }))
				m.change(func() { m.addrs["next"] = next })
				srv := serve(h)
				in, out := io.Pipe() // which stays open
				defer out.Close()
				var sent sync.WaitGroup
				defer sent.Wait()
				sent.Go(func() { _, _ = out.Write([]byte("first")) })
				ctx, cancel := context.WithTimeout(t.Context(), patience-time.Second)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, "POST", srv.URL+"/load", in)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := srv.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get(wire.HeaderUndecided) == "" || resp.Header.Get("Retry-After") == "" {
					t.Errorf("%s %v", resp.Status, resp.Header)
				}
			})
		})
	}
}

// What reached nobody is whole, and waits for who comes next.
func TestAStreamThatReachedNoLeaderIsSentToTheNext(t *testing.T) {
	fronts(t, func(t *testing.T, serve func(http.Handler) *httptest.Server) {
		next := leading(t, bodies(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
		gone := httptest.NewServer(http.NotFoundHandler())
		gone.Close()
		m, h := following(t, gone.Listener.Addr().String())
		m.change(func() { m.addrs["next"] = next })
		srv := serve(h)
		elected := time.AfterFunc(100*time.Millisecond, func() { m.leads("next") })
		defer elected.Stop()
		resp, err := srv.Client().Post(srv.URL+"/load", "", strings.NewReader("all of it"))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); string(b) != "all of it" || err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s %q %v", resp.Status, b, err)
		}
	})
}

// An answer begins while the body still comes, as a load's does.
func TestAnAnswerMayBeginBeforeAStreamedBodyEnds(t *testing.T) {
	fronts(t, func(t *testing.T, serve func(http.Handler) *httptest.Server) {
		_, h := following(t, leading(t, bodies(echo)))
		srv := serve(h)
		in, out := io.Pipe()
		var sent sync.WaitGroup
		defer sent.Wait()
		heard := make(chan struct{})
		sent.Go(func() {
			_, _ = out.Write([]byte("one "))
			<-heard
			_, _ = out.Write([]byte("two"))
			_ = out.Close()
		})
		resp, err := srv.Client().Post(srv.URL+"/load", "", in)
		if err != nil {
			close(heard)
			t.Fatal(err)
		}
		defer resp.Body.Close()
		first := make([]byte, 4)
		_, err = io.ReadFull(resp.Body, first)
		close(heard)
		rest, err2 := io.ReadAll(resp.Body)
		if string(first)+string(rest) != "one two" || err != nil || err2 != nil {
			t.Errorf("%q %q %v %v", first, rest, err, err2)
		}
	})
}

func TestAStreamedBodyEndsAtItsLimit(t *testing.T) {
	fronts(t, func(t *testing.T, serve func(http.Handler) *httptest.Server) {
		var got atomic.Pointer[error]
		api := bodies(func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			got.Store(&err)
			if over := (*http.MaxBytesError)(nil); errors.As(err, &over) {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
			}
			_, _ = fmt.Fprint(w, n)
		})
		_, follows := following(t, leading(t, api))
		m := newMember()
		m.leads("me")
		for who, h := range map[string]http.Handler{"a follower": follows, "the leader": as(caller, follower(t, m).API(limited(api)))} {
			srv := serve(h)
			for _, c := range []struct {
				n     int64
				known bool // its length
				want  int
			}{{limit, true, 200}, {limit, false, 200}, {limit + 1, true, 413}, {limit + 1, false, 413}} {
				got.Store(nil)
				var body io.Reader = newSource(c.n, c.n)
				if c.known {
					body = bytes.NewReader(make([]byte, c.n))
				}
				resp, err := srv.Client().Post(srv.URL+"/limited", "", body)
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != c.want {
					t.Errorf("%s: %d bytes, known %v: %s", who, c.n, c.known, resp.Status)
				}
				if err := got.Load(); c.want == 413 && err != nil && *err == nil {
					t.Errorf("%s: a body of %d bytes came to its end", who, c.n)
				}
			}
		}
	})
}

// limited has routes bound their handlers' bodies, as APIs do.
func limited(s surface) (out surface) {
	for _, h := range s {
		handle := h.Handle
		h.Handle = func(w http.ResponseWriter, r *http.Request) {
			r.Body = h.Body.Limit(w, r.Body)
			handle(w, r)
		}
		out = append(out, h)
	}
	return out
}

// A transport that holds on to a body gets nothing of it for another try's sake.
func TestATryThatIsOverReadsNothing(t *testing.T) {
	r := httptest.NewRequest("POST", "/load", strings.NewReader("all"))
	p, err := newPayload(httptest.NewRecorder(), r, route.Streamed(0))
	if err != nil {
		t.Fatal(err)
	}
	first := p.open()
	if again, err := p.end(); !again || err != nil {
		t.Errorf("after a try that read nothing: %v %v", again, err)
	}
	if n, err := first.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errTryOver) {
		t.Errorf("a try that is over reads %d bytes: %v", n, err)
	}
	if b, err := io.ReadAll(p.open()); string(b) != "all" || err != nil {
		t.Errorf("the next one reads %q: %v", b, err)
	}
	if again, err := p.end(); again || err != nil {
		t.Errorf("after a try that read all: %v %v", again, err)
	}
}
