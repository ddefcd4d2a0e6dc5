package pki_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/pki/pkitest"
)

const alpn = "drover-test/1"

func authority(t *testing.T) *pki.Authority { return pkitest.Authority(t, "c") }

func key(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// leaf is a certificate that ca signs, as the authority would unless change says
// otherwise.
func leaf(t *testing.T, ca *pki.Authority, pub crypto.PublicKey, change func(*x509.Certificate)) []byte {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        named("spiffe://c/node/n1"),
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.Cert, pub, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func named(uris ...string) (out []*url.URL) {
	for _, s := range uris {
		u, _ := url.Parse(s)
		out = append(out, u)
	}
	return out
}

// peer is who somebody claims to be: its chain, and the key of its first certificate.
type peer struct {
	key   crypto.Signer
	chain [][]byte
}

func (p peer) cert(t *testing.T) tls.Certificate {
	t.Helper()
	l, err := x509.ParseCertificate(p.chain[0])
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: p.chain, PrivateKey: p.key, Leaf: l}
}

// handshake connects both ends, passes a byte each way, and returns what each end
// failed with.
func handshake(t *testing.T, client, server *tls.Config) (state tls.ConnectionState, atClient, atServer error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // not a pipe: both ends may write at once
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer func() { _ = c.Close() }()
			s, b := tls.Server(c, server), make([]byte, 1)
			if _, err = io.ReadFull(s, b); err == nil {
				_, err = s.Write(b)
			}
		}
		served <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client = client.Clone()
	client.ServerName = "peer" // the name that sessions are cached by; nothing verifies it
	c := tls.Client(raw, client)
	_, err = c.Write([]byte{1})
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	state = c.ConnectionState()
	_ = raw.Close()
	_ = l.Close()
	return state, err, <-served
}

// strangers are the peers that a member of cluster c meets: what verification says to
// each, "" if it is let in, and what it says where the clock counts, if that differs.
func strangers(t *testing.T, ca *pki.Authority) map[string]struct {
	peer
	want, clock string
} {
	k := key(t)
	one := func(ca *pki.Authority, change func(*x509.Certificate)) peer {
		return peer{k, [][]byte{leaf(t, ca, k.Public(), change)}}
	}
	// between has a certificate authority of its own signed by ca, and presents both.
	between := func(change func(*x509.Certificate)) peer {
		mk := key(t)
		der := leaf(t, ca, mk.Public(), change)
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return peer{k, [][]byte{leaf(t, &pki.Authority{Cert: c, Key: mk}, k.Public(), nil), der}}
	}
	const foreign, expired = "not of this cluster", "expired or is not yet valid"
	return map[string]struct {
		peer
		want, clock string
	}{
		"a member": {one(ca, nil), "", ""},
		"expired": {one(ca, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = ca.Cert.NotBefore, ca.Cert.NotBefore.Add(time.Minute)
		}), "", expired},
		"not valid yet": {one(ca, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		}), "", expired},
		"never valid": {one(ca, func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(-time.Hour) }), foreign, foreign},

		"of another authority with the same name": {one(authority(t), nil), foreign, foreign},
		"of itself":                              {one(&pki.Authority{Cert: &x509.Certificate{}, Key: k}, nil), foreign, foreign},
		"of another authority, with ours beside": {peer{k, append(one(authority(t), nil).chain, ca.Cert.Raw)}, foreign, foreign},
		"of a member, who signs":                 {between(nil), foreign, foreign},
		"of an authority that ours signed": {between(func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		}), foreign, foreign},
		"the authority itself": {peer{ca.Key, [][]byte{ca.Cert.Raw}}, "0 identity URIs", "0 identity URIs"},

		"of another cluster, by our authority": {one(ca, func(c *x509.Certificate) { c.URIs = named("spiffe://d/node/n1") }), "of another cluster", "of another cluster"},
		"nobody":                               {one(ca, func(c *x509.Certificate) { c.URIs = nil }), "0 identity URIs", "0 identity URIs"},
		"two":                                  {one(ca, func(c *x509.Certificate) { c.URIs = named("spiffe://c/user/u", "spiffe://c/node/n1") }), "2 identity URIs", "2 identity URIs"},
		"under another spelling":               {one(ca, func(c *x509.Certificate) { c.URIs = named("spiffe://c/node/n1?x") }), "is not spiffe://", "is not spiffe://"},
		"of another kind":                      {one(ca, func(c *x509.Certificate) { c.URIs = named("spiffe://c/user/n1") }), "may not use this protocol", "may not use this protocol"},
		"revoked":                              {one(ca, func(c *x509.Certificate) { c.URIs = named("spiffe://c/node/gone") }), pki.ErrRevoked.Error(), pki.ErrRevoked.Error()},
		"for mail only": {one(ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }),
			foreign, foreign},
	}
}

func notGone(p pki.Principal) error {
	if p.ID == "gone" {
		return pki.ErrRevoked
	}
	return nil
}

