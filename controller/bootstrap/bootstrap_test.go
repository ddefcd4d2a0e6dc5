package bootstrap

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/drover/drover/controller/vault"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

func options(dir string) Options {
	return Options{DataDir: dir, NodeName: "a", Hosts: []string{"127.0.0.1"}, Controller: "127.0.0.1:7443", Pool: "10.210.0.0/16", Now: time.Unix(1_700_000_000, 0)}
}

func TestUpMakesIdentitiesThatBelongTogether(t *testing.T) {
	dir := t.TempDir()
	created, err := Up(options(dir))
	if err != nil || !created {
		t.Fatalf("Up: created=%v err=%v", created, err)
	}
	ctl, err := pki.LoadFiles(identity.ControllerPKI(dir))
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if ctl.Principal.ID != id.Node || ctl.Principal.Cluster != id.Cluster {
		t.Fatalf("controller is %+v, agent %+v", ctl.Principal, id)
	}
	cmd, err := Pending(dir)
	if err != nil || cmd == nil {
		t.Fatalf("Pending: %v %v", cmd, err)
	}
	dk, err := vault.Unwrap(cmd.GetInit().GetSealed()[1], ctl.Seal)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dk.Open(cmd.GetInit().GetSealed()[0]); err != nil {
		t.Fatal(err)
	}
	cmd.GetInit().GetSealed()[0].Name = "other"
	if _, err := dk.Open(cmd.GetInit().GetSealed()[0]); err == nil {
		t.Fatal("a sealed secret was opened under another name")
	}
}

func TestUpSetsThePools(t *testing.T) {
	for text, want := range map[string]string{"": "base=10.220.0.0/14,size=20", "base=172.30.0.0/16,size=24": "base=172.30.0.0/16,size=24", "172.30.0.0/16": ""} {
		o := options(t.TempDir())
		o.NetworkPool = text
		if _, err := Up(o); (err == nil) != (want != "") {
			t.Fatalf("%q: %v", text, err)
		}
		if want == "" {
			continue
		}
		cmd, err := Pending(o.DataDir)
		if c := cmd.GetInit().GetCluster(); err != nil || c.GetPool() != o.Pool || len(c.GetNetworkPools()) != 1 || c.GetNetworkPools()[0] != want {
			t.Errorf("%q: %v, %v", text, c, err)
		}
	}
}

// A crash after the decision and before or during the copying must end in the
// same cluster; a crash before it in a new one, with nothing of the old left.
func TestUpResumesAfterACrash(t *testing.T) {
	dir := t.TempDir()
	if _, err := Up(options(dir)); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(identity.HostFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, lost := range []string{identity.HostFile(dir), filepath.Join(identity.ControllerPKI(dir), "cert.pem"), identity.AgentPKI(dir)} {
		if err := os.RemoveAll(lost); err != nil {
			t.Fatal(err)
		}
		if created, err := Up(options(dir)); err != nil || created {
			t.Fatalf("Up again without %s: created=%v err=%v", lost, created, err)
		}
		got, err := os.ReadFile(identity.HostFile(dir))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("identity changed after losing %s: %s (%v)", lost, got, err)
		}
	}
	if err := done(dir); err != nil {
		t.Fatal(err)
	}
	if created, err := Up(options(dir)); err != nil || created {
		t.Fatalf("Up after Done: created=%v err=%v", created, err)
	}
	if cmd, err := Pending(dir); cmd != nil || err != nil {
		t.Fatalf("Pending after Done: %v %v", cmd, err)
	}
}

// A host whose installation was cut off is not taken for a member without a controller,
// which drover up would not install any further.
func TestAHostIsAMemberAfterItIsAController(t *testing.T) {
	for _, fails := range []string{"controller", "admin"} {
		for range 4 {
			dir := t.TempDir()
			blocked := filepath.Join(dir, fails)
			if err := os.WriteFile(blocked, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Up(options(dir)); err == nil {
				t.Fatalf("%s was installed into a file", fails)
			}
			if identity.IsMember(dir) {
				t.Errorf("without its %s it is a member of the fleet, and a controller: %v", fails, identity.HasController(dir))
			}
			if err := os.Remove(blocked); err != nil {
				t.Fatal(err)
			}
			if created, err := Up(options(dir)); err != nil || created || !identity.IsMember(dir) || !identity.HasController(dir) {
				t.Errorf("Up again: created=%v err=%v", created, err)
			}
		}
	}
}

func TestUpStartsOverBeforeTheDecision(t *testing.T) {
	dir := t.TempDir()
	half := filepath.Join(dir, staging, "controller")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "key.pem"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if created, err := Up(options(dir)); err != nil || !created {
		t.Fatalf("Up: created=%v err=%v", created, err)
	}
	if _, err := pki.LoadFiles(identity.ControllerPKI(dir)); err != nil {
		t.Fatal(err)
	}
}

// Who is killed while a bootstrap is removed left all of it or nothing: a part would be
// installed again at each start, over what the host has learned since.
func TestABootstrapEndsAsAWhole(t *testing.T) {
	dir := t.TempDir()
	if _, err := Up(options(dir)); err != nil {
		t.Fatal(err)
	}
	src := identity.BootstrapDir(dir)
	var parts []string
	for i := range 300 { // so many that their removal takes a while
		parts = append(parts, filepath.Join(src, strconv.Itoa(i)))
		if err := os.WriteFile(parts[i], nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- done(dir) }()
	for gone := false; !gone; {
		for _, p := range parts {
			there := exists(p)
			if there && gone {
				t.Fatalf("%s is there, and others of the bootstrap are not", p)
			}
			gone = gone || !there
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	// What a crash left of it then goes with the next start.
	rest := filepath.Join(dir, staging, "agent")
	if err := os.MkdirAll(rest, 0o700); err != nil {
		t.Fatal(err)
	}
	if created, err := Up(options(dir)); created || err != nil || exists(rest) {
		t.Errorf("Up: created=%v err=%v, and the rest is there: %v", created, err, exists(rest))
	}
}
