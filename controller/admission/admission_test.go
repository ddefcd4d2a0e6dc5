package admission

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/consensus/consensustest"
	"github.com/drover/drover/controller/vault"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/timing"
)

// first is a fleet of one controller, which admits others.
type first struct {
	*consensustest.Log
	t     *testing.T
	files *pki.Files
	vault *vault.Vault
	said  bytes.Buffer // its log
	*Admission
}

func newFirst(t *testing.T) *first {
	t.Helper()
	dir := t.TempDir()
	if _, err := bootstrap.Up(bootstrap.Options{DataDir: dir, NodeName: "a", Controller: "10.0.0.1:7443", Pool: "10.210.0.0/16", Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	f := &first{Log: consensustest.NewLog(), t: t}
	var err error
	if f.files, err = pki.LoadFiles(identity.ControllerPKI(dir)); err != nil {
		t.Fatal(err)
	}
	f.vault, err = bootstrap.Unseal(t.Context(), bootstrap.UnsealOptions{DataDir: dir, RunDir: t.TempDir(), Files: f.files, Snapshot: f.Snapshot, Stdout: io.Discard,
		Logger: slog.New(slog.DiscardHandler), Propose: f.own})
	if err != nil {
		t.Fatal(err)
	}
	f.Admission = New(Options{Snapshot: f.Snapshot, Propose: f.Propose, Vault: f.vault, Logger: slog.New(slog.NewTextHandler(&f.said, nil))})
	return f
}

// own has a command decided for the controller itself.
func (f *first) own(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	c.Principal = f.files.Principal.URI
	return f.Propose(ctx, c)
}

func (f *first) ok(c *dv1.Command) {
	f.t.Helper()
	if r, err := f.Propose(f.t.Context(), accesstest.Named(f.Snapshot(), c)); err != nil || r.GetError() != nil {
		f.t.Fatalf("%T: %v %v", c.Of, r, err)
	}
}

func (f *first) token(role string) pki.Token {
	f.t.Helper()
	tk, err := pki.NewToken(pki.Pin(f.files.Bundle[0].Raw))
	if err != nil {
		f.t.Fatal(err)
	}
	f.ok(&dv1.Command{Of: &dv1.Command_PutToken{PutToken: &dv1.PutToken{Token: &dv1.Token{Id: tk.ID, Hash: tk.Hash(), Role: role}}}})
	return tk
}

func public(t *testing.T) []byte {
	t.Helper()
	k, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pub
}

// agent is a host's request to join with a token.
func (f *first) agent(tk pki.Token) *join.Request {
	f.t.Helper()
	return &join.Request{TokenID: tk.ID, Secret: tk.Secret, Name: "b", Agent: "10.0.0.2:7444", Hosts: []string{"10.0.0.2"}, Now: time.Now(), NodeKey: public(f.t)}
}

// controller is one of a host with a controller; sealKey opens what is sealed for it.
func (f *first) controller(tk pki.Token) (req *join.Request, sealKey []byte) {
	f.t.Helper()
	req = f.agent(tk)
	seal, err := pki.SealingKEM().GenerateKey()
	if err != nil {
		f.t.Fatal(err)
	}
	if sealKey, err = seal.Bytes(); err != nil {
		f.t.Fatal(err)
	}
	req.Controller, req.ControllerKey, req.AdminKey, req.SealPublic = "10.0.0.2:7443", public(f.t), public(f.t), seal.PublicKey().Bytes()
	return req, sealKey
}

// ask returns the answer to a request, or the refusal's code and words.
func (f *first) ask(req *join.Request) (*join.Answer, int, string) {
	f.t.Helper()
	b, err := json.Marshal(req)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.post(join.Path, b)
}

func (f *first) post(path string, b []byte) (*join.Answer, int, string) {
	f.t.Helper()
	w := httptest.NewRecorder()
	f.ServeHTTP(w, httptest.NewRequestWithContext(f.t.Context(), http.MethodPost, path, bytes.NewReader(b)))
	if w.Code != http.StatusOK {
		var no struct{ Message string }
		if err := json.Unmarshal(w.Body.Bytes(), &no); err != nil || no.Message == "" {
			f.t.Errorf("%d %s: %v", w.Code, w.Body, err)
		}
		return nil, w.Code, no.Message
	}
	a := &join.Answer{}
	if err := json.Unmarshal(w.Body.Bytes(), a); err != nil {
		f.t.Fatal(err)
	}
	return a, w.Code, ""
}

func (f *first) who(der []byte) string {
	f.t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := c.CheckSignatureFrom(f.files.Bundle[0]); err != nil {
		f.t.Error(err)
	}
	p, err := pki.FromCert(c)
	if err != nil {
		f.t.Fatal(err)
	}
	return p.Kind + " " + p.ID
}

func TestWhoIsNotAdmittedIsToldWhy(t *testing.T) {
	f := newFirst(t)
	agents, controllers := f.token(command.TokenAgent), f.token(command.TokenController)
	revoked := f.token(command.TokenAgent)
	f.ok(&dv1.Command{Of: &dv1.Command_RevokeToken{RevokeToken: &dv1.RevokeToken{Id: revoked.ID}}})
	index := f.Snapshot().Index()
	for name, c := range map[string]struct {
		change func(*join.Request)
		code   int
		words  string
	}{
		"a clock in the past":       {func(r *join.Request) { r.Now = time.Unix(0, 0) }, 400, "the clock of this host is off by"},
		"a clock in the future":     {func(r *join.Request) { r.Now = time.Now().AddDate(5, 0, 0) }, 400, "the clock of this host is off by"},
		"a wrong secret":            {func(r *join.Request) { r.Secret = strings.Repeat("a", 32) }, 403, "not one of this fleet's"},
		"a token that nobody knows": {func(r *join.Request) { r.TokenID = "other" }, 403, "not one of this fleet's"},
		"a revoked token":           {func(r *join.Request) { r.TokenID, r.Secret = revoked.ID, revoked.Secret }, 403, "was revoked"},
		"no name":                   {func(r *join.Request) { r.Name = "" }, 400, "needs a host name"},
		"no agent":                  {func(r *join.Request) { r.Agent = "" }, 400, "its agent's address"},
		"a name with a line break":  {func(r *join.Request) { r.Name = "b\nc" }, 400, "reading the request to join"},
		"no key":                    {func(r *join.Request) { r.NodeKey = nil }, 400, "reading a public key"},
		"no sealing key": {func(r *join.Request) {
			r.Controller, r.ControllerKey, r.AdminKey = "10.0.0.2:7443", r.NodeKey, r.NodeKey
		}, 400, "sealing key"},
		"a controller without keys": {func(r *join.Request) { r.Controller = "10.0.0.2:7443" }, 400, "reading a public key"},
	} {
		req := f.agent(agents)
		c.change(req)
		if a, code, words := f.ask(req); code != c.code || !strings.Contains(words, c.words) {
			t.Errorf("%s: %v %d %q, want %d %q", name, a, code, words, c.code, c.words)
		}
	}
	req, _ := f.controller(agents)
	if _, code, words := f.ask(req); code != join.AgentsOnly || !strings.Contains(words, "--role controller") {
		t.Errorf("a controller with an agents' token: %d %q", code, words)
	}
	for name, b := range map[string][]byte{
		"no JSON": []byte("hello"), "nothing": nil, "more than allowed": []byte(`{"Name":"` + strings.Repeat("x", join.MaxBody) + `"}`),
	} {
		if _, code, words := f.post(join.Path, b); code != 400 || !strings.Contains(words, "reading the request to join") {
			t.Errorf("%s: %d %q", name, code, words)
		}
	}
	if _, code, _ := f.post("/v1/other", nil); code != 404 {
		t.Errorf("another path: %d", code)
	}
	if now := f.Snapshot().Index(); now != index {
		t.Errorf("refusals made %d entries", now-index)
	}
	if _, code, words := f.ask(f.agent(controllers)); code != 200 {
		t.Errorf("an agent with a controllers' token: %d %q", code, words)
	}
}

// Asked again with the same keys, a join is the same join, if it asks for the same.
func TestAJoinMayBeAskedAgain(t *testing.T) {
	f := newFirst(t)
	tk := f.token(command.TokenController)
	req := f.agent(tk)
	a, code, words := f.ask(req)
	if code != 200 {
		t.Fatal(code, words)
	}
	if got := f.who(a.NodeCert); got != "node "+a.Node || a.ControllerCert != nil || a.AdminCert != nil {
		t.Errorf("an agent got the certificate of %s, %d and %d bytes of others", got, len(a.ControllerCert), len(a.AdminCert))
	}
	if !slices.Equal(a.Controllers, []string{"10.0.0.1:7443"}) || a.Cluster != f.files.Principal.Cluster {
		t.Errorf("%+v", a)
	}
	index := f.Snapshot().Index()
	req.Now = time.Now().Add(time.Minute)
	again, code, words := f.ask(req)
	if code != 200 || again.Node != a.Node || f.Snapshot().Index() != index {
		t.Errorf("asked again: %+v %d %s, entry %d", again, code, words, f.Snapshot().Index())
	}
}

// The agent's answer is none for who asks again to be a controller.
func TestAnAgentsAnswerIsNoneForAController(t *testing.T) {
	f := newFirst(t)
	req, _ := f.controller(f.token(command.TokenController))
	asAgent := *req
	asAgent.Controller, asAgent.ControllerKey, asAgent.AdminKey, asAgent.SealPublic = "", nil, nil, nil
	if _, code, words := f.ask(&asAgent); code != 200 {
		t.Fatal(code, words)
	}
	if _, code, words := f.ask(req); code != 409 || !strings.Contains(words, "join.tmp") {
		t.Errorf("%d %q", code, words)
	}
}

func TestAControllerGetsAllThatItNeeds(t *testing.T) {
	f := newFirst(t)
	f.ok(&dv1.Command{Of: &dv1.Command_SetTiming{SetTiming: &dv1.SetTiming{Timing: timing.WAN.Proto()}}})
	req, seal := f.controller(f.token(command.TokenController))
	a, code, words := f.ask(req)
	if code != 200 {
		t.Fatal(code, words)
	}
	if n, c, ad := f.who(a.NodeCert), f.who(a.ControllerCert), f.who(a.AdminCert); n != "node "+a.Node || c != "controller "+a.Node || ad != "user "+pki.AdminOf(a.Node) {
		t.Errorf("certificates of %s, %s and %s", n, c, ad)
	}
	if !slices.Equal(a.Controllers, []string{"10.0.0.2:7443", "10.0.0.1:7443"}) || a.Timing != timing.WAN.String() {
		t.Errorf("%+v", a)
	}
	key, err := vault.Unwrap(vault.Wrapped(f.Snapshot(), a.Node), seal)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := key.Open(f.Snapshot().Sealed(command.AuthorityName)); err != nil {
		t.Error(err)
	}

	// One that was removed since is not admitted by asking again.
	f.ok(&dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: a.Node}}})
	if _, code, words := f.ask(req); code != 409 || !strings.Contains(words, "removed since") {
		t.Errorf("%d %q", code, words)
	}
}

