package agents

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/pki/pkitest"
)

// fleet is a controller's clients, and nodes that a test plays.
type fleet struct {
	t       *testing.T
	ca      *pki.Authority
	agents  *Agents
	revoked sync.Map // node ids
	stop    func()
}

func newFleet(t *testing.T) *fleet {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	f := &fleet{t: t, ca: pkitest.Authority(t, "c")}
	judge := func(p pki.Principal) error {
		if _, ok := f.revoked.Load(p.URI); ok {
			return pki.ErrRevoked
		}
		return nil
	}
	f.agents = New(Options{Files: pkitest.Files(t, f.ca, "c", pki.KindController, "c1"), Member: judge, Revoked: judge})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.agents.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
	return f
}

// port serves a node's port as id, and returns the node as another may be told of it.
func (f *fleet) port(id string, h http.HandlerFunc) *dv1.Node {
	f.t.Helper()
	config := pki.PeerServerTLS(pkitest.Files(f.t, f.ca, "c", pki.KindNode, id), pki.Kinds(pki.KindController))
	config.NextProtos = []string{wire.ALPNBulk}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = bulk.Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	f.t.Cleanup(func() { cancel(); <-done })
	return &dv1.Node{Id: id, Addr: l.Addr().String(), Liveness: dv1.Node_READY}
}

func (f *fleet) get(n *dv1.Node) (string, error) {
	f.t.Helper()
	c, err := f.agents.Client(n)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodGet, "http://agent/", nil)
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func says(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, s) }
}

func TestANodeIsReachedWhereItIsAndIsWhoItShouldBe(t *testing.T) {
	f := newFleet(t)
	a := f.port("a", says("first"))
	for range 2 {
		if got, err := f.get(a); got != "first" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	if moved := f.port("a", says("second")); moved.Addr != a.Addr {
		if got, err := f.get(moved); got != "second" {
			t.Errorf("at its new address: %q, %v", got, err)
		}
	}
	b := f.port("b", says("b"))
	if got, err := f.get(&dv1.Node{Id: "a", Addr: b.Addr}); err == nil || !strings.Contains(err.Error(), "is node b, not a") {
		t.Errorf("another node at its address: %q, %v", got, err)
	}
	f.revoked.Store(pki.URI("c", pki.KindNode, "b"), true)
	if got, err := f.get(b); err == nil || !strings.Contains(err.Error(), pki.ErrRevoked.Error()) {
		t.Errorf("a node that was removed: %q, %v", got, err)
	}
}

// A node that is removed has no stream that goes on, and a controller that ends none at all.
func TestConnectionsEndWithTheirNodeAndWithRun(t *testing.T) {
	f := newFleet(t)
	quiet := func(began chan bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			began <- true
			<-r.Context().Done()
		}
	}
	ends := map[string]chan error{}
	for _, id := range []string{"gone", "stays"} {
		began := make(chan bool, 1)
		n, end := f.port(id, quiet(began)), make(chan error, 1)
		ends[id] = end
		go func() { _, err := f.get(n); end <- err }()
		<-began
	}
	uri := pki.URI("c", pki.KindNode, "gone")
	f.agents.Committed([]*dv1.Effect{{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: uri}}}})
	f.revoked.Store(uri, true)
	f.agents.Committed([]*dv1.Effect{{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: uri, Revoked: true}}}})
	if err := <-ends["gone"]; err == nil {
		t.Error("the stream of a removed node ended well")
	}
	select {
	case err := <-ends["stays"]:
		t.Errorf("another node's stream ended: %v", err)
	default:
	}
	f.stop()
	if err := <-ends["stays"]; err == nil {
		t.Error("a stream outlived Run")
	}
	if _, err := f.agents.Client(&dv1.Node{Id: "stays"}); !errors.Is(err, ErrStopping) {
		t.Errorf("a client after Run: %v", err)
	}
}

func TestProbe(t *testing.T) {
	f := newFleet(t)
	answers := func(code int, asked *atomic.Int32) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			w.WriteHeader(code)
		}
	}
	hangs := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	var there, helped, refused, never atomic.Int32
	up := f.port("up", answers(http.StatusNoContent, &there))
	// A helper that finds the target there answers 204 for it.
	helper := f.port("helper", answers(http.StatusNoContent, &helped))
	denies := f.port("denies", answers(http.StatusBadGateway, &refused))
	silent := f.port("silent", hangs)
	unready := f.port("unready", answers(http.StatusNoContent, &never))
	unready.Liveness = dv1.Node_DOWN
	for name, c := range map[string]struct {
		nodes []*dv1.Node
		id    string
		want  bool
	}{
		"answers itself":                        {[]*dv1.Node{up}, "up", true},
		"another reaches it":                    {[]*dv1.Node{silent, helper, denies}, "silent", true},
		"nobody reaches it":                     {[]*dv1.Node{silent, denies}, "silent", false},
		"silent, and who would help is down":    {[]*dv1.Node{silent, unready}, "silent", false},
		"unknown":                               {[]*dv1.Node{helper}, "other", false},
		"without an address, as before a hello": {[]*dv1.Node{helper, {Id: "new"}}, "new", false},
	} {
		began := time.Now()
		if got := f.agents.Probe(t.Context(), snapshot(t, c.nodes...), c.id); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		if took := time.Since(began); took > 10*probeWithin {
			t.Errorf("%s: took %v", name, took)
		}
	}
	if there.Load() == 0 || helped.Load() == 0 || refused.Load() == 0 || never.Load() != 0 {
		t.Errorf("asked: itself %d, helper %d, one that denies %d, one that is down %d", there.Load(), helped.Load(), refused.Load(), never.Load())
	}
}

func snapshot(t *testing.T, nodes ...*dv1.Node) *state.Snapshot {
	t.Helper()
	txn := state.NewTxn(state.NewStore().Snapshot())
	for _, n := range nodes {
		if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Node{Node: n}}); err != nil {
			t.Fatal(err)
		}
	}
	return txn.View()
}
