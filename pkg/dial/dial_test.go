package dial

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover/drover/pkg/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server answers handshakes, or with silent takes connections and says nothing.
func server(t *testing.T, silent bool) (addr string, conf *tls.Config) {
	t.Helper()
	ca, err := pki.NewAuthority("c", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Issue(pki.URI("c", pki.KindController, "1"), key.Public(), []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		var conns []net.Conn
		defer func() {
			for _, c := range conns {
				_ = c.Close()
			}
		}()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
			if !silent {
				_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}).Handshake()
			}
		}
	}()
	return l.Addr().String(), &tls.Config{InsecureSkipVerify: true}
}

// One that refuses, or takes connections and answers nothing, is gone past; all
// that don't answer are named.
func TestTheOneThatAnswersIsTaken(t *testing.T) {
	good, conf := server(t, false)
	frozen, _ := server(t, true)
	for _, addrs := range [][]string{{good}, {"127.0.0.1:1", good}, {frozen, good}, {frozen, "127.0.0.1:1", good}, {good, frozen}} {
		c, err := First(t.Context(), conf, addrs)
		if err != nil {
			t.Fatalf("%v: %v", addrs, err)
		}
		if got := c.RemoteAddr().String(); got != good {
			t.Errorf("%v gave %s", addrs, got)
		}
		_ = c.Close()
	}
	_, err := First(t.Context(), conf, []string{"127.0.0.1:1", "127.0.0.1:2"})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), "127.0.0.1:2") {
		t.Errorf("nobody answers: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := Dialer(conf, func() []string { return []string{frozen} })(ctx, "", ""); err == nil || c != nil {
		t.Errorf("a dial that nobody wants gave %v, %v", c, err)
	}
	if _, err := First(t.Context(), conf, nil); err == nil {
		t.Error("no address was dialed")
	}
}
