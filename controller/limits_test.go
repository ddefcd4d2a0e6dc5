package controller

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/controller/gateway"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
)

// impatient is a pace of bodies that a test can wait for.
var impatient = tuning{pace: gateway.Pace{Grace: time.Second, Rate: 1 << 20}}

// connect opens a connection to the controller's port with an ALPN name ("" for
// none), and with files' certificate unless they are nil.
func (h *host) connect(files *pki.Files, proto string) *tls.Conn {
	h.t.Helper()
	config := &tls.Config{InsecureSkipVerify: true}
	if proto != "" {
		config.NextProtos = []string{proto}
	}
	if files != nil {
		config.Certificates = []tls.Certificate{files.Cert}
	}
	c, err := tls.Dial("tcp", h.addr, config)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	return c
}

// closes wants the connection's other end to close within a time.
func closes(t *testing.T, c net.Conn, r io.Reader, within time.Duration) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(within))
	if _, err := io.Copy(io.Discard, r); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is still open after %v", within)
	}
}

// Nobody holds a connection with a body that doesn't come: a stranger is refused
// without it, and who is known, or joins, must keep a pace.
func TestASlowBodyIsNotWaitedFor(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.tuning = impatient
	h.up()
	const long = 30 * time.Second // against a machine that is busy, not a measure
	for _, c := range []struct {
		what, proto, path string
		files             *pki.Files
		code              int
	}{
		{"a stranger", "", "/containers/create", nil, http.StatusUnauthorized},
		{"an unknown user", "http/1.1", "/containers/create", h.identity(pki.KindUser, "stranger"), http.StatusForbidden},
		{"an admin", "http/1.1", "/containers/create", h.files(identity.AdminPKI(h.data)), http.StatusBadRequest},
		{"a stranger who joins", wire.ALPNJoin, join.Path, nil, http.StatusBadRequest},
	} {
		conn := h.connect(c.files, c.proto)
		_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"a\"", c.path)
		_ = conn.SetReadDeadline(time.Now().Add(long))
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if resp.StatusCode != c.code {
			b, _ := io.ReadAll(resp.Body)
			t.Errorf("%s: %d %s, want %d", c.what, resp.StatusCode, b, c.code)
		}
		closes(t, conn, r, long)
	}
}

// Who is refused for who it is holds no connection: certificates of those who were
// removed are good for handshakes for a year.
func TestWhoIsRefusedHoldsNoConnection(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 2)
	lead, others := split(t, all)
	removed := lead.identity(pki.KindUser, "removed")
	lead.eventually(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: removed.Principal.URI, Roles: []string{pki.KindUser}, Revoked: true}}}})
	for who, files := range map[string]*pki.Files{
		"a user who was removed": removed, "an unknown user": lead.identity(pki.KindUser, "stranger"), "a stranger": nil,
		"a node that asks for more than it may": lead.files(identity.AgentPKI(lead.data)),
	} {
		for where, h := range map[string]*host{"the leader": lead, "a follower": others[0]} {
			conn := h.connect(files, "http/1.1")
			_, _ = io.WriteString(conn, "GET /info HTTP/1.1\r\nHost: x\r\n\r\n")
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			r := bufio.NewReader(conn)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s at %s: %v %v", who, where, resp, err)
				continue
			}
			if !resp.Close {
				t.Errorf("%s at %s may ask again on its connection", who, where)
				continue
			}
			closes(t, conn, r, 20*time.Second)
		}
	}
}

// A body that keeps its pace is read whole, however long it takes, and the
// deadline doesn't outlive it.
func TestABodyThatComesIsRead(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.tuning = impatient
	h.up()
	body := `{"Image":"` + strings.Repeat("x", 64<<10) + `"}`
	conn := h.connect(h.files(identity.AdminPKI(h.data)), "http/1.1")
	r := bufio.NewReader(conn)
	for range 2 {
		_, _ = fmt.Fprintf(conn, "POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(body))
		for i := 0; i < len(body); i += 4096 {
			if _, err := io.WriteString(conn, body[i:min(i+4096, len(body))]); err != nil {
				t.Fatal(err)
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusNotFound || strings.Contains(string(b), "reading the request") {
			t.Fatalf("%d %s", resp.StatusCode, b)
		}
		time.Sleep(h.tuning.pace.Grace + 100*time.Millisecond) // beyond what the body had: the connection must still be good
	}
}
