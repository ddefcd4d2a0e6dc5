package controller

import (
	"slices"
	"strings"
	"testing"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/vault"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
)

func (h *host) dataKey() string {
	return h.c.node.Load().Snapshot().Sealed(command.AuthorityName).GetDataKey()
}

// A controller that is removed takes along what its host knew: the admin's
// identity there ends with it, and its key opens nothing that is written later.
func TestARemovedControllersHostKnowsNothingThatCounts(t *testing.T) {
	noLeaks(t)
	all, tk := fleet(t, 4)
	lead, others := split(t, all)
	gone := others[0]
	admin, ctl := gone.files(identity.AdminPKI(gone.data)), gone.files(identity.ControllerPKI(gone.data))
	mine := lead.files(identity.AdminPKI(lead.data))
	if admin.Principal.URI == mine.Principal.URI {
		t.Fatalf("two hosts share the identity %s", mine.Principal.URI)
	}
	if r := lead.remote(admin, "/containers/json"); r.code != 200 {
		t.Fatalf("an admin of another host: %v", r)
	}
	before, left := lead.dataKey(), gone.c.files.Principal.ID
	recovery := lead.c.node.Load().Snapshot().Sealed(command.RecoveryName)
	lead.propose(&dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: left}}})
	if r := lead.remote(admin, "/containers/json"); r.code != 403 || !strings.Contains(r.body, "revoked") {
		t.Errorf("the admin's identity of a removed controller's host: %v", r)
	}
	if r := lead.remote(mine, "/containers/json"); r.code != 200 {
		t.Errorf("the admin of a host that stays: %v", r)
	}
	until(t, "a new data key", func() bool { return lead.dataKey() != before })
	snap := lead.c.node.Load().Snapshot()
	for s := range snap.SealedAll() {
		if s.DataKey != snap.Sealed(command.AuthorityName).DataKey || strings.HasSuffix(s.Name, left) {
			t.Errorf("%s is still there with data key %s", s.Name, s.DataKey)
		}
		if _, err := vault.Unwrap(s, ctl.Seal); err == nil {
			t.Errorf("the removed controller's key opens %s", s.Name)
		}
	}
	if r := snap.Sealed(command.RecoveryName); r == nil || string(r.Blob) == string(recovery.Blob) || string(r.Recipient) != string(recovery.Recipient) {
		t.Errorf("the recovery key has %v", r)
	}
	// Whoever stays goes on signing; restarts, too, find their key.
	other := others[1]
	other.off()
	if err := other.on(); err != nil {
		t.Fatal(err)
	}
	for i, at := range []*host{lead, other, others[2]} {
		h := machine(t)
		if err := identity.Join(t.Context(), h.joining(at, tk, string(rune('x'+i)))); err != nil {
			t.Errorf("a join after the data key was replaced: %v", err)
		}
	}
}

// The leader that is to replace the data key ends: the next one does it.
func TestAnotherLeaderReplacesTheDataKey(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 4)
	lead, others := split(t, all)
	at := slices.IndexFunc(others, func(h *host) bool { return !slices.Contains(lead.voters(), h.id()) })
	gone := others[at]
	others = slices.Delete(others, at, at+1)
	before, left := lead.dataKey(), gone.id()
	gone.off()
	lead.propose(&dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: left}}})
	lead.off()
	next, _ := split(t, others)
	until(t, "a new data key", func() bool { return next.dataKey() != before })
	for s := range next.c.node.Load().Snapshot().SealedAll() {
		if strings.HasSuffix(s.Name, left) {
			t.Errorf("%s is still there", s.Name)
		}
	}
	if err := lead.on(); err != nil {
		t.Fatal(err)
	}
	until(t, "the new data key everywhere", func() bool { return lead.dataKey() == next.dataKey() })
}
