package pki_test

import (
	"crypto/x509"
	"net/url"
	"strings"
	"testing"

	"github.com/drover/drover/pkg/pki"
)

// An identity has one name: revocations and roles are looked up by URI, decisions made
// by id, so another way to write the same id would be another's roles, or none's.
func TestAnIdentityHasOneName(t *testing.T) {
	for _, id := range []string{"n1", "admin-0123abcd", "a b", "a.b-c_d", "100%", "a?b", "a#b", "ü"} {
		s := pki.URI("c1", pki.KindUser, id)
		if p, err := pki.FromURI(s); err != nil || p.Kind != pki.KindUser || p.ID != id || p.Cluster != "c1" || p.URI != s {
			t.Errorf("%q: %+v, %v", s, p, err)
		}
	}
	for _, bad := range []string{
		"", "%", "node/1", "spiffe:node/1", "https://c/node/1", "spiffe:///node/1",
		"spiffe://c", "spiffe://c/node", "spiffe://c/node/", "spiffe://c/root/1", "spiffe://c/Node/1", "spiffe://c/local/0", "spiffe://c/token/1",
		"spiffe://c/node/1/2", "spiffe://c/node/1/", "spiffe://c//node/1", "spiffe://c/node//1", "spiffe://c/node/1%2F2", "spiffe://c/node/1/uid/0",
		"SPIFFE://c/node/1", "spiffe://c/node/1?", "spiffe://c/node/1?a=b", "spiffe://c/node/1#", "spiffe://c/node/1#a", "spiffe://u@c/node/1", "spiffe://u:p@c/node/1",
		"spiffe://c/node/%31", "spiffe://c/%6eode/1", "spiffe://%63/node/1", " spiffe://c/node/1", "spiffe://c/node/1?/uid/0",
	} {
		if p, err := pki.FromURI(bad); err == nil {
			t.Errorf("%q was read as %+v", bad, p)
		}
	}
}

func FuzzFromURI(f *testing.F) {
	f.Add("spiffe://c/node/1")
	f.Add("spiffe://c/user/100%25")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := pki.FromURI(s)
		if err != nil {
			return
		}
		if again := pki.URI(p.Cluster, p.Kind, p.ID); again != s || p.URI != s || p.ID == "" || p.Cluster == "" {
			t.Fatalf("%q was read as %+v, which is %q", s, p, again)
		}
		if host, _, ok := pki.HostOf(s); ok {
			t.Fatalf("%q is an identity, and one of a user of %q", s, host)
		}
	})
}

func TestACertificateNamesOneIdentity(t *testing.T) {
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for want, uris := range map[string][]*url.URL{
		"":                         {uri("spiffe://c/node/1")},
		"0 identity URIs":          nil,
		"2 identity URIs":          {uri("spiffe://c/node/1"), uri("spiffe://c/node/1")},
		"is not spiffe://CLUSTER/": {uri("https://c/node/1")},
	} {
		p, err := pki.FromCert(&x509.Certificate{URIs: uris})
		if want == "" && (err != nil || p.URI != "spiffe://c/node/1") || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v: %+v, %v, want %q", uris, p, err, want)
		}
	}
}

// Who shares an account shares the results of idempotency keys: nobody but the admins
// of controllers' hosts may.
func TestOnlyHostAdminsShareAnAccount(t *testing.T) {
	at := func(host string, uid int) string {
		return pki.Local(uid).At(pki.Principal{URI: host, Cluster: "c"}).URI
	}
	for uri, shared := range map[string]bool{
		pki.URI("c", pki.KindUser, pki.AdminOf("h1")): true,
		at("spiffe://c/controller/h1", 0):             true,

		at("spiffe://c/controller/h1", 1000): false,
		at("spiffe://c/node/h1", 0):          false,
		at("spiffe://c/user/h1", 0):          false,
		at("no uri", 0):                      false,
		"spiffe://c/user/admin":              false,
		"spiffe://c/user/x-admin-h1":         false,
		"spiffe://c/node/admin-h1":           false,
		"spiffe://c/controller/h1":           false,
		"spiffe://c/controller/h1?/uid/0":    false,
		"spiffe://c/controller/h1/uid/00":    false,
		pki.TokenURI("admin-h1"):             false,
		"":                                   false,
	} {
		want := uri
		if shared {
			want = pki.RoleAdmin
		}
		if got := pki.Account(uri); got != want {
			t.Errorf("%q has the account %q, want %q", uri, got, want)
		}
	}
}

func TestTokensAreReadBackWhole(t *testing.T) {
	ca := authority(t)
	tk, err := pki.NewToken(pki.Pin(ca.Cert.Raw))
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewToken(tk.Pin)
	if err != nil {
		t.Fatal(err)
	}
	if other.ID == tk.ID || other.Secret == tk.Secret || string(other.Hash()) == string(tk.Hash()) {
		t.Errorf("two tokens are alike: %v %v", tk, other)
	}
	if pki.Pin(authority(t).Cert.Raw) == tk.Pin {
		t.Error("two authorities have one pin")
	}
	s := tk.String()
	for _, around := range []string{"", " ", "\n", "\t\r\n"} {
		if got, err := pki.ParseToken(around + s + around); err != nil || got != tk {
			t.Errorf("%q was read as %+v, %v", around+s+around, got, err)
		}
	}
	part := strings.Split(s, "-")
	for _, bad := range []string{
		"", "drover1", s[1:], s[:len(s)-1], s + "a", s + "-", strings.ToUpper(s), strings.Replace(s, "drover1", "drover2", 1),
		strings.Join([]string{part[0], part[1][1:], part[2], part[3]}, "-"), strings.Join([]string{part[0], part[1], part[2] + "0", part[3]}, "-"),
		strings.Join([]string{part[0], part[2], part[1], part[3]}, "-"), strings.Join(part[:3], "-"), strings.ReplaceAll(s, "-", "_"),
	} {
		if got, err := pki.ParseToken(bad); err == nil || !strings.Contains(err.Error(), "drover token create") || strings.Contains(err.Error(), tk.Secret) {
			t.Errorf("%q was read as %+v, %v", bad, got, err)
		}
	}
}
