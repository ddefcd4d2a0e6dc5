package dispatch

import (
	"encoding/hex"
	"iter"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// Told is what nodes are told of the fleet's networks as of a state, as digests to compare
// with theirs. It is not safe for concurrent use.
type Told struct {
	snap     *state.Snapshot
	peers    string
	networks map[string]string // by id, as far as they were asked for
}

// ToldOf returns what nodes are told as of a state.
func ToldOf(snap *state.Snapshot) (*Told, error) {
	peers, err := bulk.Digest(func(yield func(proto.Message) bool) {
		for n := range snap.Nodes() {
			if !yield(peerOf(snap, n)) {
				return
			}
		}
	})
	return &Told{snap, peers, map[string]string{}}, err
}

// Peers is the digest of all peers, which each node is told of.
func (t *Told) Peers() string { return t.peers }

// Networks returns digests of what a node is told of networks, by id in hex.
func (t *Told) Networks(node string) (map[string]string, error) {
	out := map[string]string{}
	for id := range networksOf(t.snap, node) {
		if _, ok := t.networks[id]; !ok {
			d, err := bulk.Digest(t.network([]byte(id)))
			if err != nil {
				return nil, err
			}
			t.networks[id] = d
		}
		out[hex.EncodeToString([]byte(id))] = t.networks[id]
	}
	return out, nil
}

func (t *Told) network(id []byte) iter.Seq[proto.Message] {
	return func(yield func(proto.Message) bool) {
		n := t.snap.Network(id)
		if n == nil || !yield(n) {
			return
		}
		for s := range t.snap.Slices(id) {
			if !yield(s) {
				return
			}
		}
		for n := range namesIn(t.snap, id) {
			if !yield(n) {
				return
			}
		}
	}
}

// namesIn yields the endpoints of a network as others in it see them.
func namesIn(snap *state.Snapshot, network []byte) iter.Seq[*dv1.Name] {
	return func(yield func(*dv1.Name) bool) {
		for e := range snap.EndpointsOfNetwork(network) {
			if n := nameOf(snap, e.NetworkId, e.TaskId); !n.Gone && !yield(n) {
				return
			}
		}
	}
}
