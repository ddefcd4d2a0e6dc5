package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Sign signs b with the identity's key. what, its purpose, is part of the signature, so
// that a signature made for one purpose is not valid for another.
func (f *Files) Sign(what string, b []byte) ([]byte, error) {
	key, ok := f.Cert.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the key of %s is a %T, which can't sign", f.Principal.URI, f.Cert.PrivateKey)
	}
	sig, err := key.Sign(rand.Reader, signed(what, b), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("signing as %s: %w", f.Principal.URI, err)
	}
	return sig, nil
}

// Signer is an identity whose certificate was sent along with what it signed.
type Signer struct {
	Principal Principal
	key       *ecdsa.PublicKey
}

// Signer parses a certificate (DER) and verifies it as a handshake would verify a
// peer's: chain, role and revocation, but not the clock.
func (f *Files) Signer(der []byte, verify Verify) (*Signer, error) {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading a signer's certificate: %w", err)
	}
	p, err := f.verifyLeaf(c, nil, x509.ExtKeyUsageClientAuth, c.NotBefore.Add(time.Second), verify)
	if err != nil {
		return nil, err
	}
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the key of %s is a %T", p.URI, c.PublicKey)
	}
	return &Signer{p, key}, nil
}

// ErrSignature reports a signature that is not the signer's, or not over these bytes.
var ErrSignature = errors.New("the signature is wrong")

// Check verifies that sig is the signer's signature of b.
func (s *Signer) Check(what string, b, sig []byte) error {
	if !ecdsa.VerifyASN1(s.key, signed(what, b), sig) {
		return fmt.Errorf("%s: %w", s.Principal.URI, ErrSignature)
	}
	return nil
}

func signed(what string, b []byte) []byte {
	h := sha256.New()
	h.Write([]byte(what))
	h.Write([]byte{0})
	h.Write(b)
	return h.Sum(nil)
}
