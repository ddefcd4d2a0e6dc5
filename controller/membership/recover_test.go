package membership

import (
	"testing"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A host may have another address when it is all that is left.
func TestARecoveredControllerIsWhereItSaysThatItIs(t *testing.T) {
	txn := state.NewTxn(state.NewStore().Snapshot())
	if err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: &dv1.Cluster{Id: "c", Epoch: 1}}},
		&dv1.Effect{Of: &dv1.Effect_Controller{Controller: &dv1.Controller{Id: "a", Name: "a", Addr: "10.0.0.1:7443"}}},
		&dv1.Effect{Of: &dv1.Effect_Controller{Controller: &dv1.Controller{Id: "b", Name: "b", Addr: "10.0.0.2:7443"}}}); err != nil {
		t.Fatal(err)
	}
	_, effects, err := alone(txn.View(), "a", "10.0.0.9:7443")
	if err != nil {
		t.Fatal(err)
	}
	if err := txn.Apply(effects...); err != nil {
		t.Fatal(err)
	}
	if a, b := txn.View().Controller("a"), txn.View().Controller("b"); a.GetAddr() != "10.0.0.9:7443" || b != nil {
		t.Errorf("after recovering there are %v and %v", a, b)
	}
}
