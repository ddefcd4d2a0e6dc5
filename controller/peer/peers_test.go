package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/dispatch"
	"github.com/drover/drover/controller/engineapi"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
)

// Who asks: an admin, or an agent.
const (
	caller = "spiffe://fleet/user/admin"
	agent  = "spiffe://fleet/node/n1"
)

// member is the log of a controller named me, as a test wants it to be.
type member struct {
	mu      sync.Mutex // guards the fields below
	snap    *state.Snapshot
	refuses error             // what the next proposal gets; nil: consensus.ErrNotLeader
	leader  string            // its id, "" for none
	addrs   map[string]string // by id
	changed chan struct{}
	looked  int // how often somebody looked who leads
}

func newMember() *member {
	m := &member{snap: state.NewStore().Snapshot(), changed: make(chan struct{})}
	m.apply(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: caller, Roles: []string{pki.RoleAdmin}}}},
		&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: agent, Roles: []string{pki.KindNode}}}})
	return m
}

func (m *member) change(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *member) leads(id string) { m.change(func() { m.leader = id }) }

func (m *member) apply(e ...*dv1.Effect) { m.catchUp(m.leader, e...) }

// catchUp has a leader and what it committed come at once.
func (m *member) catchUp(leader string, e ...*dv1.Effect) {
	m.change(func() {
		txn := state.NewTxn(m.snap)
		if err := txn.Apply(e...); err != nil {
			panic(err)
		}
		m.snap, m.leader = txn.View(), leader
	})
}

func (m *member) Propose(context.Context, *dv1.Command) (*dv1.CommandResult, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.refuses; err != nil {
		m.refuses = nil
		return nil, err
	}
	return nil, consensus.ErrNotLeader
}

func (m *member) Snapshot() *state.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.snap
}

func (m *member) WaitIndex(context.Context, uint64) (*state.Snapshot, error) {
	return m.Snapshot(), nil
}

func (m *member) LeadershipChanged() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *member) Leader() (addr, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.looked++
	return m.addrs[m.leader], m.leader
}

func (m *member) looks() int { m.mu.Lock(); defer m.mu.Unlock(); return m.looked }

func (m *member) IsLeader() bool  { _, id := m.Leader(); return id == "me" }
func (m *member) Ready() bool     { return m.IsLeader() }
func (m *member) Applied() uint64 { return 0 }
func (m *member) Term() uint64    { return 1 }

func (m *member) Verify() (uint64, error) {
	if !m.IsLeader() {
		return 0, consensus.ErrNotLeader
	}
	return m.Snapshot().Index(), nil
}

// docker has the routes of the Engine API, all with one handler.
type docker struct{ http.Handler }

func (d docker) Match(r *http.Request) (route.Route, http.Handler) {
	rt, _ := engineapi.New(engineapi.Options{}).Match(r)
	return rt, d.Handler
}

// api is the Engine API of a member's controller.
func api(t *testing.T, m *member) http.Handler {
	t.Helper()
	f := follower(t, m)
	return as(caller, f.API(engineapi.New(engineapi.Options{Fleet: f.fleet})))
}

// as has h asked by uri.
func as(uri string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(pki.WithPrincipal(r.Context(), pki.Principal{URI: uri})))
	})
}

// controller is what of one answers callers.
type controller struct {
	*Peers
	fleet *fleet.Fleet
}

