package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
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
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/pki/pkitest"
)

// way is a gateway without a controller behind it.
type way struct {
	*Gateway
	t    *testing.T
	ca   *pki.Authority
	stop func() // ends Serve

	mu      sync.Mutex // guards what follows
	unknown map[string]bool
	revoked map[string]bool
}

func (w *way) Authorize(p pki.Principal, role string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unknown[p.ID] || p.Kind != role {
		return errors.New("not known to this cluster")
	}
	if w.revoked[p.ID] {
		return pki.ErrRevoked
	}
	return nil
}

func (w *way) NotRevoked(p pki.Principal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.revoked[p.ID] {
		return pki.ErrRevoked
	}
	return nil
}

// revoke revokes an identity, as an entry does.
func (w *way) revoke(kind, id string) {
	w.mu.Lock()
	w.revoked[id] = true
	w.mu.Unlock()
	w.Committed([]*dv1.Effect{{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: pki.URI("c", kind, id), Revoked: true}}}})
}

func newWay(t *testing.T) *way {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	w := &way{t: t, ca: pkitest.Authority(t, "c"), unknown: map[string]bool{}, revoked: map[string]bool{}}
	dir, err := os.MkdirTemp("", "gw") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w.Gateway, err = Listen(t.Context(), Options{Listen: "127.0.0.1:0", Socket: filepath.Join(dir, "s"), Files: w.files(pki.KindController, "self"), Identities: w,
		Logger: slog.New(slog.DiscardHandler), Linger: 300 * time.Millisecond, Patience: 50 * time.Millisecond, Pace: Pace{Grace: time.Second, Rate: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	start := func(run func(context.Context) error) func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- run(ctx) }()
		stop := sync.OnceFunc(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("it does not end")
			}
		})
		t.Cleanup(stop)
		return stop
	}
	start(w.Run)
	w.stop = start(w.Serve)
	return w
}

func (w *way) files(kind, id string) *pki.Files {
	w.t.Helper()
	return pkitest.Files(w.t, w.ca, "c", kind, id)
}

// dial opens a connection with an ALPN name, as files say or as nobody.
func (w *way) dial(files *pki.Files, alpn string) net.Conn {
	w.t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}}
	if files != nil {
		config.Certificates = []tls.Certificate{files.Cert}
	}
	c, err := tls.Dial("tcp", w.Addr().String(), config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// ask sends one request of HTTP/1.1 and returns the answer's head, and what reads on.
func (w *way) ask(c net.Conn, request string) (*http.Response, *bufio.Reader, error) {
	w.t.Helper()
	if _, err := io.WriteString(c, request+"\r\nHost: x\r\n\r\n"); err != nil {
		return nil, nil, err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	return resp, r, err
}

func body(resp *http.Response) string {
	if resp == nil {
		return ""
	}
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

// ended waits until the other end closes a connection.
func ended(t *testing.T, r io.Reader) {
	t.Helper()
	if _, err := io.Copy(io.Discard, r); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open")
	}
}

func TestAControllerThatStartsAsksToComeBack(t *testing.T) {
	w := newWay(t)
	user := w.files(pki.KindUser, "u")
	for name, c := range map[string]struct {
		files *pki.Files
		alpn  string
		code  int
	}{"a user": {user, "http/1.1", 503}, "nobody": {nil, "http/1.1", 401}, "a host that joins": {nil, wire.ALPNJoin, 503}} {
		resp, _, err := w.ask(w.dial(c.files, c.alpn), "GET /_ping HTTP/1.1")
		if err != nil || resp.StatusCode != c.code || (resp.Header.Get("Retry-After") != "") != (c.code == 503) {
			t.Errorf("%s: %v %v", name, resp, err)
		}
	}
}

func TestAPanicIsAnAnswerOrABrokenOne(t *testing.T) {
	w := newWay(t)
	w.Ready(Handlers{API: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			rw.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(rw).Flush()
		}
		panic("oops")
	})})
	user := w.files(pki.KindUser, "u")
	if resp, _, err := w.ask(w.dial(user, "http/1.1"), "GET /early HTTP/1.1"); err != nil || resp.StatusCode != 500 || !strings.Contains(body(resp), "oops") {
		t.Errorf("%v %v", resp, err)
	}
	resp, _, err := w.ask(w.dial(user, "http/1.1"), "GET /late HTTP/1.1")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
	}
	if err == nil {
		t.Error("a panic within an answer looks like a whole one")
	}
}

