package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Verify returns an error if an identity with a valid chain may not connect: because of
// its role, or because it is revoked.
type Verify func(Principal) error

// ServerTLS is the base configuration of a listener: its identity, and whom it trusts.
// It accepts connections without a client certificate where the ALPN's ClientAuth allows
// that; a certificate that is presented must always be valid. Verify runs for resumed
// sessions too.
func ServerTLS(f *Files, verify Verify) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{f.Cert},
		ClientCAs:    f.Pool(),
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			return check(f, cs, x509.ExtKeyUsageClientAuth, time.Time{}, verify)
		},
	}
}

// PeerServerTLS is ServerTLS for connections among the cluster's own processes, which
// must work with a clock at 1970 and with expired leaves: it verifies chain, role and
// revocation, not the clock.
func PeerServerTLS(f *Files, verify Verify) *tls.Config {
	c := ServerTLS(f, verify)
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		return checkTimeless(f, cs, x509.ExtKeyUsageClientAuth, verify)
	}
	return c
}

// PeerClientTLS dials another process of the cluster with one ALPN protocol. The server
// is identified by its URI, never by address or host name, and the clock is ignored.
func PeerClientTLS(f *Files, alpn string, verify Verify) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{f.Cert},
		NextProtos:   []string{alpn},
		// Chain and identity are verified below, since certificates don't name addresses.
		InsecureSkipVerify: true,
		ClientSessionCache: tls.NewLRUClientSessionCache(16),
		VerifyConnection: func(cs tls.ConnectionState) error {
			if cs.NegotiatedProtocol != alpn {
				return fmt.Errorf("the peer speaks %q, not %s", cs.NegotiatedProtocol, alpn)
			}
			return checkTimeless(f, cs, x509.ExtKeyUsageServerAuth, verify)
		},
	}
}

func checkTimeless(f *Files, cs tls.ConnectionState, usage x509.ExtKeyUsage, verify Verify) error {
	if len(cs.PeerCertificates) == 0 {
		return ErrNoPrincipal
	}
	return check(f, cs, usage, cs.PeerCertificates[0].NotBefore.Add(time.Second), verify)
}

func check(f *Files, cs tls.ConnectionState, usage x509.ExtKeyUsage, at time.Time, verify Verify) error {
	_, err := f.verifyLeaf(cs.PeerCertificates[0], cs.PeerCertificates[1:], usage, at, verify)
	return err
}

func (f *Files) verifyLeaf(leaf *x509.Certificate, between []*x509.Certificate, usage x509.ExtKeyUsage, at time.Time, verify Verify) (Principal, error) {
	inter := x509.NewCertPool()
	for _, c := range between {
		inter.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: f.Pool(), Intermediates: inter, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return Principal{}, fmt.Errorf("the peer's certificate is not of this cluster: %w", err)
	}
	p, err := FromCert(leaf)
	if err != nil {
		return p, err
	}
	if p.Cluster != f.Principal.Cluster {
		return p, fmt.Errorf("%s is of another cluster than %s", p.URI, f.Principal.Cluster)
	}
	if verify != nil {
		err = verify(p)
	}
	return p, err
}

// Kinds returns a Verify that accepts the named kinds.
func Kinds(kinds ...string) Verify {
	return func(p Principal) error {
		for _, k := range kinds {
			if p.Kind == k {
				return nil
			}
		}
		return fmt.Errorf("%s may not use this protocol", p.URI)
	}
}

// All combines checks; the first refusal is returned.
func All(vs ...Verify) Verify {
	return func(p Principal) error {
		for _, v := range vs {
			if err := v(p); err != nil {
				return err
			}
		}
		return nil
	}
}

// ErrRevoked reports that the identity was revoked.
var ErrRevoked = errors.New("identity is revoked")
