package controller

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/controller/vault"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/registry"
	"github.com/drover/drover/pkg/unixsock"
)

// noHub stands in for Docker Hub, which is what a reference or login without a
// registry means: it refuses connections.
var noHub = []registry.Mirror{{Name: "docker.io", Endpoint: "127.0.0.1:1", PlainHTTP: true}}

// TestMain fails if a test asks a name server: all hosts are on loopback.
func TestMain(m *testing.M) {
	var asked atomic.Int64
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		asked.Add(1)
		return nil, errors.New("tests have no name server")
	}}
	code := m.Run()
	if n := asked.Load(); n > 0 {
		fmt.Fprintf(os.Stderr, "name servers were asked %d times\n", n)
		code = max(code, 1)
	}
	os.Exit(code)
}

// host is one machine's folders and the controller that runs on them.
type host struct {
	t      *testing.T
	data   string
	rundir string
	ca     *pki.Authority
	tuning tuning // of its next start

	c      *controller
	addr   string
	stdout *buffer
	log    buffer // what the controller logged
	cancel context.CancelFunc
	ended  chan error
}

// buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) { b.mu.Lock(); defer b.mu.Unlock(); return b.b.Write(p) }
func (b *buffer) String() string              { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

func newHost(t *testing.T, how ...func(*bootstrap.Options)) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "dc") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &host{t: t, data: filepath.Join(dir, "data"), rundir: filepath.Join(dir, "run")}
	o := bootstrap.Options{DataDir: h.data, NodeName: "a", Hosts: []string{"127.0.0.1"},
		Controller: "127.0.0.1:7443", Pool: "10.210.0.0/16", Now: time.Now()}
	for _, f := range how {
		f(&o)
	}
	if _, err := bootstrap.Up(o); err != nil {
		t.Fatal(err)
	}
	h.ca = authority(t, h.data)
	return h
}

// foundedBefore has the fleet be created that long ago: its authority and the host's
// identities.
func foundedBefore(ago time.Duration) func(*bootstrap.Options) {
	return func(o *bootstrap.Options) { o.Now = o.Now.Add(-ago) }
}

// renew replaces the certificates of the host's identities, and keeps their keys.
func (h *host) renew() {
	h.t.Helper()
	for _, dir := range []string{identity.ControllerPKI(h.data), identity.AgentPKI(h.data), identity.AdminPKI(h.data)} {
		f := h.files(dir)
		key, ok := f.Cert.PrivateKey.(crypto.Signer)
		if !ok {
			h.t.Fatalf("the key in %s is a %T", dir, f.Cert.PrivateKey)
		}
		der, err := h.ca.Issue(f.Principal.URI, key.Public(), []string{"127.0.0.1"}, time.Now())
		if err != nil {
			h.t.Fatal(err)
		}
		if err := pki.WriteFiles(dir, [][]byte{h.ca.Cert.Raw}, der, key, f.Seal); err != nil {
			h.t.Fatal(err)
		}
	}
}

// authority opens the cluster's own, as it is before the cluster is committed.
func authority(t *testing.T, data string) *pki.Authority {
	t.Helper()
	files, err := pki.LoadFiles(identity.ControllerPKI(data))
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := bootstrap.Pending(data)
	if err != nil {
		t.Fatal(err)
	}
	key, err := vault.Unwrap(cmd.GetInit().GetSealed()[1], files.Seal)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := key.Open(cmd.GetInit().GetSealed()[0])
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.ParsePKCS8PrivateKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	signer, ok := k.(crypto.Signer)
	if !ok {
		t.Fatalf("the authority's key is a %T", k)
	}
	return &pki.Authority{Cert: files.Bundle[0], Key: signer}
}

// up starts the controller and waits until it answers.
func (h *host) up() {
	h.t.Helper()
	ready := make(chan net.Addr, 1)
	h.stdout = &buffer{}
	log := slog.New(slog.NewTextHandler(io.MultiWriter(&testWriter{h.t}, &h.log), &slog.HandlerOptions{Level: slog.LevelInfo}))
	c, err := load(Config{DataDir: h.data, RunDir: h.rundir, Listen: "127.0.0.1:0", Version: "test", Logger: log, Stdout: h.stdout, Registries: noHub,
		OnReady: func(a net.Addr) { ready <- a }})
	if err != nil {
		h.t.Fatal(err)
	}
	c.tuning = h.tuning
	ctx, cancel := context.WithCancel(context.Background())
	h.c, h.cancel, h.ended = c, cancel, make(chan error, 1)
	go func() { h.ended <- c.run(ctx) }()
	h.t.Cleanup(h.down)
	select {
	case a := <-ready:
		h.addr = a.String()
	case err := <-h.ended:
		h.c = nil
		h.t.Fatalf("the controller ended: %v", err)
	case <-time.After(20 * time.Second):
		h.t.Fatal("the controller is not ready")
	}
}