func TestWhoIsLetIn(t *testing.T) {
	ca := authority(t)
	me := pkitest.Files(t, ca, "c", pki.KindController, "me")
	verify := pki.All(pki.Kinds(pki.KindNode), notGone)
	judge := func(name, as string, err error, want string) {
		t.Helper()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s as %s: %v, want %q", name, as, err, want)
		}
	}
	for name, s := range strangers(t, ca) {
		them := s.cert(t)
		dial := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &them, nil }} // whatever is asked for

		server := pki.PeerServerTLS(me, verify)
		server.NextProtos = []string{alpn}
		_, _, err := handshake(t, dial, server)
		judge(name, "a member that dials", err, s.want)

		server = pki.ServerTLS(me, verify)
		server.NextProtos, server.ClientAuth = []string{alpn}, tls.RequestClientCert
		_, _, err = handshake(t, dial, server)
		judge(name, "a client", err, s.clock)

		accept := &tls.Config{Certificates: []tls.Certificate{them}, NextProtos: []string{alpn}, ClientAuth: tls.RequestClientCert}
		_, err, _ = handshake(t, pki.PeerClientTLS(me, alpn, verify), accept)
		judge(name, "a member that is dialed", err, s.want)

		if len(s.chain) == 1 { // a signer sends its certificate only
			_, err = me.Signer(s.chain[0], verify)
			judge(name, "a signer", err, s.want)
		}
	}
}

// A client's certificate is no server's, and the other way round.
func TestACertificateIsGoodForItsUse(t *testing.T) {
	ca := authority(t)
	me := pkitest.Files(t, ca, "c", pki.KindController, "me")
	for usage, client := range map[x509.ExtKeyUsage]bool{x509.ExtKeyUsageClientAuth: true, x509.ExtKeyUsageServerAuth: false} {
		k := key(t)
		der := leaf(t, ca, k.Public(), func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{usage} })
		them := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
		_, _, err := handshake(t, &tls.Config{Certificates: []tls.Certificate{them}, InsecureSkipVerify: true}, pki.PeerServerTLS(me, nil))
		if (err == nil) != client {
			t.Errorf("client's: %v; it was let in as a client: %v", client, err)
		}
		_, err, _ = handshake(t, pki.PeerClientTLS(me, alpn, nil), &tls.Config{Certificates: []tls.Certificate{them}, NextProtos: []string{alpn}})
		if (err == nil) == client {
			t.Errorf("client's: %v; it was let in as a server: %v", client, err)
		}
		if _, err := me.Signer(der, nil); (err == nil) != client {
			t.Errorf("client's: %v; it was taken as a signer's: %v", client, err)
		}
	}
}

func TestWhoShowsNoCertificate(t *testing.T) {
	me := pkitest.Files(t, authority(t), "c", pki.KindController, "me")
	never := func(pki.Principal) error { return errors.New("nobody was asked about") }
	anonymous := &tls.Config{InsecureSkipVerify: true}
	server := pki.ServerTLS(me, never)
	server.ClientAuth = tls.RequestClientCert
	if _, _, err := handshake(t, anonymous, server); err != nil {
		t.Errorf("where none is required: %v", err)
	}
	if _, _, err := handshake(t, anonymous, pki.PeerServerTLS(me, never)); err == nil {
		t.Error("a member showed none, and was let in")
	}
	old := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, Certificates: []tls.Certificate{me.Cert}}
	if _, _, err := handshake(t, old, pki.PeerServerTLS(me, nil)); err == nil {
		t.Error("TLS 1.1 was spoken")
	}
}

// What was negotiated is what was asked for: a listener without ALPN would hand the
// connection to whatever it serves.
func TestAPeerThatSpeaksAnotherProtocolIsRefused(t *testing.T) {
	ca := authority(t)
	me, them := pkitest.Files(t, ca, "c", pki.KindController, "me"), pkitest.Files(t, ca, "c", pki.KindNode, "n1")
	for _, protos := range [][]string{nil, {"h2"}, {"drover-test/2", "h2"}} {
		server := pki.PeerServerTLS(them, nil)
		server.NextProtos = protos
		if _, err, _ := handshake(t, pki.PeerClientTLS(me, alpn, nil), server); err == nil {
			t.Errorf("a server of %q was taken for one of %s", protos, alpn)
		}
	}
}

// A resumed session skips the certificates, not the verification: a revoked identity
// has no use for a ticket.
func TestAResumedSessionIsVerifiedAnew(t *testing.T) {
	ca := authority(t)
	me, them := pkitest.Files(t, ca, "c", pki.KindController, "me"), pkitest.Files(t, ca, "c", pki.KindNode, "n1")
	gone := map[string]bool{}
	verify := func(p pki.Principal) error {
		if gone[p.ID] {
			return pki.ErrRevoked
		}
		return nil
	}
	for _, revoked := range []string{"me", "n1"} {
		clear(gone)
		client, server := pki.PeerClientTLS(me, alpn, verify), pki.PeerServerTLS(them, verify)
		server.NextProtos = []string{alpn}
		for i, resumed := range []bool{false, true} {
			if st, err, also := handshake(t, client, server); err != nil || also != nil || st.DidResume != resumed {
				t.Fatalf("handshake %d: resumed %v, %v, %v", i, st.DidResume, err, also)
			}
		}
		gone[revoked] = true
		_, atClient, atServer := handshake(t, client, server)
		if err := map[string]error{"me": atServer, "n1": atClient}[revoked]; !errors.Is(err, pki.ErrRevoked) {
			t.Errorf("%s was revoked, and resumes: client %v, server %v", revoked, atClient, atServer)
		}
	}
}

