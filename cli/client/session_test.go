package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/moby/moby/client"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/api/wire"
)

// serve answers on a socket, and returns a session with whoever answers there.
func serve(t *testing.T, h http.Handler) *Session {
	t.Helper()
	dir, err := os.MkdirTemp("", "dc") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "drover.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return &Session{Target: Target{Host: "unix://" + path}}
}

// What a flag says goes before the environment, that before this host's own socket.
func TestWhereTheFleetIs(t *testing.T) {
	run := t.TempDir()
	for _, c := range []struct {
		flag, env, want, err string
	}{
		{"unix:///flag", "unix:///env", "unix:///flag", ""},
		{"", "tcp://env:7443", "tcp://env:7443", ""},
		{"", "", "unix://" + run + "/drover.sock", ""},
		{"env:7443", "", "", "begins with neither"},
		{"", "http://x", "", "begins with neither"},
	} {
		t.Setenv(EnvHost, c.env)
		t.Setenv("DROVER_RUN_DIR", run)
		got, err := Find(c.flag)
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q, %q: %v, want %q", c.flag, c.env, err, c.err)
			}
		case err != nil || got.Host != c.want:
			t.Errorf("%q, %q: %q, %v, want %q", c.flag, c.env, got.Host, err, c.want)
		}
	}
	t.Setenv(EnvHost, "")
	if err := os.WriteFile(filepath.Join(run, HintsFile), []byte(`{"Node":"n1","Controllers":["b:7443"],"Identity":"/x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Find("")
	if err != nil || got.contact != "n1" || got.elsewhere() == nil {
		t.Errorf("beside the socket is said %+v, %v", got, err)
	}
	t.Setenv(EnvOn, "")
	if on := DefaultOn(); on != nil {
		t.Errorf("without the variable, --on is %q", on)
	}
	t.Setenv(EnvOn, "a==b,c==d")
	if on := DefaultOn(); len(on) != 2 || on[1] != "c==d" {
		t.Errorf("--on of the environment is %q", on)
	}
}

func TestAnAddressWithoutAnIdentityIsRefused(t *testing.T) {
	s := &Session{Target: Target{Host: "tcp://127.0.0.1:1", identity: t.TempDir()}}
	if _, err := s.HTTP(); err == nil || !strings.Contains(err.Error(), EnvIdentity) {
		t.Errorf("an address without an identity: %v", err)
	}
	if _, err := (&Session{Target: Target{Host: "unix://%zz"}}).Docker(noop.NewTracerProvider()); err == nil {
		t.Error("a host that is no URL is dialed")
	}
}

// What goes along with each request, and with which ones.
func TestRequestsSayWhatTheyMust(t *testing.T) {
	s := &Session{Target: Target{contact: "n1"}, On: []string{"a==b", "c!=d"}}
	s.seen.Store(42)
	ctx := context.WithValue(context.WithValue(t.Context(), fromKey{}, "pos"), afterKey{}, uint64(7))
	for _, c := range []struct {
		ctx          context.Context
		method, path string
		header, want string // "+": there is one
	}{
		{ctx, "GET", "/info", wire.HeaderKey, ""},
		{ctx, "POST", "/containers/create", wire.HeaderKey, "+"},
		{context.WithValue(ctx, keyKey{}, &call{key: "mine"}), "POST", "/containers/create", wire.HeaderKey, "mine"},
		{ctx, "GET", "/info", wire.HeaderIndex, "42"},
		{ctx, "GET", "/info", wire.HeaderContact, "n1"},
		{ctx, "POST", "/containers/create", wire.HeaderOn, "a==b,c!=d"},
		{WithOn(ctx, "node==x"), "POST", "/containers/create", wire.HeaderOn, "node==x"},
		{ctx, "POST", "/containers/x/attach", wire.HeaderFrom, "pos"},
		{ctx, "POST", "/containers/x/wait", wire.HeaderAfter, "7"},
		{ctx, "POST", "/containers/x/attach", wire.HeaderFrames, "1"},
		{ctx, "GET", "/containers/x/logs", wire.HeaderFrames, "1"},
		{ctx, "POST", "/exec/x/start", wire.HeaderFrames, "1"},
		{ctx, "POST", "/containers/x/start", wire.HeaderFrames, ""},
	} {
		r, err := http.NewRequestWithContext(c.ctx, c.method, "http://drover"+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.mark(r)
		if got := r.Header.Get(c.header); got != c.want && (c.want != "+" || got == "") {
			t.Errorf("%s %s has %s %q, not %q", c.method, c.path, c.header, got, c.want)
		}
	}
}

// A session uses the highest index of its responses, and relays warnings: that there is
// no leader only once.
func TestAnswersAreNoted(t *testing.T) {
	var said []string
	s := &Session{Warn: func(msg string) { said = append(said, msg) }}
	answer := func(header ...string) {
		r := &http.Response{StatusCode: 200, Header: http.Header{}, Request: &http.Request{}}
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		s.note(r)
	}
	for _, i := range []string{"5", "3", "x", "", "9", "8"} {
		answer(wire.HeaderIndex, i)
	}
	if s.seen.Load() != 9 {
		t.Errorf("the highest index seen is %d", s.seen.Load())
	}
	answer(wire.HeaderStale, "1", wire.HeaderWarning, "the disk is full")
	answer(wire.HeaderStale, "1")
	if len(said) != 2 || said[0] != "the disk is full" || !strings.Contains(said[1], "no leader") {
		t.Errorf("people are told %q", said)
	}
	(&Session{}).note(&http.Response{StatusCode: 200, Header: http.Header{wire.HeaderStale: {"1"}}, Request: &http.Request{}}) // nobody listens
}

type answering struct {
	fail int // answers that break off

	mu   sync.Mutex // guards keys
	keys []string
}

func (a *answering) lose(h http.Header) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.keys = append(a.keys, h.Get(wire.HeaderKey)); len(a.keys) <= a.fail {
		panic(http.ErrAbortHandler)
	}
}

func (a *answering) asked() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.keys)
}

type answeringNodes struct {
	dv1connect.UnimplementedNodesHandler
	*answering
}

type answeringTokens struct {
	dv1connect.UnimplementedTokensHandler
	*answering
}

func (a answeringNodes) Update(_ context.Context, r *connect.Request[dv1.UpdateNodeRequest]) (*connect.Response[dv1.UpdateNodeResponse], error) {
	a.lose(r.Header())
	return connect.NewResponse(&dv1.UpdateNodeResponse{}), nil
}

func (a answeringTokens) Create(_ context.Context, r *connect.Request[dv1.CreateTokenRequest]) (*connect.Response[dv1.CreateTokenResponse], error) {
	a.lose(r.Header())
	return connect.NewResponse(&dv1.CreateTokenResponse{}), nil
}

// A change whose answer was lost is asked for again with its key; a token is not: the
// second one would be another.
func TestAnAnswerThatIsLostIsAskedForAgain(t *testing.T) {
	for _, token := range []bool{false, true} {
		a := &answering{fail: 2}
		mux := http.NewServeMux()
		mux.Handle(dv1connect.NewNodesHandler(answeringNodes{answering: a}))
		mux.Handle(dv1connect.NewTokensHandler(answeringTokens{answering: a}))
		api, err := serve(t, mux).API()
		if err != nil {
			t.Fatal(err)
		}
		if token {
			_, err = api.Tokens.Create(t.Context(), connect.NewRequest(&dv1.CreateTokenRequest{}))
			if keys := a.asked(); err == nil || len(keys) != 1 {
				t.Errorf("a token is asked for %d times: %v", len(keys), err)
			}
			continue
		}
		_, err = api.Nodes.Update(t.Context(), connect.NewRequest(&dv1.UpdateNodeRequest{Node: "a"}))
		if keys := a.asked(); err != nil || len(keys) != 3 || keys[0] == "" || keys[1] != keys[0] || keys[2] != keys[0] {
			t.Errorf("a change is asked for with the keys %q: %v", keys, err)
		}
	}
}

func TestErrorsAreSaidInDroversWords(t *testing.T) {
	s := &Session{Target: Target{Host: "unix:///run/drover/drover.sock"}}
	dial := &net.OpError{Op: "dial", Net: "unix", Err: errors.New("no such file")}
	nothing := "drover: nothing answers at unix:///run/drover/drover.sock"
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{connect.NewError(connect.CodeUnavailable, dial), nothing},
		{errors.New("Cannot connect to the Docker daemon at unix:///x"), nothing},
		{fmt.Errorf("asking: %w", connect.NewError(connect.CodeNotFound, errors.New("No such node: x"))), "drover: No such node: x"},
		{errors.New("Error response from daemon: No such container: x"), "Error: No such container: x"},
		{errors.New("docker: Error response from daemon: no"), "drover: no"},
		{cli.StatusError{StatusCode: 7}, ""},
		{errors.New("See 'docker run --help'"), "See 'drover run --help'"},
	} {
		if got := s.Explain(c.err); !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%v is said as %q, not %q", c.err, got, c.want)
		}
	}
}

func TestPagesAreReadToTheLast(t *testing.T) {
	var asked []string
	next := map[string]string{"": "a", "a": "b", "b": ""}
	if err := Pages(func(token string) (string, error) { asked = append(asked, token); return next[token], nil }); err != nil || len(asked) != 3 {
		t.Errorf("asked for %q: %v", asked, err)
	}
	if err := Pages(func(token string) (string, error) { return "more", errors.New(token + "broken") }); err == nil {
		t.Error("an error is passed over")
	}
}

// Docker's commands make their requests to whoever takes them over, and nobody else.
func TestCallsAreTakenOver(t *testing.T) {
	var asked atomic.Int32
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "containers") || strings.Contains(r.URL.Path, "images") {
			asked.Add(1)
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"Id":"x"}`)
	}))
	c, err := s.Docker(noop.NewTracerProvider())
	if err != nil {
		t.Fatal(err)
	}
	taken := errors.New("taken")
	var got []string
	ctx := Intercept(t.Context(), Calls{
		Create: func(_ context.Context, o client.ContainerCreateOptions) (client.ContainerCreateResult, error) {
			got = append(got, "create "+o.Name)
			return client.ContainerCreateResult{}, taken
		},
		Exec: func(_ context.Context, id string, _ client.ExecCreateOptions) (client.ExecCreateResult, error) {
			got = append(got, "exec "+id)
			return client.ExecCreateResult{}, taken
		},
		Pull: func(_ context.Context, ref string, _ client.ImagePullOptions) (client.ImagePullResponse, error) {
			got = append(got, "pull "+ref)
			return nil, taken
		},
	})
	all := func(ctx context.Context) (errs []error) {
		_, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{Name: "web", Image: "alpine"})
		errs = append(errs, err)
		_, err = c.ExecCreate(ctx, "id", client.ExecCreateOptions{Cmd: []string{"true"}})
		errs = append(errs, err)
		_, err = c.ImagePull(ctx, "alpine", client.ImagePullOptions{})
		return append(errs, err)
	}
	for _, err := range all(ctx) {
		if !errors.Is(err, taken) {
			t.Errorf("a call is answered with %v", err)
		}
	}
	if strings.Join(got, ", ") != "create web, exec id, pull alpine" || asked.Load() != 0 {
		t.Errorf("taken over were %q; the fleet was asked %d times", got, asked.Load())
	}
	if _ = all(t.Context()); asked.Load() != 3 {
		t.Errorf("the fleet was asked %d times", asked.Load())
	}
}

// What is asked of the fleet API is part of the command's trace.
func TestRequestsCarryTheCommandsSpan(t *testing.T) {
	var got []string
	s := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = append(got, r.Header.Get("traceparent")) }))
	h, err := s.HTTP()
	if err != nil {
		t.Fatal(err)
	}
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	for _, ctx := range []context.Context{t.Context(), trace.ContextWithSpanContext(t.Context(), span)} {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://drover/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := h.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	if want := []string{"", "00-" + span.TraceID().String() + "-" + span.SpanID().String() + "-01"}; !slices.Equal(got, want) {
		t.Errorf("requests go with %q, want %q", got, want)
	}
}
