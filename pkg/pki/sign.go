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

// Sign signs b with the identity's key. what it is for goes into the signature, so
// that nothing signed for one purpose stands for another.
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

// Signer is an identity whose certificate came with what it signed.
type Signer struct {
	Principal Principal
	key       *ecdsa.PublicKey
}

// Signer reads a certificate (DER) and checks it as a peer's in a handshake: by
// chain, role and revocation, not by the clock.
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

// ErrSignature: it is not the signer's, or of other bytes.
var ErrSignature = errors.New("the signature is wrong")

// Check says whether sig is the signer's of b.
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
