package scheduler

import (
	"fmt"
	"slices"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Every node that fits gets one, in order, and the others are counted.
func TestEach(t *testing.T) {
	x := fleet(t, 6)
	for i, change := range map[int]func(*dv1.Node){1: func(n *dv1.Node) { n.Liveness = dv1.Node_DOWN }, 3: func(n *dv1.Node) { n.Availability = dv1.Node_DRAIN }, 4: func(n *dv1.Node) { n.Liveness = dv1.Node_DOWN }} {
		n := x.Node(fmt.Sprintf("n%04d", i))
		change(n)
		put(t, x, &dv1.Effect{Of: &dv1.Effect_Node{Node: n}})
	}
	// What tasks reserve already counts.
	put(t, x, &dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: id("s"), Body: []byte(`{"HostConfig":{"MemoryReservation":4000000000}}`)}}},
		&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: id("t"), SpecId: id("s"), Name: "t", NodeId: "n0005", Desired: dv1.Desired_CREATED}}})
	d := Each(x.View(), Group{Memory: 1 << 30}, "")
	if want := []string{"n0000", "n0002"}; !slices.Equal(d.Nodes, want) {
		t.Errorf("it fits %v, want %v", d.Nodes, want)
	}
	if got := fmt.Sprint(d.Total, d.Rejected); got != "6 [{2 down} {1 drained} {1 lack 1 GiB memory}]" {
		t.Errorf("counted are %s", got)
	}
	if d := Each(x.View(), Group{Memory: 1 << 30}, "n0000"); !slices.Equal(d.Nodes, []string{"n0002"}) || d.Total != 5 {
		t.Errorf("behind the first it fits %v of %d", d.Nodes, d.Total)
	}
	if d := Each(x.View(), Group{On: []string{"zone==z"}}, ""); len(d.Nodes) != 0 || d.Reason() != "0 of 6 nodes fit: 3 don't match zone==z, 2 down, 1 drained" {
		t.Errorf("nowhere: %q", d.Reason())
	}
}
