package pki

import (
	"os"
	"path/filepath"
	"strings"
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

// A write that ends anywhere leaves no certificate without its key, and nothing that
// loads as an identity which it isn't.
func TestAnIdentityIsWrittenInAnOrderThatAnyCrashLeavesWhole(t *testing.T) {
	ca, err := NewAuthority("c", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.Issue(URI("c", KindController, "1"), k.Public(), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, last := range []string{"seal.key", "key.pem", "bundle.pem", "ca.pem", "cert.pem"} {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, last, "in the way"), 0o700); err != nil { // no file takes a directory's place
			t.Fatal(err)
		}
		if err := WriteFiles(dir, [][]byte{ca.Cert.Raw}, der, k, []byte("seal")); err == nil || !strings.Contains(err.Error(), last) {
			t.Fatalf("%s: %v", last, err)
		}
		if err := os.RemoveAll(filepath.Join(dir, last)); err != nil {
			t.Fatal(err)
		}
		if f, err := LoadFiles(dir); err == nil {
			t.Errorf("without %s and what comes after it, it loads as %+v", last, f.Principal)
		}
		if _, err := os.Stat(filepath.Join(dir, "cert.pem")); !os.IsNotExist(err) {
			t.Errorf("before %s, the certificate was written: %v", last, err)
		}
		if err := WriteFiles(dir, [][]byte{ca.Cert.Raw}, der, k, []byte("seal")); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadFiles(dir); err != nil {
			t.Errorf("written again after a crash at %s: %v", last, err)
		}
		all, err := os.ReadDir(dir)
		if err != nil || len(all) != 5 {
			t.Errorf("after a crash at %s: %v, %v", last, all, err)
		}
	}
}

func TestDamagedFilesAreErrorsThatNameThem(t *testing.T) {
	ca, err := NewAuthority("c", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert := pemBlock("CERTIFICATE", ca.Cert.Raw)
	for name, c := range map[string]struct {
		file string
		data []byte
		want string // "": it loads
	}{
		"as written":               {"bundle.pem", cert, ""},
		"two roots":                {"bundle.pem", append(cert[:len(cert):len(cert)], cert...), ""},
		"an empty bundle":          {"bundle.pem", nil, "holds no certificate"},
		"a bundle of junk":         {"bundle.pem", []byte("junk"), "trust bundle"},
		"half a bundle":            {"bundle.pem", cert[:len(cert)/2], "trust bundle"},
		"no certificate in it":     {"bundle.pem", pemBlock("CERTIFICATE", []byte("junk")), "trust bundle"},
		"one root and a half":      {"bundle.pem", append(cert[:len(cert):len(cert)], cert[:len(cert)/2]...), "trust bundle"},
		"the authority's own":      {"cert.pem", cert, "private key does not match"},
		"an empty certificate":     {"cert.pem", nil, "reading the identity"},
		"an empty key":             {"key.pem", nil, "reading the identity"},
		"an empty sealing key":     {"seal.key", nil, "the sealing key"},
		"half a sealing key":       {"seal.key", []byte("-----BEGIN DROVER HPKE"), "the sealing key"},
		"another kind of a secret": {"seal.key", cert, "the sealing key"},
	} {
		dir := t.TempDir()
		k, err := NewKey()
		if err != nil {
			t.Fatal(err)
		}
		der, err := ca.Issue(URI("c", KindController, "1"), k.Public(), nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteFiles(dir, [][]byte{ca.Cert.Raw}, der, k, []byte("seal")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, c.file), c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadFiles(dir); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
