package controller

import (
	"fmt"
	"slices"
	"testing"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// What a snapshot did in place of entries is told to those who act on it: who was
// revoked, who may do something else, who is no controller any more; and nothing else.
func TestWhatASnapshotDid(t *testing.T) {
	identity := func(uri string, revoked bool) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: uri, Revoked: revoked}}}
	}
	node := func(id, role string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: id, Name: id, Roles: map[string]string{"7": role}}}}
	}
	controller := func(id string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Controller{Controller: &dv1.Controller{Id: id, Name: id}}}
	}
	snapshot := func(effects ...*dv1.Effect) *state.Snapshot {
		txn := state.NewTxn(state.NewStore().Snapshot())
		if err := txn.Apply(effects...); err != nil {
			t.Fatal(err)
		}
		return txn.View()
	}
	before := snapshot(identity("stays", false), identity("goes", false), identity("gone", true), node("same", "user"), node("less", "admin"), controller("a"), controller("b"))
	after := snapshot(identity("stays", false), identity("goes", true), identity("gone", true), identity("came and went", true), node("same", "user"), node("less", "user"), node("new", "user"), controller("a"), controller("c"))
	var got []string
	for _, e := range between(before, after) {
		switch {
		case e.GetIdentity() != nil:
			got = append(got, fmt.Sprint("identity ", e.GetIdentity().Uri, " revoked ", e.GetIdentity().Revoked))
		case e.GetNode() != nil:
			got = append(got, "node "+e.GetNode().Id)
		default:
			got = append(got, "no controller "+e.GetDeleteController())
		}
	}
	slices.Sort(got)
	if want := []string{"identity came and went revoked true", "identity goes revoked true", "no controller b", "node less", "node new"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Entries of former lives pass nobody by, and none is lost where the gate opens.
func TestTheGateHoldsBackWhatRaftReplays(t *testing.T) {
	var g gate
	var got []uint64
	g.committed(nil, 1)
	g.restore(nil, nil)
	g.open(func() { got = append(got, 0) }, func(_ []*dv1.Effect, index uint64) { got = append(got, index) }, func(_, _ *state.Snapshot) { got = append(got, 99) })
	g.committed(nil, 2)
	g.restore(nil, nil)
	if want := []uint64{0, 2, 99}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
