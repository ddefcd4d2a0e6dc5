package controller

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// keyed adds an idempotency key to requests.
type keyed struct {
	http.RoundTripper
	key string
}

func (k keyed) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set("Drover-Idempotency-Key", k.key)
	return k.RoundTripper.RoundTrip(r)
}

func (h *host) keyed(files *pki.Files, key, path, body string) response {
	h.t.Helper()
	config := &tls.Config{RootCAs: h.files(identity.AgentPKI(h.data)).Pool(), Certificates: []tls.Certificate{files.Cert}}
	return h.do(&http.Client{Transport: keyed{&http.Transport{TLSClientConfig: config}, key}}, http.MethodPost, "https://"+h.addr+path, body)
}

// A key belongs to who used it first: another's request under it is refused. The
// admin of a host is one, by its socket or its certificate.
func TestAKeyIsItsCallers(t *testing.T) {
	noLeaks(t)
	h := newHost(t)
	h.up()
	if _, err := h.open(h.files(identity.AgentPKI(h.data)), 1, "127.0.0.1:7444"); err != nil {
		t.Fatal(err)
	}
	image(h)
	admin, user := h.files(identity.AdminPKI(h.data)), h.identity(pki.KindUser, "eve")
	h.propose(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: user.Principal.URI, Roles: []string{pki.KindUser}}}}})
	const path, body = "/v1.44/containers/create?name=x", `{"Image":"busybox","Cmd":["true"]}`
	id := func(r response) string {
		var made struct{ ID string }
		_ = json.Unmarshal([]byte(r.body), &made)
		return made.ID
	}
	first := h.keyed(admin, "k", path, body)
	if first.code != 201 || id(first) == "" {
		t.Fatalf("the first: %v", first)
	}
	if again := h.keyed(admin, "k", path, body); id(again) != id(first) {
		t.Errorf("asked again: %v", again)
	}
	if r := h.keyed(user, "k", path, body); r.code < 400 || strings.Contains(r.body, id(first)) {
		t.Errorf("another's request under the key: %v", r)
	}
	if r := h.keyed(admin, strings.Repeat("k", 300), path, body); r.code != http.StatusBadRequest || !strings.Contains(r.body, "more than the 200 allowed") {
		t.Errorf("a long key: %v", r)
	}
}
