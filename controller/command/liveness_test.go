package command

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/access/accesstest"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Verdicts on many nodes are one command: as many as an entry takes, then the rest.
// What is so already, or of a node that is gone, costs nothing.
func TestVerdictsOnManyNodes(t *testing.T) {
	f := newFleet(t, "10.0.0.0/8")
	var nodes []*dv1.Effect
	for i := range 1000 {
		nodes = append(nodes, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprint("id-", i), Name: fmt.Sprint("node-", i), Subnet: fmt.Sprintf("10.%d.%d.0/24", i/250, i%250)}}})
	}
	b, err := proto.Marshal(&dv1.Entry{Format: state.Format, Type: state.EntryEffects, Base: f.store.Snapshot().Index(), Effects: nodes})
	if err != nil {
		t.Fatal(err)
	}
	f.index++
	if _, err := f.store.Apply(f.index, b); err != nil {
		t.Fatal(err)
	}
	verdicts := []*dv1.Verdict{{NodeId: "gone", Liveness: dv1.Node_DOWN}}
	for n := range f.store.Snapshot().Nodes() {
		verdicts = append(verdicts, &dv1.Verdict{NodeId: n.Id, Liveness: dv1.Node_SUSPECT})
	}
	entries := 0
	for left := verdicts; len(left) > 0; entries++ {
		res := f.do(&dv1.Command{Of: &dv1.Command_SetLiveness{SetLiveness: &dv1.SetLiveness{Nodes: left}}})
		if res.Error != nil || int(res.Left) >= len(left) {
			t.Fatalf("of %d verdicts: %v", len(left), res)
		}
		left = left[len(left)-int(res.Left):]
	}
	for n := range f.store.Snapshot().Nodes() {
		if n.Liveness != dv1.Node_SUSPECT {
			t.Fatalf("%s is %v", n.Name, n.Liveness)
		}
	}
	again := accesstest.Named(f.store.Snapshot(), &dv1.Command{Of: &dv1.Command_SetLiveness{SetLiveness: &dv1.SetLiveness{Nodes: verdicts}}})
	if effects, res := Decide(state.NewTxn(f.store.Snapshot()), again, 5); len(effects) > 0 || res.Error != nil || res.Left != 0 {
		t.Errorf("said again, it is %v with %d effects", res, len(effects))
	}
	if entries > 5 {
		t.Errorf("it takes %d entries", entries)
	}
}
