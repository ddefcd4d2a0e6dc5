package bulk

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestDigests(t *testing.T) {
	of := func(records ...proto.Message) string {
		t.Helper()
		d, err := Digest(slices.Values(records))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	a, b := &dv1.Peer{NodeId: "a", Addr: "10.0.0.1"}, &dv1.Peer{NodeId: "b"}
	if of(a, b) != of(b, proto.CloneOf(a)) {
		t.Error("the order matters")
	}
	// A network's labels are a map, whose order is another each time.
	labels := func() proto.Message {
		n := &dv1.Network{Name: "red", Labels: map[string]string{}}
		for _, k := range []string{"a", "b", "c", "d", "e", "f", "g"} {
			n.Labels[k] = k
		}
		return n
	}
	first := of(labels())
	for range 20 {
		if of(labels()) != first {
			t.Fatal("the order of a map matters")
		}
	}
	all := []string{of(), of(a), of(b), of(a, b), of(a, a), of(&dv1.Peer{NodeId: "a", Addr: "10.0.0.2"}), of(labels())}
	for i, d := range all {
		if slices.Index(all, d) != i || len(d) != 32 {
			t.Errorf("%d: %s is that of others too: %v", i, d, all)
		}
	}
}
