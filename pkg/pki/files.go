package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/drover/drover/pkg/durable"
)

// Files is an identity on disk, so that a host restarts without raft: ca.pem (all
// trusted roots), cert.pem, key.pem, and for controllers seal.key (HPKE; opens what is
// sealed for this controller).
type Files struct {
	Dir       string
	Bundle    []*x509.Certificate
	Cert      tls.Certificate
	Principal Principal
	Seal      []byte // raw HPKE private key; nil where there is none
}

// sealBlock is the type of the PEM block in seal.key.
const sealBlock = "DROVER HPKE PRIVATE KEY"

// SealingKEM is the algorithm of controllers' sealing keys and of the recovery key.
func SealingKEM() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// WriteFiles writes an identity, key first and certificate last, so that a certificate
// on disk always has its key. Each file is durable.
func WriteFiles(dir string, bundle [][]byte, cert []byte, key crypto.Signer, seal []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("creating the directory of an identity: %w", err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the key for %s: %w", dir, err)
	}
	var roots []byte
	for _, der := range bundle {
		roots = append(roots, pemBlock("CERTIFICATE", der)...)
	}
	if seal != nil {
		if err := durable.WriteFile(filepath.Join(dir, "seal.key"), pemBlock(sealBlock, seal), 0o600); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{
		{"key.pem", pemBlock("PRIVATE KEY", k), 0o600},
		{"bundle.pem", roots, 0o644},
		{"ca.pem", roots, 0o644}, // the name that docker's clients expect
		{"cert.pem", pemBlock("CERTIFICATE", cert), 0o644},
	} {
		if err := durable.WriteFile(filepath.Join(dir, f.name), f.data, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// LoadFiles reads an identity and checks that its parts belong together. It ignores the
// clock: an expired identity must still be able to renew.
func LoadFiles(dir string) (*Files, error) {
	f := &Files{Dir: dir}
	roots, err := os.ReadFile(filepath.Join(dir, "bundle.pem"))
	if err != nil {
		return nil, fmt.Errorf("reading the trust bundle: %w", err)
	}
	for rest := bytes.TrimSpace(roots); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return nil, fmt.Errorf("the trust bundle in %s is damaged", dir)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading the trust bundle in %s: %w", dir, err)
		}
		f.Bundle = append(f.Bundle, c)
	}
	if len(f.Bundle) == 0 {
		return nil, fmt.Errorf("the trust bundle in %s holds no certificate", dir)
	}
	f.Cert, err = tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, fmt.Errorf("reading the identity in %s: %w", dir, err)
	}
	if f.Cert.Leaf == nil {
		if f.Cert.Leaf, err = x509.ParseCertificate(f.Cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("reading the identity in %s: %w", dir, err)
		}
	}
	if f.Principal, err = FromCert(f.Cert.Leaf); err != nil {
		return nil, fmt.Errorf("reading the identity in %s: %w", dir, err)
	}
	seal, err := os.ReadFile(filepath.Join(dir, "seal.key"))
	if errors.Is(err, os.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the sealing key: %w", err)
	}
	b, _ := pem.Decode(seal)
	if b == nil || b.Type != sealBlock {
		return nil, fmt.Errorf("the sealing key in %s is damaged", dir)
	}
	f.Seal = b.Bytes
	return f, nil
}

// Pool returns the trusted roots.
func (f *Files) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range f.Bundle {
		p.AddCert(c)
	}
	return p
}

func pemBlock(kind string, b []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})
}