// follower is a member's controller, whose relay runs until the test ends.
func follower(t *testing.T, m *member) *controller {
	t.Helper()
	local := fleet.NewLocal(fleet.LocalOptions{Log: m, Reports: dispatch.New(dispatch.Options{Log: m}),
		Dial: func(*dv1.Node) (*http.Client, error) { return nil, errors.New("no agent is here") }})
	ps := New(Options{Self: pki.Principal{ID: "me"}, Log: m, TLS: func(string, string) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	var ran sync.WaitGroup
	ran.Go(func() { _ = ps.Run(ctx) })
	t.Cleanup(func() { cancel(); ran.Wait(); ps.Close() })
	return &controller{ps, fleet.New(local, ps, m)}
}

func ask(h http.Handler, method, url string) (*httptest.ResponseRecorder, time.Duration) {
	w, began := httptest.NewRecorder(), time.Now()
	h.ServeHTTP(w, httptest.NewRequest(method, url, nil))
	return w, time.Since(began)
}

// web is a container that another controller made.
func web() []*dv1.Effect {
	return []*dv1.Effect{{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: bytes.Repeat([]byte{7}, 32), NodeId: "n1", Name: "web", Attempt: 1, Started: 1, Exit: &dv1.Exit{Attempt: 1, Code: 3}}}}}
}

// lookups are requests that the asked controller answers itself, by name.
var lookups = []struct{ method, url string }{
	{"GET", "/containers/web/logs?stdout=1"}, {"POST", "/containers/web/wait"}, {"POST", "/containers/web/kill"},
	{"POST", "/v1.41/containers/web/attach"}, {"POST", "/containers/web/resize?h=1&w=1"},
	{"GET", "/exec/" + strings.Repeat("07", 32) + "/json"},
}

// A client that names no index, as docker's own, asks a follower that lags, while
// the fleet has no leader.
func TestBeforeSomethingIsSaidNotToExistALeaderIsWaitedFor(t *testing.T) {
	for _, l := range lookups {
		t.Run(l.method+" "+l.url, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMember()
				h := api(t, m)
				time.AfterFunc(3*time.Second, func() { m.catchUp("me", web()...) })
				w, took := ask(h, l.method, l.url)
				if w.Code == http.StatusNotFound || w.Header().Get(wire.HeaderStale) != "" || took < 3*time.Second {
					t.Errorf("after %v: %d %s, stale %q", took, w.Code, w.Body, w.Header().Get(wire.HeaderStale))
				}
			})
		})
	}
}

func TestAnAnswerWithoutALeaderSaysSo(t *testing.T) {
	for _, l := range lookups {
		t.Run(l.method+" "+l.url, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := api(t, newMember())
				for _, least := range []time.Duration{patience, 0} { // it is waited for once
					w, took := ask(h, l.method, l.url)
					if w.Code != http.StatusNotFound || w.Header().Get(wire.HeaderStale) == "" || took < least || took > least+time.Second {
						t.Errorf("not there, after %v: %d %s, stale %q", took, w.Code, w.Body, w.Header().Get(wire.HeaderStale))
					}
				}
			})
			synctest.Test(t, func(t *testing.T) {
				m := newMember()
				m.apply(web()...)
				h := api(t, m)
				w, took := ask(h, l.method, l.url)
				if w.Code == http.StatusNotFound || w.Header().Get(wire.HeaderStale) == "" || took > time.Second+time.Second {
					t.Errorf("there, after %v: %d %s, stale %q", took, w.Code, w.Body, w.Header().Get(wire.HeaderStale))
				}
			})
		})
	}
}

// A list is the leader's to answer, and is not held up each time where none is left.
func TestALeaderThatIsGoneForGoodIsWaitedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := api(t, newMember())
		for _, least := range []time.Duration{patience, 0} {
			w, took := ask(h, "GET", "/containers/json")
			if w.Code != http.StatusOK || w.Header().Get(wire.HeaderStale) == "" || took < least || took > least+time.Second {
				t.Errorf("after %v: %d, stale %q", took, w.Code, w.Header().Get(wire.HeaderStale))
			}
		}
	})
}

// lead serves what a leader named l answers, and has m know its address.
func lead(t *testing.T, m *member, h http.HandlerFunc) {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	m.addrs = map[string]string{"l": srv.Listener.Addr().String()}
	m.leads("l")
}

