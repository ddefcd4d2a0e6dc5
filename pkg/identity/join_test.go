package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
)

// answering serves joins, with what change makes of each answer.
func answering(t *testing.T, change func(*join.Answer)) (addr string, token pki.Token, asked *[]join.Request) {
	t.Helper()
	ca, err := pki.NewAuthority("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	issue := func(kind, id string, pub crypto.PublicKey) []byte {
		der, err := ca.Issue(pki.URI("c1", kind, id), pub, nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	mine := tls.Certificate{Certificate: [][]byte{issue(pki.KindController, "first", key.Public()), ca.Cert.Raw}, PrivateKey: key}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{mine}, NextProtos: []string{wire.ALPNJoin}})
	if err != nil {
		t.Fatal(err)
	}
	asked = &[]join.Request{}
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req join.Request
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			t.Error(err)
		}
		*asked = append(*asked, req)
		pub := func(der []byte) crypto.PublicKey {
			k, err := x509.ParsePKIXPublicKey(der)
			if err != nil {
				t.Error(err)
			}
			return k
		}
		a := &join.Answer{Cluster: "c1", Node: "n", Bundle: [][]byte{ca.Cert.Raw}, Controllers: []string{"10.0.0.1:7443"},
			NodeCert:       issue(pki.KindNode, "n", pub(req.NodeKey)),
			ControllerCert: issue(pki.KindController, "n", pub(req.ControllerKey)),
			AdminCert:      issue(pki.KindUser, "admin-n", pub(req.AdminKey))}
		change(a)
		_ = json.NewEncoder(w).Encode(a)
	})}
	go func() { _ = s.Serve(plain{l}) }()
	t.Cleanup(func() { _ = s.Close() })
	if token, err = pki.NewToken(pki.Pin(ca.Cert.Raw)); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String(), token, asked
}

// plain hides TLS from net/http, which does not serve protocols that it doesn't know.
type plain struct{ net.Listener }

func (l plain) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return struct{ net.Conn }{c}, err
}

// Half an answer on disk would make a member of this host that can neither run
// nor join again.
func TestAnAnswerThatLacksWhatWasAskedForInstallsNothing(t *testing.T) {
	for want, spoil := range map[string]func(*join.Answer){
		"controller's certificate":      func(a *join.Answer) { a.ControllerCert = nil },
		"admin's certificate":           func(a *join.Answer) { a.AdminCert = nil },
		"agent's certificate":           func(a *join.Answer) { a.NodeCert = nil },
		"authority to trust":            func(a *join.Answer) { a.Bundle = nil },
		"names no controller":           func(a *join.Answer) { a.Controllers = nil },
		"for another key than":          func(a *join.Answer) { a.ControllerCert = otherKey(t) },
		"agent's certificate is of spi": func(a *join.Answer) { a.NodeCert = a.ControllerCert },
	} {
		broken := true
		addr, token, asked := answering(t, func(a *join.Answer) {
			if broken {
				spoil(a)
			}
		})
		dir := t.TempDir()
		o := JoinOptions{DataDir: dir, Token: token, Addr: addr, NodeName: "b", Agent: "127.0.0.1:1", Controller: "127.0.0.1:2", Now: time.Now()}
		if err := Join(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("want %q: %v", want, err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() != joinKeys {
			t.Fatalf("%s: left behind: %v %v", want, entries, err)
		}
		broken = false
		if err := Join(t.Context(), o); err != nil {
			t.Fatalf("%s: joining again: %v", want, err)
		}
		if a, b := (*asked)[0], (*asked)[1]; string(a.ControllerKey) != string(b.ControllerKey) || string(a.SealPublic) != string(b.SealPublic) {
			t.Errorf("%s: joining again was another join", want)
		}
		for _, p := range []string{ControllerPKI(dir), AdminPKI(dir), AgentPKI(dir)} {
			if _, err := pki.LoadFiles(p); err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Stat(filepath.Join(dir, joinKeys)); !os.IsNotExist(err) {
			t.Errorf("%s: the join's keys are still there: %v", want, err)
		}
	}
}

// otherKey is a controller's certificate that is for somebody else's key.
func otherKey(t *testing.T) []byte {
	t.Helper()
	ca, err := pki.NewAuthority("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	k, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Issue(pki.URI("c1", pki.KindController, "n"), k.Public(), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return der
}
