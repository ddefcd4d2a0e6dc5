package state

import (
	"iter"

	"google.golang.org/protobuf/proto"
)

// Records yields the name of each kind, and its records in the order of their keys:
// for who looks into a snapshot, not for who decides.
func (s *Snapshot) Records() iter.Seq2[string, iter.Seq[proto.Message]] {
	return func(yield func(string, iter.Seq[proto.Message]) bool) {
		for _, k := range table {
			if !yield(k.section(), k.records(s)) {
				return
			}
		}
	}
}