// echo answers a stream with what comes in, as it comes.
func echo(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	_ = rc.Flush()
	b := make([]byte, 16<<10)
	for {
		n, err := r.Body.Read(b)
		if n > 0 {
			_, _ = w.Write(b[:n])
			_ = rc.Flush()
		}
		if err != nil {
			return
		}
	}
}

func TestASessionOutlivesItsFollowersDoubtsAndEndsWithAnotherLeader(t *testing.T) {
	m := newMember()
	lead(t, m, echo)
	f := follower(t, m)
	front := httptest.NewUnstartedServer(as(agent, f.Sessions(http.NotFoundHandler())))
	front.EnableHTTP2 = true
	front.StartTLS()
	t.Cleanup(front.Close)
	in, out := io.Pipe()
	defer out.Close()
	resp, err := front.Client().Post(front.URL+"/drover.v1.Session/Open", "application/connect+proto", in)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	said := func() error {
		if _, err := out.Write([]byte("beat")); err != nil {
			return err
		}
		_, err := io.ReadFull(resp.Body, make([]byte, 4))
		return err
	}
	for i := range 100 { // a session that is to end has the time to
		m.leads([]string{"", "l"}[i%2])
		if err := said(); err != nil {
			t.Fatalf("a follower that lost sight of its leader for a moment ended a session: %v", err)
		}
	}
	m.leads("other")
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the session ended as if its leader had ended it")
	}
}

// body is the longest that a request of the API has, and inFlight so many that they
// are more than a connection may have in flight.
const (
	body     = 192 << 10
	inFlight = 8
)

// stalled sends requests through a handler that nobody reads the body of.
func stalled(t *testing.T, h http.Handler, n int, begun <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var sent sync.WaitGroup
	for range n {
		sent.Go(func() {
			r := httptest.NewRequestWithContext(ctx, "POST", "/containers/web/stop", bytes.NewReader(make([]byte, body)))
			h.ServeHTTP(httptest.NewRecorder(), r)
		})
		<-begun
	}
	t.Cleanup(func() { cancel(); sent.Wait() })
}

func TestRequestsThatStallHoldUpNeitherProposalsNorSessions(t *testing.T) {
	m := newMember()
	begun := make(chan struct{})
	lead(t, m, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case prefix + "propose":
			_, _ = io.Copy(io.Discard, r.Body)
			send(w, &dv1.CommandResult{Name: "done"})
		case "/session":
			echo(w, r)
		default:
			begun <- struct{}{}
			<-r.Context().Done()
		}
	})
	f := follower(t, m)
	stalled(t, as(caller, f.API(docker{http.NotFoundHandler()})), inFlight, begun)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 40 { // more than a connection may have in flight
		res, err := f.Propose(ctx, &dv1.Command{Key: "k", Hash: make([]byte, 64<<10)})
		if err != nil || res.Name != "done" {
			t.Fatalf("a proposal: %v %v", res, err)
		}
	}
	in, out := io.Pipe()
	go func() {
		_, _ = out.Write(make([]byte, 2<<20))
		_ = out.Close()
	}()
	w := httptest.NewRecorder()
	as(agent, f.Sessions(http.NotFoundHandler())).ServeHTTP(w, httptest.NewRequestWithContext(ctx, "POST", "/session", in))
	if w.Body.Len() != 2<<20 {
		t.Errorf("a session passed %d bytes", w.Body.Len())
	}
}

