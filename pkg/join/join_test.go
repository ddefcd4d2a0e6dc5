package join_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/pki/pkitest"
)

// plain hides TLS from net/http, which does not serve protocols that it doesn't know.
type plain struct{ net.Listener }

func (l plain) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return struct{ net.Conn }{c}, err
}

// serve answers joins as who has this certificate and key would.
func serve(t *testing.T, cert tls.Certificate, protos []string, h http.HandlerFunc) (addr string) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(plain{l}) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return l.Addr().String()
}

// certificate is what ca signs for a controller, unless change says otherwise; the chain
// ends with the roots.
func certificate(t *testing.T, ca *pki.Authority, change func(*x509.Certificate), roots ...*pki.Authority) tls.Certificate {
	t.Helper()
	k, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), URIs: named("spiffe://c/controller/1"),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.Cert, k.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	out := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
	for _, r := range roots {
		out.Certificate = append(out.Certificate, r.Cert.Raw)
	}
	return out
}

func named(uri string) []*url.URL {
	u, _ := url.Parse(uri)
	return []*url.URL{u}
}

func token(t *testing.T, ca *pki.Authority) pki.Token {
	t.Helper()
	tk, err := pki.NewToken(pki.Pin(ca.Cert.Raw))
	if err != nil {
		t.Fatal(err)
	}
	return tk
}

// The secret is sent to nobody but a controller of the fleet that made the token, and
// that one is found whatever this host's clock says.
func TestTheSecretIsForTheFleetOfTheTokenOnly(t *testing.T) {
	ca, other := pkitest.Authority(t, "c"), pkitest.Authority(t, "c")
	for name, c := range map[string]struct {
		cert tls.Certificate
		want string // "": it is asked
	}{
		"a controller":         {certificate(t, ca, nil, ca), ""},
		"with two authorities": {certificate(t, ca, nil, other, ca), ""},
		"an expired controller": {certificate(t, ca, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = ca.Cert.NotBefore, ca.Cert.NotBefore.Add(time.Minute)
		}, ca), ""},
		"a controller from 2050": {certificate(t, ca, func(c *x509.Certificate) {
			c.NotBefore = time.Now().Add(24 * 365 * 24 * time.Hour)
			c.NotAfter = c.NotBefore.Add(time.Hour)
		}, ca), ""},
		"without its authority":    {certificate(t, ca, nil), "its authority is another one"},
		"of another fleet":         {certificate(t, other, nil, other), "its authority is another one"},
		"who shows our authority":  {certificate(t, other, nil, ca), "not its authority's"},
		"who shows both":           {certificate(t, other, nil, other, ca), "not its authority's"},
		"a node of the fleet":      {certificate(t, ca, func(c *x509.Certificate) { c.URIs = named("spiffe://c/node/1") }, ca), "is no controller"},
		"a user of the fleet":      {certificate(t, ca, func(c *x509.Certificate) { c.URIs = named("spiffe://c/user/controller") }, ca), "is no controller"},
		"nobody":                   {certificate(t, ca, func(c *x509.Certificate) { c.URIs = nil }, ca), "identity URIs"},
		"whose key is for clients": {certificate(t, ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, ca), "not its authority's"},
		"the authority itself":     {tls.Certificate{Certificate: [][]byte{ca.Cert.Raw}, PrivateKey: ca.Key}, "identity URIs"},
	} {
		asked := false
		addr := serve(t, c.cert, []string{wire.ALPNJoin}, func(w http.ResponseWriter, _ *http.Request) {
			asked = true
			_, _ = io.WriteString(w, `{"Node":"n"}`)
		})
		a, err := join.Ask(t.Context(), addr, token(t, ca), &join.Request{})
		if c.want == "" {
			if err != nil || a.Node != "n" {
				t.Errorf("%s: %+v, %v", name, a, err)
			}
			continue
		}
		if asked || err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: asked %v, %v, want %q", name, asked, err, c.want)
		}
	}
}

