package topology

import (
	"maps"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/pkg/bulk"
)

// Told returns digests of what the node was told: of its peers, and of each network with
// who has which addresses and names there, by id in hex.
func (t *Topology) Told() (peers string, networks map[string]string, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if peers, err = bulk.Digest(messages(t.peers)); err != nil {
		return "", nil, err
	}
	networks = map[string]string{}
	for id, n := range t.networks {
		d, err := bulk.Digest(func(yield func(proto.Message) bool) {
			if !yield(n.Network) {
				return
			}
			for m := range messages(n.slices) {
				if !yield(m) {
					return
				}
			}
			messages(n.names)(yield)
		})
		if err != nil {
			return "", nil, err
		}
		networks[hexID(id)] = d
	}
	return peers, networks, nil
}

func messages[M proto.Message](all map[string]M) func(yield func(proto.Message) bool) {
	return func(yield func(proto.Message) bool) {
		for m := range maps.Values(all) {
			if !yield(m) {
				return
			}
		}
	}
}
