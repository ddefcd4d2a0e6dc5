package controller

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/roster"
)

// Who joins is told what is wrong, once and for all; asked again with the same
// keys, a join is the same join.
func TestAJoinIsCheckedAndCanBeAskedAgain(t *testing.T) {
	h := newHost(t)
	h.up()
	token, err := pki.NewToken(pki.Pin(h.ca.Cert.Raw))
	if err != nil {
		t.Fatal(err)
	}
	h.propose(&dv1.Command{Of: &dv1.Command_PutToken{PutToken: &dv1.PutToken{Token: &dv1.Token{Id: token.ID, Hash: token.Hash(), Role: "agent"}}}})
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	req := func() *join.Request {
		return &join.Request{TokenID: token.ID, Secret: token.Secret, Name: "b", Agent: "10.0.0.2:7444", Hosts: []string{"10.0.0.2"}, Now: time.Now(), NodeKey: pub}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	refused := func(what, words string, tk pki.Token, change func(*join.Request)) {
		t.Helper()
		r := req()
		change(r)
		_, err := join.Ask(ctx, h.addr, tk, r)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", what, err, words)
		}
		var no *join.RefusedError
		if errors.As(err, &no) && no.Code >= 500 {
			t.Errorf("%s was answered with %d", what, no.Code)
		}
	}
	refused("a clock in the past", "the clock of this host is off by", token, func(r *join.Request) { r.Now = time.Unix(0, 0) })
	refused("a clock in the future", "the clock of this host is off by", token, func(r *join.Request) { r.Now = time.Now().Add(5 * 365 * 24 * time.Hour) })
	refused("a wrong secret", "not one of this fleet's", token, func(r *join.Request) { r.Secret = strings.Repeat("a", 32) })
	refused("no name", "needs a host name", token, func(r *join.Request) { r.Name = "" })
	refused("a controller without keys", "reading a public key", token, func(r *join.Request) { r.Controller = "10.0.0.2:7443" })
	refused("another fleet's token", "not the fleet that the token is for", pki.Token{Pin: pki.Pin([]byte("other")), ID: token.ID, Secret: token.Secret}, func(*join.Request) {})
	a, err := join.Ask(ctx, h.addr, token, req())
	if err != nil {
		t.Fatal(err)
	}
	again, err := join.Ask(ctx, h.addr, token, req())
	if err != nil || again.Node != a.Node {
		t.Fatalf("asked again it is node %v (%v), not %s", again, err, a.Node)
	}
	leaf, err := x509.ParseCertificate(a.NodeCert)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := pki.FromCert(leaf); err != nil || p.Kind != pki.KindNode || p.ID != a.Node {
		t.Fatalf("the certificate is of %+v (%v)", p, err)
	}
	if a.ControllerCert != nil || a.AdminCert != nil {
		t.Error("an agent got more than an agent's identity")
	}
	// The agent's answer is none for who asks again to be a controller.
	seal, err := pki.SealingKEM().GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	more := req()
	more.Controller, more.ControllerKey, more.AdminKey, more.SealPublic = "10.0.0.2:7443", pub, pub, seal.PublicKey().Bytes()
	if got, err := join.Ask(ctx, h.addr, token, more); err == nil || got != nil {
		t.Fatalf("an agents' token made a controller of a node: %+v", got)
	}
	// A node's certificate is no user's, and its proxied socket is for those only whom the
	// fleet gave a role.
	dir := t.TempDir()
	if err := pki.WriteFiles(dir, a.Bundle, a.NodeCert, key, nil); err != nil {
		t.Fatal(err)
	}
	files := h.files(dir)
	if r := h.remote(files, "/containers/json"); r.code != http.StatusForbidden {
		t.Errorf("a node's certificate on the API: %v", r)
	}
	knock := func(first string) string {
		conn, err := tls.Dial("tcp", h.addr, pki.PeerClientTLS(files, wire.ALPNSocket, pki.Kinds(pki.KindController)))
		if err != nil {
			return err.Error()
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(conn, first+"GET /containers/json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		b, _ := io.ReadAll(conn)
		return string(b)
	}
	if got := knock("{\"UID\":0}\n"); !strings.Contains(got, " 403 ") || !strings.Contains(got, "drover node grant b --uid 0") {
		t.Errorf("root without a role: %q", got)
	}
	if got := knock("not json\n"); got != "" {
		t.Errorf("a connection without a hello answered %q", got)
	}
	if got := knock(strings.Repeat("x", 64<<10)); strings.Contains(got, "200") {
		t.Errorf("a hello without end answered %q", got)
	}
	h.propose(&dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "b", Roles: map[string]string{"0": "user"}}}})
	if got := knock("{\"UID\":0}\n"); !strings.Contains(got, " 200 ") {
		t.Errorf("root with a role: %q", got)
	}
	if got := knock("{\"UID\":7}\n"); !strings.Contains(got, " 403 ") {
		t.Errorf("somebody else: %q", got)
	}
}

// When a node is removed, the others' sessions are told so and get a key for the
// gossip that it never had; the old one goes.
func TestARemovalIsToldToNodesAndEndsTheGossipsKey(t *testing.T) {
	h := newHost(t)
	h.tuning.gossipOverlap = 10 * time.Millisecond
	h.up()
	h.propose(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: pki.URI(h.cluster(), pki.KindNode, "b"), Roles: []string{pki.KindNode}}}}})
	h.propose(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: &dv1.Node{Id: "b", Name: "b", Addr: "10.0.0.2:7444"}}}})
	st, err := h.open(h.files(identity.AgentPKI(h.data)), 1, "127.0.0.1:7444")
	if err != nil {
		t.Fatal(err)
	}
	gone := pki.Principal{Kind: pki.KindNode, ID: "b", URI: pki.URI(h.cluster(), pki.KindNode, "b")}
	who, ok := (*roster.Roster)(nil).Apply(st.welcome.Roster)
	if !ok || who.Known(gone) != nil {
		t.Fatalf("the welcome says %v", st.welcome.Roster)
	}
	var keys [][]byte
	next := func() *dv1.Welcome {
		t.Helper()
		for {
			m, err := st.stream.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if m.GetBeat() != nil {
				st.send(&dv1.FromAgent{Of: &dv1.FromAgent_Beat{Beat: &dv1.Beat{}}})
			}
			if w := m.GetChanged(); w != nil {
				who, _ = who.Apply(w.Roster)
				keys = w.GossipKeys
				return w
			}
		}
	}
	for keys = st.welcome.GossipKeys; len(keys) == 0; next() {
	}
	had := keys[0]
	h.propose(&dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "b", Force: true}}})
	for who.NotRevoked(gone) == nil {
		next()
	}
	for slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, had) }) {
		next()
	}
	if len(keys) != 1 {
		t.Errorf("the gossip has %d keys now, want the new one", len(keys))
	}
}