// down ends the controller, which must take only its grace.
func (h *host) down() {
	h.t.Helper()
	if h.c == nil {
		return
	}
	h.c = nil
	h.cancel()
	select {
	case err := <-h.ended:
		if err != nil {
			h.t.Fatalf("the controller ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		h.t.Fatal("the controller does not end")
	}
}

type testWriter struct{ t *testing.T }

func (w *testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// identity makes files of an identity that the authority signed.
func (h *host) identity(kind, id string) *pki.Files {
	h.t.Helper()
	return h.identityOf(h.ca, kind, id, time.Now())
}

// identityOf makes files of an identity that an authority signs at the given time.
func (h *host) identityOf(ca *pki.Authority, kind, id string, at time.Time) *pki.Files {
	h.t.Helper()
	k, err := pki.NewKey()
	if err != nil {
		h.t.Fatal(err)
	}
	der, err := ca.Issue(pki.URI(h.cluster(), kind, id), k.Public(), nil, at)
	if err != nil {
		h.t.Fatal(err)
	}
	dir := h.t.TempDir()
	if err := pki.WriteFiles(dir, [][]byte{ca.Cert.Raw}, der, k, nil); err != nil {
		h.t.Fatal(err)
	}
	return h.files(dir)
}

func (h *host) files(dir string) *pki.Files {
	h.t.Helper()
	f, err := pki.LoadFiles(dir)
	if err != nil {
		h.t.Fatal(err)
	}
	return f
}

func (h *host) cluster() string { return h.files(identity.AgentPKI(h.data)).Principal.Cluster }
func (h *host) nodeID() string  { return h.files(identity.AgentPKI(h.data)).Principal.ID }

func (h *host) propose(cmd *dv1.Command) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), 5*time.Second)
	defer cancel()
	r, err := h.c.node.Load().Propose(ctx, accesstest.Named(h.c.node.Load().Snapshot(), cmd))
	if err != nil || r.GetError() != nil {
		h.t.Fatalf("proposing %T: %v %v", cmd.GetOf(), r, err)
	}
}

// response is an answer, read whole.
type response struct {
	code   int
	body   string
	header http.Header
	err    error
}

func (r response) String() string { return fmt.Sprintf("%d %q %v", r.code, r.body, r.err) }

func (h *host) do(c *http.Client, method, url, body string) response {
	h.t.Helper()
	defer c.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(h.t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(req)
	if err != nil {
		return response{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, string(b), resp.Header, err}
}

// local asks over the socket.
func (h *host) local(method, path, body string) response {
	h.t.Helper()
	return h.do(&http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", unixsock.File(h.rundir))
	}}}, method, "http://drover"+path, body)
}

// fleet calls a procedure of the fleet API over the socket, as curl would: in JSON.
func (h *host) fleet(procedure, body string) response {
	h.t.Helper()
	r := h.local(http.MethodPost, "/drover.v1."+procedure, body)
	r.body = strings.ReplaceAll(r.body, " ", "") // of which protojson has some or none, at random
	return r
}

// remote asks over the port, as files say or as nobody; protos are the ALPN names offered.
func (h *host) remote(files *pki.Files, path string, protos ...string) response {
	h.t.Helper()
	config := &tls.Config{RootCAs: h.files(identity.AgentPKI(h.data)).Pool(), NextProtos: protos}
	if files != nil {
		config.Certificates = []tls.Certificate{files.Cert}
	}
	return h.do(&http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: len(protos) > 0 && protos[0] == "h2"}},
		http.MethodGet, "https://"+h.addr+path, "")
}

// peerNode is a node that a test plays.
type peerNode struct {
	h       *host
	stream  *connect.BidiStreamForClient[dv1.FromAgent, dv1.ToAgent]
	subnet  string
	welcome *dv1.Welcome
	close   func()
}

// open opens a session as files say. A refusal is the error.
func (h *host) open(files *pki.Files, number uint64, addr string) (*peerNode, error) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	config := pki.PeerClientTLS(files, wire.ALPNSession, pki.Kinds(pki.KindController))
	tr := &http2.Transport{DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
		return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", h.addr)
	}}
	a := &peerNode{h: h, stream: dv1connect.NewSessionClient(&http.Client{Transport: tr}, "https://"+h.addr).Open(ctx)}
	a.close = sync.OnceFunc(func() {
		cancel()
		_ = a.stream.CloseRequest()
		_ = a.stream.CloseResponse()
		tr.CloseIdleConnections()
	})
	h.t.Cleanup(a.close)
	_ = a.stream.Send(&dv1.FromAgent{Of: &dv1.FromAgent_Hello{Hello: &dv1.Hello{Number: number,
		Node: &dv1.Node{Id: files.Principal.ID, Name: "a", Addr: addr, Capacity: &dv1.Capacity{NanoCpus: 4e9, Memory: 8 << 30}}}}})
	m, err := a.stream.Receive()
	if err != nil {
		a.close()
		return nil, err
	}
	a.welcome = m.GetWelcome()
	a.subnet = a.welcome.GetSubnet()
	return a, nil
}

// sync gives the next sync that says something, beating meanwhile.
func (a *peerNode) sync() *dv1.Sync {
	a.h.t.Helper()
	for {
		m, err := a.stream.Receive()
		if err != nil {
			a.h.t.Fatal(err)
		}
		if m.GetBeat() != nil {
			a.send(&dv1.FromAgent{Of: &dv1.FromAgent_Beat{Beat: &dv1.Beat{}}})
		}
		if s := m.GetSync(); s != nil {
			return s
		}
	}
}

func (a *peerNode) send(m *dv1.FromAgent) {
	a.h.t.Helper()
	if err := a.stream.Send(m); err != nil {
		a.h.t.Fatal(err)
	}
}

func (a *peerNode) status(s ...*dv1.TaskStatus) {
	a.h.t.Helper()
	a.send(&dv1.FromAgent{Of: &dv1.FromAgent_Observation{Observation: &dv1.Observation{Tasks: s}}})
}

// bulkPort serves an agent's own port.
func (h *host) bulkPort(files *pki.Files, handler http.Handler) (addr string) {
	h.t.Helper()
	config := pki.PeerServerTLS(files, pki.Kinds(pki.KindController))
	config.NextProtos = []string{wire.ALPNBulk}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = bulk.Serve(ctx, l, handler, slog.New(slog.DiscardHandler)) }()
	h.t.Cleanup(func() { cancel(); <-done })
	return l.Addr().String()
}

// noLeaks is to be deferred first.
func noLeaks(t *testing.T) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
}
