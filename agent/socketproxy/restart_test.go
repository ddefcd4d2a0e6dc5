package socketproxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/drover/drover/pkg/pki"
)

// A client waits for a controller that is being restarted, as it does on that
// controller's own host.
func TestAControllerThatIsRestartedIsWaitedFor(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir, err := os.MkdirTemp("", "dd")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	l := controller(t)
	defer func() { _ = l.Close() }()
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		br := bufio.NewReader(c)
		_, _ = br.ReadString('\n') // who comes
		if _, err := http.ReadRequest(br); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
		}
	}()
	path := filepath.Join(dir, "drover.sock")
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Path: path, TLS: &tls.Config{InsecureSkipVerify: true}, Log: slog.New(slog.DiscardHandler), Controllers: func() []string {
			if tries++; tries < 4 {
				return []string{"127.0.0.1:1"} // nobody listens there
			}
			return []string{l.Addr().String()}
		}})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		<-served
	}()
	var c net.Conn
	for c == nil {
		c, _ = net.Dial("unix", path)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent || tries != 4 {
		t.Errorf("answered %s after %d tries", resp.Status, tries)
	}
}

// controller listens with a certificate.
func controller(t *testing.T) net.Listener {
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
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}
