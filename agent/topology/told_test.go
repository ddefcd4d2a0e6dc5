package topology

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// What a node was told has one digest, in whichever order it was told that, and also after
// a restart.
func TestToldIsComparedByDigests(t *testing.T) {
	n := newNode(t)
	peers := []*dv1.Peer{{NodeId: "n1", Addr: "10.9.0.1", Subnet: "10.8.1.0/24"}, {NodeId: "n2", Addr: "10.9.0.2", Subnet: "10.8.2.0/24"}}
	red := &dv1.Network{Id: id('r'), Name: "red", Labels: map[string]string{"a": "1", "b": "2", "c": "3"}}
	slice := &dv1.Slice{NetworkId: id('r'), NodeId: "n2", Prefixes: []string{"10.0.0.64/26"}}
	web, db := name('r', '1', "10.0.0.2", true, "web"), name('r', '2', "10.0.0.3", false, "db")
	digest := func(m ...proto.Message) string {
		t.Helper()
		d, err := bulk.Digest(slices.Values(m))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	is := func(when string, peers, of string) {
		t.Helper()
		p, networks, err := n.Told()
		want := map[string]string{}
		if of != "" {
			want[strings.Repeat("72", 32)] = of
		}
		if err != nil || p != peers || !maps.Equal(networks, want) {
			t.Errorf("%s: it was told %s and %v, %v; want %s and %v", when, p, networks, err, peers, want)
		}
	}
	is("at first", digest(), "")
	n.take(true, &dv1.Topology{Peers: peers, Networks: []*dv1.Network{red}, Slices: []*dv1.Slice{slice}, Names: []*dv1.Name{web, db}})
	both, whole := digest(peers[1], peers[0]), digest(db, web, slice, red)
	is("told", both, whole)
	n.reopen()
	is("after a restart", both, whole)
	n.take(false, &dv1.Topology{Names: []*dv1.Name{{NetworkId: id('r'), TaskId: db.TaskId, Gone: true}}})
	is("without a name", both, digest(web, slice, red))
	n.take(false, &dv1.Topology{NetworksGone: [][]byte{id('r')}, PeersGone: []string{"n2"}})
	is("without the network", digest(peers[0]), "")
}
