package controller

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/access/accesstest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// dialAs opens a connection to the controller's port with one ALPN name, as files
// say or as nobody. A refused handshake is the error: TLS 1.2 has the server's last
// word in it.
func (h *host) dialAs(files *pki.Files, alpn string) (*tls.Conn, error) {
	config := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{alpn}}
	if files != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &files.Cert, nil }
	}
	return tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", h.addr, config)
}

// over gives a transport of requests over one ALPN name: HTTP/2 among the fleet's own
// processes, HTTP/1.1 else, after first is sent.
func (h *host) over(files *pki.Files, alpn, first string, h2 bool) (http.RoundTripper, func()) {
	dial := func(context.Context, string, string) (net.Conn, error) {
		c, err := h.dialAs(files, alpn)
		if err == nil && first != "" {
			_, err = io.WriteString(c, first)
		}
		return c, err
	}
	if h2 {
		t := &http2.Transport{DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
			return dial(ctx, network, addr)
		}}
		return t, t.CloseIdleConnections
	}
	t := &http.Transport{DialContext: dial}
	return t, t.CloseIdleConnections
}

// eventually proposes at whoever leads.
func (h *host) eventually(cmd *dv1.Command) {
	h.t.Helper()
	r, err := h.c.fleet.Propose(h.t.Context(), accesstest.Named(h.c.node.Load().Snapshot(), cmd))
	if err != nil || r.GetError() != nil {
		h.t.Fatalf("proposing %T: %v %v", cmd.GetOf(), r, err)
	}
}

