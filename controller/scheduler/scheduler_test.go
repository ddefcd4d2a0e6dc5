package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

func fleet(t testing.TB, nodes int) *state.Txn {
	t.Helper()
	x := state.NewTxn(state.NewStore().Snapshot())
	for i := range nodes {
		put(t, x, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprintf("n%04d", i), Name: fmt.Sprint("host-", i), Liveness: dv1.Node_READY, Availability: dv1.Node_ACTIVE,
			Labels: map[string]string{"zone": string(rune('a' + i%3))}, Capacity: &dv1.Capacity{Memory: 4 << 30, NanoCpus: 4e9, Arch: "amd64", Os: "linux"}}}})
	}
	return x
}

func put(t testing.TB, x *state.Txn, e ...*dv1.Effect) {
	t.Helper()
	if err := x.Apply(e...); err != nil {
		t.Fatal(err)
	}
}

func id(of string) []byte { return fmt.Appendf(nil, "%-32s", of)[:32] }

func TestSpreadLocalityAndContact(t *testing.T) {
	x := fleet(t, 3)
	d := Place(x.View(), Group{Count: 7, Digest: digest, Contact: "n0001"})[0]
	per := map[string]int{}
	for _, n := range d.Nodes {
		per[n]++
	}
	if per["n0000"] < 2 || per["n0001"] != 3 || per["n0002"] < 2 {
		t.Errorf("seven of them: %v", per)
	}
	// Who has the image is preferred, but not piled upon.
	put(t, x, &dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: id("s"), Digest: digest}}},
		&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: id("t"), RunId: id("r"), SpecId: id("s"), Name: "t", NodeId: "n0002", Desired: dv1.Desired_STOPPED}}})
	if d := Place(x.View(), Group{Count: 1, Digest: digest})[0]; d.Nodes[0] != "n0002" {
		t.Errorf("the image is on n0002, it went to %v", d.Nodes)
	}
	if d := Place(x.View(), Group{Count: 6, Digest: digest})[0]; slices.Compact(slices.Sorted(slices.Values(d.Nodes)))[0] != "n0000" {
		t.Errorf("six of them are on %v", d.Nodes)
	}
}

func TestEveryRejectionIsCounted(t *testing.T) {
	x := fleet(t, 6)
	for i, change := range []func(*dv1.Node){func(n *dv1.Node) { n.Liveness = dv1.Node_DOWN }, func(n *dv1.Node) { n.Liveness = dv1.Node_SUSPECT }, func(n *dv1.Node) { n.Availability = dv1.Node_DRAIN },
		func(n *dv1.Node) { n.Capacity.Arch = "arm64" }, func(n *dv1.Node) { n.Capacity.Memory = 1 << 20 }} {
		n := x.Node(fmt.Sprintf("n%04d", i))
		change(n)
		put(t, x, &dv1.Effect{Of: &dv1.Effect_Node{Node: n}})
	}
	d := Place(x.View(), Group{Count: 1, Arch: "amd64", Memory: 2 << 30, On: []string{"node!=host-5"}})[0]
	reason := d.Reason()
	for _, want := range []string{"0 of 6 nodes fit", "1 down", "1 silent", "1 drained", "1 are not amd64", "1 lack 2 GiB memory", "1 don't match node!=host-5"} {
		if !strings.Contains(reason, want) {
			t.Errorf("%q lacks %q", reason, want)
		}
	}
	if r := Place(fleet(t, 0).View(), Group{Count: 1})[0].Reason(); !strings.Contains(r, "no node has joined") {
		t.Errorf("without nodes: %q", r)
	}
}

func TestConstraints(t *testing.T) {
	n := &dv1.Node{Id: "n1", Name: "web-1", Labels: map[string]string{"zone": "b", "disk": "ssd-fast"}, Capacity: &dv1.Capacity{Arch: "amd64", Os: "linux"}}
	for on, want := range map[string]bool{"node==web-1": true, "node==n1": true, "node!=web-1": false, "zone==b": true, "zone!=b": false, "disk==ssd*": true,
		"disk==~ssd*": true, "nothing==x": false, "nothing!=x": true, "arch==amd64": true, "os==linux": true, "arch==arm64": false} {
		if got, err := Matches(n, Split(" "+on+" ,")); err != nil || got != want {
			t.Errorf("%s: %v (%v)", on, got, err)
		}
	}
	for _, bad := range []string{"", "zone", "==b", "zone==", "zone=b", "zone==[", "zone>3"} {
		if CheckConstraint(bad) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
