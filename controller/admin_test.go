package controller

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// Hosts of fleets that earlier builds made have one admin's key together: each gets
// its own, and the shared one goes with the first controller that is removed.
func TestTheSharedAdminOfAnOldFleetGoes(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	lead, others := split(t, all)
	stays, gone := others[0], others[1]
	shared := all[0].identity(pki.KindUser, "admin")
	lead.propose(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: shared.Principal.URI, Roles: []string{pki.RoleAdmin}}}}})
	stays.off()
	for _, name := range []string{"cert.pem", "key.pem"} { // of an earlier build
		b, err := os.ReadFile(filepath.Join(shared.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(identity.AdminPKI(stays.data), name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := stays.on(); err != nil {
		t.Fatal(err)
	}
	own := func() string {
		f, err := pki.LoadFiles(identity.AdminPKI(stays.data))
		if err != nil {
			return ""
		}
		return f.Principal.ID
	}
	until(t, "an admin of its own", func() bool { return own() == pki.AdminOf(stays.id()) })
	if r := lead.remote(shared, "/containers/json"); r.code != 200 {
		t.Fatalf("the shared admin while nobody is gone: %v", r)
	}
	lead.propose(&dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: gone.id()}}})
	until(t, "the shared admin is revoked", func() bool {
		r := lead.remote(shared, "/containers/json")
		return r.code == 403 && strings.Contains(r.body, "revoked")
	})
	if r := lead.remote(stays.files(identity.AdminPKI(stays.data)), "/containers/json"); r.code != 200 {
		t.Errorf("the admin of a host that stays: %v", r)
	}
	gone.gone()

	// A crash between a new key and its certificate is made good.
	stays.off()
	if err := os.Remove(filepath.Join(identity.AdminPKI(stays.data), "cert.pem")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(shared.Dir, "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(identity.AdminPKI(stays.data), "cert.pem"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := stays.on(); err != nil {
		t.Fatal(err)
	}
	until(t, "an admin again", func() bool { return own() == pki.AdminOf(stays.id()) })
}
