package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/mux"
	"github.com/drover/drover/pkg/pki"
)

const cluster = "c1"

func nilLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

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
	f, err := pki.LoadFiles(a.dir(kind, id))
	if err != nil {
		a.t.Fatal(err)
	}
	return f
}

// dir is a folder with an identity.
func (a *authority) dir(kind, id string) string {
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
	return dir
}

// port serves h as an agent with those files would, and returns its address.
func port(t *testing.T, f *fleet, files *pki.Files, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	m := mux.New(l, log)
	in := (&agent{files: files, fleet: f}).listen(m)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = m.Run(ctx); done <- struct{}{} }()
	go func() { _ = bulk.Serve(ctx, in, h, log); done <- struct{}{} }()
	t.Cleanup(func() { cancel(); <-done; <-done })
	return l.Addr().String()
}

func dialer(files *pki.Files, addr string) *bulk.Client {
	conf := pki.PeerClientTLS(files, wire.ALPNBulk, pki.Kinds(pki.KindNode))
	return bulk.NewClient(func(ctx context.Context) (net.Conn, error) {
		return (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
	})
}

func get(t *testing.T, c *bulk.Client) (*http.Response, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.HTTP().Do(req)
}

// A removed controller and a removed node are cut off where they are, refused when
// they come again, also by an agent that was restarted and hears nobody; who stays
// isn't disturbed, and who is signed but in no roster is a stranger.
func TestWhoWasRemovedIsCutOffAndStaysOut(t *testing.T) {
	ca := newAuthority(t)
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	f := openFleet(dir, log)
	open := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-open:
		case <-r.Context().Done():
		}
	})
	addr := port(t, f, ca.files(pki.KindNode, "self"), h)
	files := map[string]*pki.Files{
		"gone controller": ca.files(pki.KindController, "gone"), "gone node": ca.files(pki.KindNode, "gone"),
		"controller": ca.files(pki.KindController, "stays"), "stranger": ca.files(pki.KindController, "nobody"),
	}
	uri := func(name string) string { return files[name].Principal.URI }
	if _, err := get(t, dialer(files["controller"], addr)); err == nil {
		t.Error("somebody was let in before it was known who may")
	}
	f.take(&dv1.Roster{Epoch: 1, Index: 1, Full: true, Members: []*dv1.Member{{Uri: uri("gone controller")}, {Uri: uri("gone node")}, {Uri: uri("controller")}}})
	streams := map[string]*http.Response{}
	for _, name := range []string{"gone controller", "gone node", "controller"} {
		c := dialer(files[name], addr)
		t.Cleanup(func() { _ = c.Close() })
		resp, err := get(t, c)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		streams[name] = resp
	}
	if _, err := get(t, dialer(files["stranger"], addr)); err == nil {
		t.Error("one whom the fleet doesn't know was let in")
	}
	f.take(&dv1.Roster{Epoch: 1, Index: 2, Revoked: []string{uri("gone controller"), uri("gone node")}})
	for _, name := range []string{"gone controller", "gone node"} {
		if _, err := io.ReadAll(streams[name].Body); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the stream of the %s ended with %v, want a cut", name, err)
		}
	}
	later := port(t, openFleet(dir, log), ca.files(pki.KindNode, "self"), h) // the agent of after a restart
	for _, at := range []string{addr, later} {
		for _, name := range []string{"gone controller", "gone node", "stranger"} {
			if _, err := get(t, dialer(files[name], at)); err == nil {
				t.Errorf("the %s was let in at %s", name, at)
			}
		}
		c := dialer(files["controller"], at)
		if resp, err := get(t, c); err != nil {
			t.Errorf("the controller that stays: %v", err)
		} else {
			_ = resp.Body.Close()
		}
		_ = c.Close()
	}
	close(open)
	if _, err := io.ReadAll(streams["controller"].Body); err != nil {
		t.Errorf("the stream of the controller that stays: %v", err)
	}
}