func TestForwardedRequestsThatStallHoldUpNoOthers(t *testing.T) {
	m := newMember()
	m.leads("me")
	begun := make(chan struct{})
	srv := httptest.NewUnstartedServer(as("spiffe://fleet/controller/c1", follower(t, m).Callers(docker{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/containers/create" {
			_, _ = io.Copy(w, r.Body)
			return
		}
		begun <- struct{}{}
		<-r.Context().Done()
	})}, http.NotFoundHandler())))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	stalled(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if resp, err := srv.Client().Do(asPeer(r, srv.URL)); err == nil {
			_ = resp.Body.Close()
		}
	}), inFlight, begun)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp, err := srv.Client().Do(asPeer(httptest.NewRequestWithContext(ctx, "POST", "/containers/create", bytes.NewReader(make([]byte, body))), srv.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != body {
		t.Errorf("%d bytes came: %v", n, err)
	}
}

// asPeer is a request as another controller sends it for a caller.
func asPeer(r *http.Request, url string) *http.Request {
	out, err := http.NewRequestWithContext(r.Context(), r.Method, url+r.URL.Path, r.Body)
	if err != nil {
		panic(err)
	}
	out.Header.Set(wire.HeaderPrincipal, caller)
	return out
}

// A change without a leader is to be asked again, and nobody is told that it was
// not done who can't know.
func TestAChangeWithoutALeaderIsToBeAskedAgain(t *testing.T) {
	for _, tc := range []struct {
		name    string
		refuses error
		unsure  bool
	}{
		{"no leader", consensus.ErrNotLeader, false},
		{"it was lost in the middle", consensus.ErrRetry, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMember()
				m.apply(web()...)
				m.leads("me")
				m.refuses = tc.refuses
				w, took := ask(api(t, m), "POST", "/containers/web/rename?name=other")
				if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || took < patience || (w.Header().Get(wire.HeaderUndecided) != "") != tc.unsure {
					t.Errorf("after %v: %d %s", took, w.Code, w.Body)
				}
			})
		})
	}
}

func TestALeaderThatIsLostWithARequestMayHaveDoneIt(t *testing.T) {
	m := newMember()
	lead(t, m, func(http.ResponseWriter, *http.Request) {
		m.leads("")
		panic(http.ErrAbortHandler)
	})
	w, _ := ask(api(t, m), "POST", "/containers/web/start")
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || w.Header().Get(wire.HeaderUndecided) == "" {
		t.Errorf("the answer is %d %s", w.Code, w.Body)
	}
	w, _ = ask(api(t, m), "POST", "/containers/web/start")
	if w.Code != http.StatusServiceUnavailable || w.Header().Get(wire.HeaderUndecided) != "" {
		t.Errorf("a request that reached nobody: %d %s", w.Code, w.Body)
	}
}

// What a follower doesn't know of a caller, or of its roles, it may only not know yet.
func TestAStateThatMayBeOldRefusesForGoodOnlyWhoWasRevoked(t *testing.T) {
	m := newMember()
	gone := "spiffe://fleet/user/gone"
	m.apply(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: gone, Roles: []string{pki.RoleAdmin}, Revoked: true}}},
		&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: "spiffe://fleet/user/idle"}}})
	f := follower(t, m)
	h := f.API(engineapi.New(engineapi.Options{Fleet: f.fleet}))
	for uri, want := range map[string]int{"spiffe://fleet/user/new": 503, "spiffe://fleet/user/idle": 503, agent + "/uid/7": 503, "spiffe://fleet/node/new/uid/7": 503, gone: 403} {
		for leader, want := range map[string]int{"": want, "me": 403} {
			m.leads(leader)
			w, _ := ask(as(uri, h), "GET", "/_ping")
			if w.Code != want || (w.Header().Get("Retry-After") != "") != (want == 503) {
				t.Errorf("%s, with the leader %q: %d %s, want %d", uri, leader, w.Code, w.Body, want)
			}
		}
	}
}

// A refusal is JSON, whatever is quoted in it.
func TestARefusalIsJSON(t *testing.T) {
	m := newMember()
	m.leads("me")
	f := follower(t, m)
	w, _ := ask(as("spiffe://fleet/user/\U000e0001", f.API(docker{http.NotFoundHandler()})), "GET", "/_ping")
	var said struct{ Message string }
	if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || w.Code != http.StatusForbidden || said.Message == "" {
		t.Errorf("%d %q: %v", w.Code, w.Body, err)
	}
}