// A join that was begun with a data key that is replaced meanwhile is sealed anew,
// some times.
func TestAJoinMeetsANewDataKey(t *testing.T) {
	f := newFirst(t)
	tk := f.token(command.TokenController)
	for _, c := range []struct{ rotations, code, tries int }{{1, 200, 2}, {wrapTries - 1, 200, wrapTries}, {wrapTries, 409, wrapTries}} {
		tries := 0
		f.o.Propose = func(ctx context.Context, cmd *dv1.Command) (*dv1.CommandResult, error) {
			if tries++; tries <= c.rotations {
				f.rotate()
			}
			return f.Propose(ctx, cmd)
		}
		req, seal := f.controller(tk)
		req.Name = fmt.Sprint("b", c.rotations)
		a, code, words := f.ask(req)
		if code != c.code || tries != c.tries {
			t.Errorf("%d rotations: %d %q after %d tries", c.rotations, code, words, tries)
		}
		if a != nil {
			if _, err := vault.Unwrap(vault.Wrapped(f.Snapshot(), a.Node), seal); err != nil {
				t.Errorf("%d rotations: %v", c.rotations, err)
			}
		}
	}
}

func (f *first) rotate() {
	f.t.Helper()
	s := f.Snapshot()
	key, err := f.vault.Key(s)
	if err != nil {
		f.t.Fatal(err)
	}
	to := map[string][]byte{}
	for c := range s.Controllers() {
		to[c.Id] = s.Identity(pki.URI(s.Cluster().Id, pki.KindController, c.Id)).SealPublic
	}
	r, err := key.Rotate(s.SealedAll(), to)
	if err != nil {
		f.t.Fatal(err)
	}
	if res, err := f.own(f.t.Context(), &dv1.Command{Of: &dv1.Command_RotateDataKey{RotateDataKey: r}}); err != nil || res.GetError() != nil {
		f.t.Fatal(res, err)
	}
}