// Who a request is from is proved by its connection: a certificate, or for a proxied
// socket the node's, and the uid that its agent asked the kernel for.
func TestARequestIsOfWhoeverIsOnItsConnection(t *testing.T) {
	w := newWay(t)
	w.Ready(Handlers{API: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		p, _ := pki.PrincipalFrom(r.Context())
		_, _ = fmt.Fprintf(rw, "%s at %q", p.URI, r.Header.Get(wire.HeaderContact))
	})})
	user, node := w.files(pki.KindUser, "u"), w.files(pki.KindNode, "n")
	local := pki.Local(7).At(node.Principal).URI
	for name, c := range map[string]struct {
		files             *pki.Files
		alpn, first, want string
	}{
		"a user":                            {user, "http/1.1", "", user.Principal.URI + ` at ""`},
		"a node":                            {node, "http/1.1", "", node.Principal.URI + ` at ""`},
		"a user of a node":                  {node, wire.ALPNSocket, "{\"UID\":7}\n", local + ` at "n"`},
		"a key that is longer than allowed": {user, "http/1.1", "", "more than the "},
	} {
		conn := w.dial(c.files, c.alpn)
		_, _ = io.WriteString(conn, c.first)
		request := "GET / HTTP/1.1"
		if strings.HasPrefix(name, "a key") {
			request += "\r\n" + wire.HeaderKey + ": " + strings.Repeat("k", maxKey+1)
		}
		resp, _, err := w.ask(conn, request)
		if got := body(resp); err != nil || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q %v, want %q", name, got, err, c.want)
		}
	}
	for _, first := range []string{"not json\n", strings.Repeat("x", 64<<10)} {
		conn := w.dial(node, wire.ALPNSocket)
		_, _ = io.WriteString(conn, first)
		ended(t, conn)
	}
}

// One that is refused for who it is holds no connection.
func TestARefusalEndsItsConnection(t *testing.T) {
	w := newWay(t)
	w.Ready(Handlers{API: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { wire.Refuse(rw, http.StatusForbidden, "no") })})
	for _, files := range []*pki.Files{nil, w.files(pki.KindUser, "u")} {
		resp, r, err := w.ask(w.dial(files, "http/1.1"), "GET / HTTP/1.1")
		if err != nil || !resp.Close {
			t.Errorf("%v %v", resp, err)
			continue
		}
		ended(t, r)
	}
}

// A body has to come; one that keeps its pace is read whole, and its deadline does not
// outlive it.
func TestABodyKeepsItsPace(t *testing.T) {
	w := newWay(t)
	read := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			wire.Refuse(rw, http.StatusBadRequest, err.Error())
			return
		}
		_, _ = fmt.Fprint(rw, len(b))
	})
	w.Ready(Handlers{API: read, Joins: read})
	user := w.files(pki.KindUser, "u")
	for name, c := range map[string]struct {
		files *pki.Files
		alpn  string
	}{"a user": {user, "http/1.1"}, "a host that joins": {nil, wire.ALPNJoin}} {
		resp, r, err := w.ask(w.dial(c.files, c.alpn), "POST "+join.Path+" HTTP/1.1\r\nContent-Length: 10")
		if err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s who sends nothing: %v %v", name, resp, err)
			continue
		}
		ended(t, r)
	}
	conn := w.dial(user, "http/1.1")
	for range 2 {
		_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8192\r\n\r\n")
		for range 8 {
			_, _ = io.WriteString(conn, strings.Repeat("x", 1024))
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if got := body(resp); err != nil || got != "8192" {
			t.Errorf("%q %v", got, err)
		}
		time.Sleep(w.o.Pace.Grace + 100*time.Millisecond) // beyond what the body had
	}
}

// Agents and other controllers are told once why they are refused: whether they were
// removed, or are to look for another controller.
func TestStreamsAreForWhoeverIsKnown(t *testing.T) {
	w := newWay(t)
	answer := func(what string) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			p, _ := pki.PrincipalFrom(r.Context())
			_, _ = io.WriteString(rw, what+" "+p.ID)
		})
	}
	w.Ready(Handlers{Sessions: answer("session"), Peers: answer("peer"), Callers: answer("caller")})
	w.unknown["stranger"], w.revoked["gone"] = true, true
	for _, c := range []struct {
		kind, id, alpn string
		code           int
		want           string
		removed        string
	}{
		{pki.KindNode, "n", wire.ALPNSession, 200, "session n", ""},
		{pki.KindController, "m", wire.ALPNPeer, 200, "peer m", ""},
		{pki.KindController, "m", wire.ALPNRelay, 200, "caller m", ""},
		{pki.KindNode, "stranger", wire.ALPNSession, 403, "not known", "false"},
		{pki.KindNode, "gone", wire.ALPNSession, 403, pki.ErrRevoked.Error(), "true"},
		{pki.KindController, "gone", wire.ALPNPeer, 421, pki.ErrRevoked.Error(), "true"},
		{pki.KindController, "stranger", wire.ALPNPeer, 0, "", ""}, // it dials again
		{pki.KindController, "m", wire.ALPNSession, 0, "", ""},     // no node
		{pki.KindNode, "n", wire.ALPNPeer, 0, "", ""},              // no controller
		{pki.KindController, "gone", wire.ALPNRaft, 0, "", ""},
	} {
		config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{c.alpn}, Certificates: []tls.Certificate{w.files(c.kind, c.id).Cert}}
		tr := &http2.Transport{DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", w.Addr().String())
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://drover/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		code, got, removed := 0, "", ""
		if err == nil {
			code, got, removed = resp.StatusCode, body(resp), resp.Header.Get(wire.HeaderRemoved)
		}
		if code != c.code || !strings.Contains(got, c.want) || removed != c.removed {
			t.Errorf("%s %s over %s: %d %q %q %v", c.kind, c.id, c.alpn, code, got, removed, err)
		}
		cancel()
		tr.CloseIdleConnections()
	}
}

