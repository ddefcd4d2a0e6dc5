package pki

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A certificate without its key, another's key, or a missing bundle must be an
// error that names the folder, never half an identity.
func TestLoadFilesRefusesHalves(t *testing.T) {
	ca, err := NewAuthority("c", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	write := func() string {
		dir := t.TempDir()
		k, err := NewKey()
		if err != nil {
			t.Fatal(err)
		}
		der, err := ca.Issue(URI("c", KindController, "1"), k.Public(), []string{"10.0.0.1", "web-1"}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteFiles(dir, [][]byte{ca.Cert.Raw}, der, k, []byte("seal")); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dir, other := write(), write()
	f, err := LoadFiles(dir)
	if err != nil || string(f.Seal) != "seal" || f.Principal.Kind != KindController {
		t.Fatalf("%+v %v", f, err)
	}
	if leaf := f.Cert.Leaf; len(leaf.IPAddresses) != 1 || len(leaf.DNSNames) != 1 {
		t.Fatalf("the leaf has addresses %v and names %v", leaf.IPAddresses, leaf.DNSNames)
	}
	if st, err := os.Stat(filepath.Join(dir, "key.pem")); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("the key is readable: %v %v", st.Mode(), err)
	}
	key, err := os.ReadFile(filepath.Join(other, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "key.pem"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadFiles(dir); err == nil {
		t.Fatal("a stranger's key was taken")
	}
	for _, lost := range []string{"bundle.pem", "cert.pem", "key.pem"} {
		dir := write()
		if err := os.Remove(filepath.Join(dir, lost)); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadFiles(dir); err == nil {
			t.Errorf("loaded without %s", lost)
		}
	}
}