// While the authority is replaced, members of both trust each other.
func TestABundleOfTwoRootsTrustsBoth(t *testing.T) {
	one, two := authority(t), authority(t)
	files := func(ca *pki.Authority, id string) *pki.Files {
		k, dir := key(t), t.TempDir()
		der := leaf(t, ca, k.Public(), func(c *x509.Certificate) { c.URIs = named("spiffe://c/node/" + id) })
		if err := pki.WriteFiles(dir, [][]byte{one.Cert.Raw, two.Cert.Raw}, der, k, nil); err != nil {
			t.Fatal(err)
		}
		f, err := pki.LoadFiles(dir)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	a, b := files(one, "a"), files(two, "b")
	for _, c := range [][2]*pki.Files{{a, b}, {b, a}} {
		server := pki.PeerServerTLS(c[1], nil)
		server.NextProtos = []string{alpn}
		if _, err, also := handshake(t, pki.PeerClientTLS(c[0], alpn, nil), server); err != nil || also != nil {
			t.Errorf("%s dials %s: %v, %v", c[0].Principal.ID, c[1].Principal.ID, err, also)
		}
	}
}

// Any controller signs, by its own clock. Peers ignore the clock, so what it was must
// not matter, be it behind the authority's creation or beyond its end.
func TestALeafIsGoodWhateverItsSignersClock(t *testing.T) {
	ca := authority(t)
	me := pkitest.Files(t, ca, "c", pki.KindController, "me")
	for _, now := range []time.Time{time.Unix(0, 0), ca.Cert.NotBefore.Add(-time.Minute), time.Now(), time.Now().Add(pki.AuthorityLife - time.Hour), time.Now().Add(2 * pki.AuthorityLife)} {
		k := key(t)
		der, err := ca.Issue("spiffe://c/node/n1", k.Public(), nil, now)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := me.Signer(der, nil); err != nil {
			t.Errorf("signed at %s: %v", now, err)
		}
		if c.NotBefore.Before(ca.Cert.NotBefore) || c.NotAfter.After(ca.Cert.NotAfter) || c.NotAfter.Sub(c.NotBefore) < pki.LeafLife {
			t.Errorf("signed at %s: valid from %s to %s", now, c.NotBefore, c.NotAfter)
		}
	}
}

func TestIssueNamesOnlyIdentities(t *testing.T) {
	ca := authority(t)
	for _, bad := range []string{"", "spiffe://c/root/1", "spiffe://c/node/1/uid/0", "unix:0", "token:1"} {
		if der, err := ca.Issue(bad, key(t).Public(), nil, time.Now()); err == nil {
			t.Errorf("%q was certified: %d bytes", bad, len(der))
		}
	}
	if _, err := ca.Issue("spiffe://c/node/1", "no key", nil, time.Now()); err == nil {
		t.Error("what is no key was certified")
	}
}

func TestASignatureIsForOnePurposeBySomebodyOverSomething(t *testing.T) {
	ca := authority(t)
	me, other := pkitest.Files(t, ca, "c", pki.KindNode, "n1"), pkitest.Files(t, ca, "c", pki.KindNode, "n2")
	sig, err := me.Sign("grant", []byte("bytes"))
	if err != nil {
		t.Fatal(err)
	}
	signer := func(f *pki.Files) *pki.Signer {
		s, err := other.Signer(f.Cert.Certificate[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	flipped := append([]byte(nil), sig...)
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		by    *pki.Files
		what  string
		bytes string
		sig   []byte
		good  bool
	}{
		"as signed":       {me, "grant", "bytes", sig, true},
		"another's":       {other, "grant", "bytes", sig, false},
		"another purpose": {me, "gossip", "bytes", sig, false},
		"other bytes":     {me, "grant", "bytes!", sig, false},
		"no bytes":        {me, "grant", "", sig, false},
		"shifted":         {me, "grantb", "ytes", sig, false},
		"damaged":         {me, "grant", "bytes", flipped, false},
		"cut":             {me, "grant", "bytes", sig[:len(sig)-1], false},
		"longer":          {me, "grant", "bytes", append(sig[:len(sig):len(sig)], 0), false},
		"none":            {me, "grant", "bytes", nil, false},
	} {
		err := signer(c.by).Check(c.what, []byte(c.bytes), c.sig)
		if (err == nil) != c.good || err != nil && (!errors.Is(err, pki.ErrSignature) || !strings.Contains(err.Error(), c.by.Principal.URI)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := me.Signer(leaf(t, ca, pub, nil), nil); err == nil || !strings.Contains(err.Error(), "ed25519") {
		t.Errorf("a key that signs nothing of ours: %v", err)
	}
	if _, err := me.Signer([]byte("no certificate"), nil); err == nil {
		t.Error("what is no certificate has a signer")
	}
}