// quiet is a handler whose answers have begun and go on until they are cut.
func quiet(rw http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(rw).Flush()
	<-r.Context().Done()
}

// Connections end with the right to them: at once for who was revoked or may do less,
// after a moment for a controller, and nobody else's.
func TestARevocationEndsConnections(t *testing.T) {
	w := newWay(t)
	w.Ready(Handlers{API: http.HandlerFunc(quiet)})
	txn := state.NewTxn(state.NewStore().Snapshot())
	if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n", Roles: map[string]string{"7": pki.RoleAdmin, "8": pki.KindUser}}}}); err != nil {
		t.Fatal(err)
	}
	w.Seed(txn.View())
	open := func(files *pki.Files, alpn, first string) chan time.Time {
		t.Helper()
		conn := w.dial(files, alpn)
		_, _ = io.WriteString(conn, first)
		resp, r, err := w.ask(conn, "GET / HTTP/1.1")
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		end := make(chan time.Time, 1)
		go func() { _, _ = io.Copy(io.Discard, r); end <- time.Now() }()
		return end
	}
	node := w.files(pki.KindNode, "n")
	user, stays, ctl := open(w.files(pki.KindUser, "u"), "http/1.1", ""), open(w.files(pki.KindUser, "stays"), "http/1.1", ""), open(w.files(pki.KindController, "ctl"), "http/1.1", "")
	less, same := open(node, wire.ALPNSocket, "{\"UID\":7}\n"), open(node, wire.ALPNSocket, "{\"UID\":8}\n")
	w.revoke(pki.KindUser, "u")
	<-user
	w.Committed([]*dv1.Effect{{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n", Roles: map[string]string{"7": pki.KindUser, "8": pki.RoleAdmin}}}}})
	<-less
	began := time.Now()
	w.revoke(pki.KindController, "ctl")
	if at := <-ctl; at.Sub(began) < w.o.Linger {
		t.Errorf("a removed controller's connection ended after %v", at.Sub(began))
	}
	for what, end := range map[string]chan time.Time{"another user": stays, "who may do more": same} {
		select {
		case <-end:
			t.Errorf("the connection of %s ended", what)
		default:
		}
	}
	w.revoke(pki.KindNode, "n") // and with it its users'
	<-same
}

// What is in progress when a controller stops is ended and waited for, also on
// connections that a handler took over, and nothing begins any more.
func TestAStopWaitsForWhatIsInProgress(t *testing.T) {
	w := newWay(t)
	var open sync.WaitGroup
	open.Add(2)
	w.Ready(Handlers{API: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		defer open.Done()
		if r.URL.Path == "/hijacked" {
			c, _, err := http.NewResponseController(rw).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
			return
		}
		quiet(rw, r)
	})})
	user := w.files(pki.KindUser, "u")
	for path, code := range map[string]int{"/hijacked": 101, "/quiet": 200} {
		if resp, _, err := w.ask(w.dial(user, "http/1.1"), "GET "+path+" HTTP/1.1"); err != nil || resp.StatusCode != code {
			t.Fatalf("%s: %v %v", path, resp, err)
		}
	}
	half := w.dial(w.files(pki.KindNode, "n"), wire.ALPNSocket) // its first line never comes
	began := time.Now()
	w.stop()
	open.Wait() // a handler that still runs hangs the test
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %v", took)
	}
	ended(t, half)
}

func TestAdvertise(t *testing.T) {
	for _, c := range []struct{ want, listened, got string }{
		{"", "127.0.0.1:7443", "127.0.0.1:7443"},
		{"", "0.0.0.0:7443", "error"},
		{"", "[::]:7443", "error"},
		{"10.0.0.1", "0.0.0.0:7443", "10.0.0.1:7443"},
		{"10.0.0.1:443", "0.0.0.0:7443", "10.0.0.1:443"},
		{"host", "0.0.0.0:7443", "host:7443"},
		{"fd00::1", "[::]:7443", "[fd00::1]:7443"},
		{"[fd00::1]", "[::]:7443", "[fd00::1]:7443"},
	} {
		got, err := advertise(c.want, advertised(c.listened))
		if err != nil {
			got = "error"
		}
		if got != c.got {
			t.Errorf("%q on %s: %s (%v), want %s", c.want, c.listened, got, err, c.got)
		}
	}
}