// What a host can't mend is no refusal of it: it asks again.
func TestWithoutALeaderAHostIsAskedToComeBack(t *testing.T) {
	f := newFirst(t)
	req := f.agent(f.token(command.TokenAgent))
	f.Before(func(*dv1.Command) error { return errors.New("no leader") })
	if _, code, words := f.ask(req); code != 503 || !strings.Contains(words, "no leader") {
		t.Errorf("%d %q", code, words)
	}
}

// Who isn't admitted can't write the log: one line a minute and host, with
// nothing in it that the caller chose.
func TestRefusedJoinsDoNotFillTheLog(t *testing.T) {
	f := newFirst(t)
	tk := pki.Token{ID: "deadbeef", Secret: "x"}
	for i := range 100 {
		req := f.agent(tk)
		req.Name = fmt.Sprintf("chosen%d", i)
		if i%2 == 0 {
			req.Name += "\x1b[31m" + strings.Repeat("N", 32<<10)
		}
		if _, code, _ := f.ask(req); code == 200 || code >= 500 {
			t.Fatalf("join %d: %d", i, code)
		}
	}
	said := f.said.String()
	if strings.Contains(said, "chosen") || strings.Contains(said, "NNN") {
		t.Errorf("the log has what a stranger chose: %.300q", said)
	}
	if n := strings.Count(said, "refused a join"); n != 1 || len(said) > 1000 {
		t.Errorf("a hundred refusals made %d lines, %d bytes in all", n, len(said))
	}
}
