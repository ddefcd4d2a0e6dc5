package state

import (
	"iter"

	"google.golang.org/protobuf/proto"
)

// Records yields the name of each kind with its records, sorted by key, for
// inspecting a snapshot rather than for deciding.
func (s *Snapshot) Records() iter.Seq2[string, iter.Seq[proto.Message]] {
	return func(yield func(string, iter.Seq[proto.Message]) bool) {
		for _, k := range table {
			if !yield(k.section(), k.records(s)) {
				return
			}
		}
	}
}