// send makes one request; its body is b.
func send(t *testing.T, rt http.RoundTripper, method, path string, header http.Header, b []byte) response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	scheme := "http"
	if _, ok := rt.(*http2.Transport); ok {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, method, scheme+"://drover"+path, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return response{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return response{resp.StatusCode, string(body), resp.Header, err}
}

// What the leader asks of other controllers only, nobody else reaches through one of
// them; and who speaks as a controller speaks as no other.
func TestACertificateIsWorthNoMoreAtAFollower(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	lead, others := split(t, all)
	node := others[0].files(identity.AgentPKI(others[0].data))
	user := lead.identity(pki.KindUser, "mallory")
	lead.eventually(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: user.Principal.URI, Roles: []string{pki.KindUser}}}}})
	lead.eventually(&dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: node.Principal.ID, Roles: map[string]string{"7": "user"}}}})
	promote := func(principal string) []byte {
		b, err := proto.Marshal(&dv1.Command{Principal: principal, Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{
			Uri: node.Principal.URI, Roles: []string{pki.KindNode, pki.RoleAdmin}}}}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	controller := lead.files(identity.ControllerPKI(lead.data)).Principal.URI
	for what, at := range map[string]*host{"the leader": lead, "a follower": others[0]} {
		for who, c := range map[string]struct {
			files       *pki.Files
			alpn, first string
		}{
			"a node":          {node, "http/1.1", ""},
			"a user":          {user, "http/1.1", ""},
			"a user's socket": {node, wire.ALPNSocket, "{\"UID\":7}\n"},
			"nobody's socket": {node, wire.ALPNSocket, "{\"UID\":8}\n"},
			"a node as peer":  {node, wire.ALPNPeer, ""},
		} {
			rt, done := at.over(c.files, c.alpn, c.first, c.alpn == wire.ALPNPeer)
			for _, principal := range []string{"", node.Principal.URI, controller} {
				for _, forged := range []string{"", controller, `{"Kind":"controller"}`} {
					header := http.Header{}
					if forged != "" {
						header.Set("Drover-Principal", forged)
					}
					if r := send(t, rt, "POST", "/peer/v1/propose", header, promote(principal)); r.code == 200 {
						t.Errorf("%s at %s has a command of %q decided, as %q: %v", who, what, principal, forged, r)
					}
				}
			}
			for _, path := range []string{"/peer/v1/status", "/peer/v1/digest", dv1connect.TokensListProcedure, "/v1.44" + dv1connect.TokensListProcedure, "/x/../peer/v1/status"} {
				for method, body := range map[string]string{"GET": "", "POST": "{}"} {
					if r := send(t, rt, method, path, http.Header{"Content-Type": {"application/json"}}, []byte(body)); r.code == 200 {
						t.Errorf("%s at %s gets %s %s: %v", who, what, method, path, r)
					}
				}
			}
			done()
		}
	}
	// A controller is no other one, and may not ask as its callers for what is its own.
	follower := others[0].files(identity.ControllerPKI(others[0].data))
	rt, done := lead.over(follower, wire.ALPNPeer, "", true)
	for _, principal := range []string{"", node.Principal.URI, controller} {
		var res dv1.CommandResult
		r := send(t, rt, "POST", "/peer/v1/propose", nil, promote(principal))
		if err := proto.Unmarshal([]byte(r.body), &res); r.code == 200 && (err != nil || res.GetError().GetKind() != dv1.Error_FORBIDDEN) {
			t.Errorf("a controller has a command of %q decided: %v", principal, r)
		}
	}
	if r := send(t, rt, "GET", "/peer/v1/status", http.Header{"Drover-Principal": {node.Principal.URI}}, nil); r.code != 403 {
		t.Errorf("a question on somebody's behalf: %v", r)
	}
	if r := send(t, rt, "GET", "/peer/v1/status", nil, nil); r.code != 200 {
		t.Errorf("a controller's own question: %v", r)
	}
	done()
	for whose, want := range map[string]int{"": 403, controller: 403, node.Principal.URI: 403, user.Principal.URI: 403,
		follower.Principal.URI: 403, follower.Principal.URI + "/uid/0": 200, node.Principal.URI + "/uid/7": 403} {
		until(t, "an answer of who leads", func() bool { // which may be another one by now
			lead, _ = split(t, all)
			rt, done := lead.over(follower, wire.ALPNRelay, "", true)
			defer done()
			r := send(t, rt, "POST", dv1connect.TokensListProcedure, http.Header{"Drover-Principal": {whose}, "Content-Type": {"application/json"}}, []byte("{}"))
			if r.code != want && r.code != http.StatusMisdirectedRequest && r.err == nil {
				t.Errorf("tokens, passed on for %q: %v, want %d", whose, r, want)
			}
			return r.code == want || t.Failed()
		})
	}
	rt, done = lead.over(follower, wire.ALPNRelay, "", true)
	if r := send(t, rt, "GET", "/peer/v1/status", http.Header{"Drover-Principal": {controller}}, nil); r.code == 200 {
		t.Errorf("a question among callers' requests: %v", r)
	}
	done()
	for _, h := range all {
		if id := h.c.node.Load().Snapshot().Identity(node.Principal.URI); strings.Join(id.GetRoles(), " ") != pki.KindNode {
			t.Errorf("the node's roles are %v now", id.GetRoles())
		}
	}
}

// A stream that a node's user has open through its host's socket ends with the node, and with what
// the user was granted.
func TestAProxiedStreamEndsWithItsNode(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.up()
	grant := func(roles map[string]string) {
		h.propose(&dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "d", Roles: roles}}})
	}
	node := h.identity(pki.KindNode, "d")
	known := func(revoked bool) {
		h.propose(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: node.Principal.URI, Roles: []string{pki.KindNode}, Revoked: revoked}}}})
	}
	known(false)
	h.propose(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{Id: "d", Name: "d"}}}})
	// events gives the end of a stream through a proxied socket.
	events := func(uid string) chan bool {
		c, err := h.dialAs(node, wire.ALPNSocket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := io.WriteString(c, "{\"UID\":"+uid+"}\nGET /events HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("events through a proxied socket: %v %v", resp, err)
		}
		ended := make(chan bool, 1)
		go func() {
			defer func() { _ = resp.Body.Close() }()
			if _, err := io.Copy(io.Discard, resp.Body); !errors.Is(err, os.ErrDeadlineExceeded) {
				ended <- true
			}
		}()
		return ended
	}
	grant(map[string]string{"7": "user", "8": "admin", "9": "user"})
	seven, eight, nine := events("7"), events("8"), events("9")
	grant(map[string]string{"7": "", "8": "user", "9": "admin"})
	wait(t, seven, "the stream of who has no role any more ends")
	wait(t, eight, "the stream of who is no admin any more ends")
	select {
	case <-nine:
		t.Error("the stream of who may do more has ended")
	default:
	}
	known(true)
	wait(t, nine, "the stream ends with its node")
}

