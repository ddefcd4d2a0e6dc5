package access

import (
	"errors"
	"strings"
	"testing"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

func TestIdentitiesAreJudgedByTheStateOfNow(t *testing.T) {
	uri := func(kind, id string) string { return pki.URI("c", kind, id) }
	txn := state.NewTxn(state.NewStore().Snapshot())
	for _, i := range []*dv1.Identity{
		{Uri: uri(pki.KindNode, "n"), Roles: []string{pki.KindNode}},
		{Uri: uri(pki.KindNode, "old"), Roles: []string{pki.KindNode}, Revoked: true},
	} {
		if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: i}}); err != nil {
			t.Fatal(err)
		}
	}
	var now *state.Snapshot
	ids := NewIdentities(func() *state.Snapshot { return now })
	check := func(id, role, authorized, revoked string) {
		t.Helper()
		p := pki.Principal{Kind: pki.KindNode, ID: id, URI: uri(pki.KindNode, id)}
		for what, c := range map[string]struct {
			err  error
			want string
		}{"Authorize": {ids.Authorize(p, role), authorized}, "Verify": {ids.Verify(role)(p), authorized}, "NotRevoked": {ids.NotRevoked(p), revoked}} {
			if c.want == "" && c.err != nil || c.want != "" && (c.err == nil || !strings.Contains(c.err.Error(), c.want)) {
				t.Errorf("%s of %s as %s: %v, want %q", what, id, role, c.err, c.want)
			}
		}
	}
	check("n", pki.KindNode, "this controller is starting", "")
	check("old", pki.KindNode, "this controller is starting", "") // raft itself may have to come through
	now = txn.View()
	check("n", pki.KindNode, "", "")
	check("n", pki.KindController, "lacks the role controller", "")
	check("unheard", pki.KindNode, ErrUnknown.Error(), "")
	check("old", pki.KindNode, pki.ErrRevoked.Error(), pki.ErrRevoked.Error())
	if err := ids.NotRevoked(pki.Principal{URI: uri(pki.KindNode, "old")}); !errors.Is(err, pki.ErrRevoked) {
		t.Errorf("%v is not ErrRevoked", err)
	}
}
