// Package pkitest creates identities for tests.
package pkitest

import (
	"testing"
	"time"

	"github.com/drover/drover/pkg/pki"
)

// Authority creates a cluster's authority.
func Authority(t testing.TB, cluster string) *pki.Authority {
	t.Helper()
	ca, err := pki.NewAuthority(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// Files creates an identity signed by ca, in a directory of its own; a controller's has
// a sealing key.
func Files(t testing.TB, ca *pki.Authority, cluster, kind, id string) *pki.Files {
	t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Issue(pki.URI(cluster, kind, id), key.Public(), []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var seal []byte
	if kind == pki.KindController {
		k, err := pki.SealingKEM().GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		if seal, err = k.Bytes(); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	if err := pki.WriteFiles(dir, [][]byte{ca.Cert.Raw}, der, key, seal); err != nil {
		t.Fatal(err)
	}
	f, err := pki.LoadFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
