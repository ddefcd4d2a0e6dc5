package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"
)

// Lifetimes of certificates. The authority outlives any host.
const (
	AuthorityLife = 30 * 365 * 24 * time.Hour
	LeafLife      = 365 * 24 * time.Hour
)

// backdate allows for hosts whose clocks are behind the signer's.
const backdate = time.Hour

// Authority signs identities.
type Authority struct {
	Cert *x509.Certificate
	Key  crypto.Signer
}

// NewAuthority creates a cluster's root at the given time.
func NewAuthority(cluster string, now time.Time) (*Authority, error) {
	key, err := NewKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "drover cluster " + cluster},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(AuthorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing the cluster's authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's authority: %w", err)
	}
	return &Authority{Cert: cert, Key: key}, nil
}

// NewKey creates a private key for a leaf or an authority: ECDSA P-256.
func NewKey() (*ecdsa.PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return k, nil
}

// Issue signs a leaf for one identity. hosts are the IP addresses and DNS names at which
// servers are reached: docker and curl verify those, drover verifies the URI. The leaf is
// valid for LeafLife from now, or, if the signer's clock is that wrong, for as long at the
// nearest end of the authority's own life: outside it, nobody would accept the leaf.
func (a *Authority) Issue(uri string, pub crypto.PublicKey, hosts []string, now time.Time) ([]byte, error) {
	p, err := FromURI(uri)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("identity %q: %w", uri, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	if first := a.Cert.NotBefore.Add(backdate); now.Before(first) {
		now = first
	}
	if last := a.Cert.NotAfter.Add(-LeafLife); now.After(last) {
		now = last
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: p.Kind + " " + p.ID},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(LeafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{u},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.Cert, pub, a.Key)
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", uri, err)
	}
	return der, nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	return n, nil
}
