package dispatch

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// digests are those of what an agent knows, as it makes them itself.
func (k told) digests(t *testing.T) (peers string, networks map[string]string) {
	t.Helper()
	of := map[string][]proto.Message{"": nil}
	for key, v := range k {
		var m proto.Message = &dv1.Peer{}
		network, in := strings.CutPrefix(key, "network ")
		switch {
		case strings.Contains(key, "/slice "):
			m = &dv1.Slice{}
		case strings.Contains(key, "/name "):
			m = &dv1.Name{}
		case in:
			m = &dv1.Network{}
		}
		if err := proto.Unmarshal([]byte(v), m); err != nil {
			t.Fatal(err)
		}
		if !in {
			network = ""
		}
		id := hex.EncodeToString([]byte(network[:min(len(network), idLength)]))
		of[id] = append(of[id], m)
	}
	networks = map[string]string{}
	for id, all := range of {
		d, err := bulk.Digest(slices.Values(all))
		if err != nil {
			t.Fatal(err)
		}
		networks[id] = d
	}
	peers = networks[""]
	delete(networks, "")
	return peers, networks
}

// What agents were told has the digests that the state says, and others as soon as
// anything of it is other.
func TestDigestsOfWhatIsTold(t *testing.T) {
	f := newFakeLog()
	f.put(aNode("n0"), aNode("n1"), aNetwork(0), aNetwork(1), aTask(1, "n0", 5), aTask(2, "n1", 5), anEndpoint(1, 0, "n0"), anEndpoint(2, 0, "n1"), anEndpoint(2, 1, "n1"),
		aSlice(0, "n0", "10.0.0.0/26"), aSlice(0, "n1", "10.0.0.64/26"), aSlice(1, "n1", "10.1.0.0/26"))
	now := func(node string) string {
		t.Helper()
		snap := f.store.Snapshot()
		w, err := ToldOf(snap)
		if err != nil {
			t.Fatal(err)
		}
		networks, err := w.Networks(node)
		if err != nil {
			t.Fatal(err)
		}
		peers, of := all(snap, node).digests(t)
		if w.Peers() != peers || !maps.Equal(networks, of) {
			t.Errorf("%s is told %s and %v, which says of itself %s and %v", node, w.Peers(), networks, peers, of)
		}
		return fmt.Sprint(w.Peers(), networks)
	}
	before := []string{now("n0"), now("n1")}
	for _, c := range []struct {
		what   string
		change *dv1.Effect
		both   bool
	}{
		{"a task ends", aTask(2, "n1", 0), true},
		{"a slice grows", aSlice(0, "n1", "10.0.0.64/26", "10.0.1.0/26"), true},
		{"another's network", aSlice(1, "n1", "10.1.9.0/26"), false},
		{"a node joins", aNode("n2"), true},
		{"an endpoint leaves", noEndpoint(2, 1), false},
	} {
		f.put(c.change)
		after := []string{now("n0"), now("n1")}
		if (after[0] != before[0]) != c.both || after[1] == before[1] {
			t.Errorf("%s: n0 %v, n1 %v", c.what, after[0] != before[0], after[1] != before[1])
		}
		before = after
	}
}
