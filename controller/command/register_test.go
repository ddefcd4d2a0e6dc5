package command

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// What a node says of itself in a session is held to what a join is: nothing that
// writes on terminals or fills the log. What is known of it already stays good.
func TestANodeSaysOfItselfWhatAJoinMay(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a")
	say := func(n *dv1.Node) *dv1.Error {
		n.Id = "n0"
		return f.do(&dv1.Command{Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: n}}}).Error
	}
	many := map[string]string{}
	for i := range 200 {
		many[strings.Repeat("k", i+1)] = ""
	}
	for what, n := range map[string]*dv1.Node{
		"a name that clears screens": {Name: "\x1b[2Jweb"},
		"a long name":                {Name: strings.Repeat("n", 1000)},
		"a long address":             {Name: "a", Addr: strings.Repeat("1", 1000)},
		"a long label":               {Name: "a", Labels: map[string]string{"x": strings.Repeat("1", 60<<10)}},
		"many labels":                {Name: "a", Labels: many},
	} {
		if e := say(n); e.GetKind() != dv1.Error_INVALID {
			t.Errorf("%s: %v", what, e)
		}
	}
	old := f.store.Snapshot().Node("n0")
	b, err := proto.Marshal(&dv1.Entry{Format: state.Format, Type: state.EntryEffects, Base: f.store.Snapshot().Index(), Effects: []*dv1.Effect{{Of: &dv1.Effect_Node{
		Node: &dv1.Node{Id: "n0", Name: "my node", Subnet: old.Subnet, Labels: map[string]string{"of": "an\nearlier build"}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	f.index++
	if _, err := f.store.Apply(f.index, b); err != nil {
		t.Fatal(err)
	}
	if e := say(&dv1.Node{Name: "my node", Addr: "10.0.0.9:7444", Labels: map[string]string{"of": "an\nearlier build", "new": "1"}}); e != nil {
		t.Errorf("a node of an earlier build: %v", e)
	}
	if n := f.store.Snapshot().Node("n0"); n.Addr != "10.0.0.9:7444" || n.Labels["new"] != "1" {
		t.Errorf("it is known as %v", n)
	}
}