// A controller that has not its log yet says nothing of who may do what: the users of
// a host without one wait for it.
func TestAProxiedSocketGetsNoVerdictFromAControllerWithoutItsLog(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	for _, h := range all {
		h.tuning.patience = 50 * time.Millisecond // from their next start
	}
	node := all[0].identity(pki.KindNode, "d")
	all[0].eventually(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: node.Principal.URI, Roles: []string{pki.KindNode}}}}})
	all[0].eventually(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{Id: "d", Name: "d"}}}})
	all[0].eventually(&dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "d", Roles: map[string]string{"7": "user"}}}})
	for _, h := range all {
		h.off()
	}
	// The first one that comes back has nobody to learn from what is committed.
	var starting sync.WaitGroup
	defer starting.Wait()
	start := func(h *host) {
		starting.Go(func() {
			if err := h.on(); err != nil {
				t.Error(err)
			}
		})
	}
	start(all[0])
	ask := func() response {
		rt, done := all[0].over(node, wire.ALPNSocket, "{\"UID\":7}\n", false)
		defer done()
		return send(t, rt, "GET", "/containers/json", nil, nil)
	}
	until(t, "an answer", func() bool {
		r := ask()
		if r.err == nil && (r.code != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "") {
			t.Fatalf("before the log is ready: %v", r)
		}
		return r.err == nil
	})
	for _, h := range all[1:] {
		start(h)
	}
	until(t, "an answer from the log", func() bool {
		r := ask()
		if r.err == nil && r.code != http.StatusOK && (r.code != http.StatusServiceUnavailable || r.header.Get("Retry-After") == "") {
			t.Fatalf("while the log comes: %v", r)
		}
		return r.code == http.StatusOK
	})
}

// A host whose proxied sockets are refused all the time fills no log, and writes nothing into it.
func TestRefusedProxiedSocketsFillNoLog(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.up()
	node := h.identity(pki.KindNode, "d")
	knock := func(from, first string) {
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}, "tcp", h.addr,
			pki.PeerClientTLS(node, wire.ALPNSocket, pki.Kinds(pki.KindController)))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(c, first)
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) { // cut when the line is written
			t.Fatal("a connection without a hello stays open")
		}
	}
	for range 5 {
		knock("127.0.0.1", "{\"UID\":66666666666666666666}\n")
		knock("127.0.0.1", "GET /forged HTTP/1.1\r\n\r\n")
	}
	knock("127.0.0.2", "\n")
	said := h.log.String()
	if n := strings.Count(said, "refused a proxied socket"); n != 2 || strings.Count(said, "peer=127.0.0.1 ") != 1 || strings.Count(said, "peer=127.0.0.2 ") != 1 {
		t.Errorf("%d lines of two hosts, want one of each:\n%s", n, said)
	}
	if strings.Contains(said, "666666") || strings.Contains(said, "forged") {
		t.Errorf("the log has a caller's own words:\n%s", said)
	}
}

// A token that says nothing of its end has one.
func TestEveryTokenExpires(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.up()
	for body, want := range map[string]int{`{"role":"agent"}`: 200, `{"role":"agent","ttl":1000000000}`: 200, `{"role":"agent","ttl":-1}`: 400, `{"role":"agent","ttl":31536000000000001}`: 400} {
		if r := h.fleet("Tokens/Create", body); r.code != want {
			t.Errorf("%s: %v", body, r)
		}
	}
	for tk := range h.c.node.Load().Snapshot().Tokens() {
		if left := time.Until(time.Unix(0, tk.Expires)); tk.Expires == 0 || left > 24*time.Hour {
			t.Errorf("a token is good for %v", left)
		}
	}
}