func TestWhatIsAskedArrivesAndWhatIsAnsweredReturns(t *testing.T) {
	ca := pkitest.Authority(t, "c")
	req := &join.Request{TokenID: "id", Secret: "secret", Name: "b", Hosts: []string{"10.0.0.2", "b"}, Agent: "10.0.0.2:7444", Labels: map[string]string{"k": "v"},
		Now: time.Unix(5, 6).UTC(), NodeKey: []byte{1}, Controller: "10.0.0.2:7443", ControllerKey: []byte{2}, AdminKey: []byte{3}, SealPublic: []byte{4}}
	answer := &join.Answer{Cluster: "c", Node: "n", Bundle: [][]byte{{5}}, NodeCert: []byte{6}, ControllerCert: []byte{7}, AdminCert: []byte{8}, Controllers: []string{"a:1"}, Timing: "lan"}
	addr := serve(t, certificate(t, ca, nil, ca), []string{wire.ALPNJoin}, func(w http.ResponseWriter, r *http.Request) {
		got := &join.Request{}
		if err := json.NewDecoder(r.Body).Decode(got); err != nil || !reflect.DeepEqual(got, req) || r.Method != http.MethodPost || r.URL.Path != join.Path {
			t.Errorf("%s %s: %+v, %v", r.Method, r.URL, got, err)
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	got, err := join.Ask(t.Context(), addr, token(t, ca), req)
	if err != nil || !reflect.DeepEqual(got, answer) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestRefusalsAndBrokenAnswers(t *testing.T) {
	ca := pkitest.Authority(t, "c")
	elsewhere := serve(t, certificate(t, ca, nil, ca), []string{wire.ALPNJoin}, func(http.ResponseWriter, *http.Request) { t.Error("the secret went elsewhere") })
	for name, c := range map[string]struct {
		answer  http.HandlerFunc
		code    int // of a refusal, 0: of none
		message string
	}{
		"with a message": {func(w http.ResponseWriter, _ *http.Request) {
			wire.Refuse(w, http.StatusForbidden, `the token "x" is used up`)
		}, http.StatusForbidden, `the token "x" is used up`},
		"agents only":      {func(w http.ResponseWriter, _ *http.Request) { wire.Refuse(w, join.AgentsOnly, "agents only") }, join.AgentsOnly, "agents only"},
		"without":          {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, 503, "503 Service Unavailable"},
		"an empty message": {func(w http.ResponseWriter, _ *http.Request) { wire.Refuse(w, 400, "") }, 400, "400 Bad Request"},
		"no JSON":          {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) }, 502, "502 Bad Gateway"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != join.Path {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			http.Redirect(w, r, "https://"+elsewhere+"/x", http.StatusTemporaryRedirect)
		}, 404, "404 Not Found"},
		"another success": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, 204, "204 No Content"},
		"nothing":         {func(http.ResponseWriter, *http.Request) {}, 0, "reading the answer of"},
		"half":            {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"Node":"n"`) }, 0, "reading the answer of"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"Node":"n"}`)
		}, 0, "reading the answer of"},
		"another type": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"Node":5}`) }, 0, "reading the answer of"},
		"longer than any": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"Node":"`+strings.Repeat("n", 2<<20)+`"}`)
		}, 0, "reading the answer of"},
		"a crash": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0, "asking the controller at"},
	} {
		addr := serve(t, certificate(t, ca, nil, ca), []string{wire.ALPNJoin}, c.answer)
		a, err := join.Ask(t.Context(), addr, token(t, ca), &join.Request{})
		no := (*join.RefusedError)(nil)
		if refused := errors.As(err, &no); a != nil || err == nil || refused != (c.code != 0) || refused && no.Code != c.code || !strings.Contains(err.Error(), c.message) {
			t.Errorf("%s: %+v, %v (refused: %v), want %d %q", name, a, err, refused, c.code, c.message)
		}
	}
}

// What answers is no controller at all: an error that names the address.
func TestWhoDoesNotSpeakTheProtocol(t *testing.T) {
	ca := pkitest.Authority(t, "c")
	web := serve(t, certificate(t, ca, nil, ca), []string{"http/1.1"}, func(http.ResponseWriter, *http.Request) { t.Error("it was asked") })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mute := l.Addr().String() // accepts, by the kernel, and says nothing
	t.Cleanup(func() { _ = l.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	for addr, ctx := range map[string]context.Context{web: t.Context(), mute: ctx, "no address": t.Context(), "127.0.0.1:0": t.Context()} {
		if _, err := join.Ask(ctx, addr, token(t, ca), &join.Request{}); err == nil || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// A request comes from anybody: what is too long or could not be shown is refused by its
// name, and what hosts really send is not.
func TestValidate(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	labels := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint(i)] = "v"
		}
		return m
	}
	for _, c := range []struct {
		req  join.Request
		want string // "": it is valid
	}{
		{join.Request{}, ""},
		{join.Request{TokenID: x(64), Secret: x(256), Name: x(253), Agent: x(253) + ":65535", Controller: x(253) + ":65535", Hosts: []string{x(253)},
			Labels: map[string]string{x(1024): x(1024)}, NodeKey: make([]byte, 1024)}, ""},
		{join.Request{Name: "web-1.example.com", Hosts: []string{"fe80::1%eth0", "10.0.0.1"}, Agent: "[fe80::1]:7444", Labels: map[string]string{"größe": "", "": "x"}}, ""},
		{join.Request{Name: "a"}, ""},
		{join.Request{Hosts: make([]string, 64), Labels: labels(128)}, ""},

		{join.Request{TokenID: x(65)}, "token's id"},
		{join.Request{TokenID: "a\n"}, "token's id"},
		{join.Request{Secret: x(257)}, "secret"},
		{join.Request{Secret: "\x1b[2J"}, "secret"},
		{join.Request{Agent: x(260)}, "agent's address"},
		{join.Request{Agent: "a:1\x00"}, "agent's address"},
		{join.Request{Controller: x(260)}, "controller's address"},
		{join.Request{Controller: "\u202e:1"}, "controller's address"},
		{join.Request{Name: x(254)}, "host's name"},
		{join.Request{Name: "-a"}, "host's name"},
		{join.Request{Name: "a-"}, "host's name"},
		{join.Request{Name: "."}, "host's name"},
		{join.Request{Name: "a b"}, "host's name"},
		{join.Request{Name: "a\n"}, "host's name"},
		{join.Request{Name: "a/b"}, "host's name"},
		{join.Request{Name: "ü"}, "host's name"},
		{join.Request{Hosts: make([]string, 65)}, "more than 64 addresses"},
		{join.Request{Hosts: []string{"a", x(254)}}, "an address"},
		{join.Request{Hosts: []string{"a\tb"}}, "an address"},
		{join.Request{Labels: labels(129)}, "128 labels"},
		{join.Request{Labels: map[string]string{x(1025): ""}}, "label's name"},
		{join.Request{Labels: map[string]string{"a\r": ""}}, "label's name"},
		{join.Request{Labels: map[string]string{"a": x(1025)}}, "a label"},
		{join.Request{Labels: map[string]string{"a": "\x1b"}}, "a label"},
		{join.Request{NodeKey: make([]byte, 1025)}, "a key"},
		{join.Request{ControllerKey: make([]byte, 1025)}, "a key"},
		{join.Request{AdminKey: make([]byte, 1025)}, "a key"},
		{join.Request{SealPublic: make([]byte, 1025)}, "a key"},
	} {
		if err := c.req.Validate(); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%.80v: %v, want %q", c.req, err, c.want)
		}
	}
}
