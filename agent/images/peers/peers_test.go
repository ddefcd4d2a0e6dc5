package peers

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/grant"
	"github.com/drover/drover/pkg/mux"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/roster"
)

const cluster = "c1"

// authority signs identities for tests.
type authority struct {
	t  *testing.T
	ca *pki.Authority
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	ca, err := pki.NewAuthority(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, ca}
}

func (a *authority) files(kind, id string) *pki.Files {
	a.t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := a.ca.Issue(pki.URI(cluster, kind, id), key.Public(), nil, time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
	dir := a.t.TempDir()
	if err := pki.WriteFiles(dir, [][]byte{a.ca.Cert.Raw}, der, key, nil); err != nil {
		a.t.Fatal(err)
	}
	f, err := pki.LoadFiles(dir)
	if err != nil {
		a.t.Fatal(err)
	}
	return f
}

// fleet is who belongs to it, as a node heard, and the node's connections.
type fleet struct {
	now   atomic.Pointer[roster.Roster]
	conns pki.Conns
}

func newFleet(members ...*dv1.Member) *fleet {
	f := &fleet{}
	f.conns.Verify = f.known
	f.take(&dv1.Roster{Index: 1, Full: true, Members: members})
	return f
}

func (f *fleet) known(p pki.Principal) error { return f.now.Load().Known(p) }

func (f *fleet) take(news *dv1.Roster) {
	r, _ := f.now.Load().Apply(news)
	f.now.Store(r)
	f.conns.Cut()
}

// peers are those of a node with these files in the fleet.
func (f *fleet) peers(t *testing.T, files *pki.Files) *Peers {
	p := New(t.Context(), Options{Cluster: cluster, Node: files.Principal.ID, Addr: "127.0.0.1:9", Files: files, Known: f.known,
		Where: func(uri string) string { return f.now.Load().Addr(uri) }, Conns: &f.conns, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(p.Close)
	return p
}

// port serves h to members as a node of those files does, and returns where.
func port(t *testing.T, f *fleet, files *pki.Files, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	m := mux.New(l, log)
	in := f.conns.Listen(m.Handle(pki.PeerServerTLS(files, f.known), wire.ALPNBulk))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = m.Run(ctx); done <- struct{}{} }()
	go func() { _ = bulk.Serve(ctx, in, h, log); done <- struct{}{} }()
	t.Cleanup(func() { cancel(); <-done; <-done })
	return l.Addr().String()
}

func get(t *testing.T, c *http.Client) (*http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v2/x/blobs/y", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Do(req)
}

// store is a node's images: which blobs each has, "" for what is public.
type store map[string][]string

func (s store) Public(ctx context.Context, blob string) (bool, error) {
	return s.Within(ctx, "", blob), nil
}

func (s store) Within(_ context.Context, image, blob string) bool {
	for _, b := range s[image] {
		if b == blob {
			return true
		}
	}
	return false
}

// A node reads from another what is public and what it was granted, and nothing
// else: not with another's grant, nor another image's, nor one of a controller that
// was removed.
func TestANodeReadsOnlyWhatItWasGranted(t *testing.T) {
	ca := newAuthority(t)
	files, ctl := ca.files(pki.KindNode, "serving"), ca.files(pki.KindController, "ctl")
	f := newFleet(&dv1.Member{Uri: ctl.Principal.URI})
	p := f.peers(t, files)
	of := func(s string) string { return digest.FromString(s).String() }
	may := p.MayRead(store{"": {of("public")}, of("app"): {of("app"), of("layer")}, of("other"): {of("other"), of("secret")}})
	make := func(by *pki.Files, node, image string) string {
		t.Helper()
		b, err := grant.NewMaker(by).For(node, of(image))
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(b)
	}
	mine := make(ctl, "n1", "app")
	ask := func(g, blob string) error {
		r := httptest.NewRequestWithContext(pki.WithPrincipal(t.Context(), pki.Principal{Kind: pki.KindNode, ID: "n1"}), http.MethodGet, "/v2/x/blobs/"+of(blob), nil)
		if g != "" {
			r.Header.Set(wire.HeaderGrant, g)
		}
		return may(r, digest.FromString(blob))
	}
	for _, c := range []struct {
		what, grant, blob string
		ok                bool
	}{
		{"public, without a grant", "", "public", true},
		{"its image", mine, "app", true},
		{"its image's layer", mine, "layer", true},
		{"without a grant", "", "app", false},
		{"another image's layer", mine, "secret", false},
		{"an image that isn't here", make(ctl, "n1", "absent"), "absent", false},
		{"another node's grant", make(ctl, "n2", "app"), "app", false},
		{"a node's own making", make(ca.files(pki.KindNode, "n1"), "n1", "app"), "app", false},
		{"a stranger's grant", make(ca.files(pki.KindController, "stranger"), "n1", "app"), "app", false},
		{"junk", "junk!", "app", false},
	} {
		if err := ask(c.grant, c.blob); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	f.take(&dv1.Roster{Epoch: 1, Index: 2, Revoked: []string{ctl.Principal.URI}})
	if err := ask(mine, "app"); err == nil {
		t.Error("a removed controller's grant still counts")
	}
}

// What was said of an image is shown with each request to a node that has it.
func TestAPullShowsItsGrant(t *testing.T) {
	ca := newAuthority(t)
	self, other := ca.files(pki.KindNode, "self"), ca.files(pki.KindNode, "other")
	saw := make(chan string, 1)
	there := newFleet(&dv1.Member{Uri: self.Principal.URI})
	addr := port(t, there, other, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { saw <- r.Header.Get(wire.HeaderGrant) }))
	f := newFleet(&dv1.Member{Uri: other.Principal.URI, Addr: addr})
	p := f.peers(t, self)
	p.Named("sha256:a", Source{Holders: []string{addr, "127.0.0.1:9", addr, ""}}) // itself, twice, and nowhere
	p.Named("sha256:a", Source{Grant: []byte("granted"), Public: true})
	p.Named("", Source{Public: true})
	cs := p.Clients("sha256:a")
	if len(cs) != 1 || !p.Public("sha256:a") || p.Public("sha256:b") {
		t.Fatalf("%d nodes are asked, it is public: %v", len(cs), p.Public("sha256:a"))
	}
	resp, err := get(t, cs[0])
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if got, want := <-saw, base64.StdEncoding.EncodeToString([]byte("granted")); got != want {
		t.Errorf("the grant %q was shown, want %q", got, want)
	}
}

// What this node reads from another ends when that one is removed, and it is asked
// no more; one that isn't where the roster says is none of them.
func TestARemovedNodeIsNotReadFrom(t *testing.T) {
	ca := newAuthority(t)
	self, other, third := ca.files(pki.KindNode, "self"), ca.files(pki.KindNode, "other"), ca.files(pki.KindNode, "third")
	there := newFleet(&dv1.Member{Uri: self.Principal.URI})
	addr := port(t, there, other, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	f := newFleet(&dv1.Member{Uri: other.Principal.URI, Addr: addr}, &dv1.Member{Uri: third.Principal.URI, Addr: "127.0.0.1:1"})
	p := f.peers(t, self)
	p.Named("sha256:a", Source{Holders: []string{addr}})
	ask := func() (*http.Response, error) { return get(t, p.Clients("sha256:a")[0]) }
	resp, err := ask()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	f.take(&dv1.Roster{Index: 2, Revoked: []string{other.Principal.URI}})
	if _, err := io.ReadAll(resp.Body); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("reading from a removed node ended with %v, want a cut", err)
	}
	if _, err := ask(); err == nil {
		t.Error("a removed node is asked again")
	}
	f.take(&dv1.Roster{Index: 3, Members: []*dv1.Member{{Uri: other.Principal.URI, Addr: "127.0.0.1:2"}}})
	if _, err := ask(); err == nil {
		t.Error("a node that is somewhere else by the roster is believed here")
	}
}

// What is known of images is bounded: the oldest goes first. A pull asks few nodes.
func TestWhatIsKnownOfImagesIsBounded(t *testing.T) {
	ca := newAuthority(t)
	p := newFleet().peers(t, ca.files(pki.KindNode, "self"))
	for i := range maxSources + 1 {
		p.Named(fmt.Sprint("sha256:", i), Source{Holders: []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"}})
	}
	if n := len(p.Clients("sha256:0")); n != 0 {
		t.Errorf("the oldest of %d images is still known", maxSources+1)
	}
	if n := len(p.Clients("sha256:1")); n != maxAsked {
		t.Errorf("%d nodes are asked, want %d", n, maxAsked)
	}
}

// Nodes that the control plane did not name are found by the gossip; it begins with
// the first key, and ends with Close.
func TestTheGossipFindsHolders(t *testing.T) {
	ca := newAuthority(t)
	one, two := ca.files(pki.KindNode, "one"), ca.files(pki.KindNode, "two")
	f := newFleet(&dv1.Member{Uri: one.Principal.URI, Addr: "127.0.0.21:7444"}, &dv1.Member{Uri: two.Principal.URI, Addr: "127.0.0.22:7444"})
	free, err := net.Listen("tcp", "127.0.0.21:0")
	if err != nil {
		t.Fatal(err)
	}
	_, bind, _ := net.SplitHostPort(free.Addr().String())
	_ = free.Close()
	image := digest.FromString("image").String()
	announced := make(chan struct{}, 1)
	begin := func(files *pki.Files, host string, have ...string) *Peers {
		p := f.peers(t, files)
		p.o.Addr, p.o.Bind, p.o.Advertise = host+":7444", net.JoinHostPort(host, bind), host
		p.o.Have = func(context.Context) ([]string, error) {
			select {
			case announced <- struct{}{}:
			default:
			}
			return have, nil
		}
		return p
	}
	a, b := begin(one, "127.0.0.21"), begin(two, "127.0.0.22", image)
	key := slices.Repeat([]byte{7}, 32)
	for _, p := range []*Peers{a, b} {
		p.Welcomed(&dv1.Welcome{Peers: []string{"127.0.0.21:7444"}}) // no key yet
		p.Announce()
		p.Welcomed(&dv1.Welcome{GossipKeys: [][]byte{key}, Peers: []string{"127.0.0.21:7444"}})
		p.joining.Wait()
	}
	// What a node has arrives with the gossip, whenever that has its turn.
	for end := time.Now().Add(10 * time.Second); len(a.Clients(image)) == 0 && time.Now().Before(end); b.Announce() {
		<-time.After(20 * time.Millisecond)
	}
	if n := len(a.Clients(image)); n != 1 {
		t.Errorf("%d nodes are asked for an image that one node has", n)
	}
	if n := len(b.Clients(image)); n != 0 {
		t.Errorf("%d nodes are asked for what only this one has", n)
	}
	for len(announced) > 0 {
		<-announced
	}
	b.Announce()
	<-announced
	b.Close()
	b.Welcomed(&dv1.Welcome{GossipKeys: [][]byte{key}})
	if b.gossip != nil {
		t.Error("a node that left talks again")
	}
}
