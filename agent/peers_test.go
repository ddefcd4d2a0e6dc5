package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/grant"
	"github.com/drover/drover/pkg/pki"
)

// store is an engine's images: which blobs each has, "" for what is public.
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
	f := openFleet(t.TempDir(), cluster, nilLog())
	f.take(&dv1.Roster{Epoch: 1, Index: 1, Full: true, Members: []*dv1.Member{{Uri: ctl.Principal.URI}}})
	p := newPeers(&agent{files: files, fleet: f})
	of := func(s string) string { return digest.FromString(s).String() }
	may := p.may(store{"": {of("public")}, of("app"): {of("app"), of("layer")}, of("other"): {of("other"), of("secret")}})
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
	there := openFleet(t.TempDir(), cluster, nilLog())
	there.take(&dv1.Roster{Full: true, Members: []*dv1.Member{{Uri: self.Principal.URI}}})
	addr := port(t, there, other, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { saw <- r.Header.Get(wire.HeaderGrant) }))
	f := openFleet(t.TempDir(), cluster, nilLog())
	f.take(&dv1.Roster{Full: true, Members: []*dv1.Member{{Uri: other.Principal.URI, Addr: addr}}})
	p := newPeers(&agent{files: self, fleet: f})
	t.Cleanup(p.close)
	p.named("sha256:a", source{holders: []string{addr}})
	p.named("sha256:a", source{grant: []byte("granted"), public: true})
	cs := p.clients("sha256:a")
	if len(cs) != 1 || !p.public("sha256:a") || p.public("sha256:b") {
		t.Fatalf("%d nodes are asked, it is public: %v", len(cs), p.public("sha256:a"))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v2/x/blobs/y", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := cs[0].Do(r)
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
	there := openFleet(t.TempDir(), cluster, nilLog())
	there.take(&dv1.Roster{Full: true, Members: []*dv1.Member{{Uri: self.Principal.URI}}})
	addr := port(t, there, other, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	f := openFleet(t.TempDir(), cluster, nilLog())
	f.take(&dv1.Roster{Index: 1, Full: true, Members: []*dv1.Member{{Uri: other.Principal.URI, Addr: addr}, {Uri: third.Principal.URI, Addr: "127.0.0.1:1"}}})
	p := newPeers(&agent{files: self, fleet: f})
	t.Cleanup(p.close)
	ask := func() (*http.Response, error) {
		p.mu.Lock()
		c := p.to(addr)
		p.mu.Unlock()
		return get(t, c)
	}
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
