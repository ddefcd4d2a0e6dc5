package state

import (
	"encoding/binary"
	"iter"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// results are part of an entry beside its effects.
var results = &kind[*dv1.KeyResult]{
	name:    "result",
	key:     func(m *dv1.KeyResult) string { return m.Key },
	indexes: []*index[*dv1.KeyResult]{resultsByAge},
	total:   func() total[*dv1.KeyResult] { return new(resultBytes) },
}

var resultsByAge = &index[*dv1.KeyResult]{width: 8, key: func(m *dv1.KeyResult) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(m.At)))
}}

// Result returns the result of an idempotency key, nil if it is not (or no longer)
// known.
func (s *Snapshot) Result(key string) *dv1.KeyResult { return results.get(s, key) }

// ResultCount returns the number of results.
func (s *Snapshot) ResultCount() int { return results.len(s) }

// ResultBytes returns the size of all results.
func (s *Snapshot) ResultBytes() int { return int(*results.in(s).total.(*resultBytes)) }

// ResultsByAge yields results, oldest first.
func (s *Snapshot) ResultsByAge() iter.Seq[*dv1.KeyResult] { return results.by(s, resultsByAge, "") }

type resultBytes int

func (b *resultBytes) copy() total[*dv1.KeyResult] { c := *b; return &c }

func (b *resultBytes) load(s *Snapshot, all iter.Seq[*dv1.KeyResult]) {
	for m := range all {
		b.change(s, nil, m)
	}
}

func (b *resultBytes) change(_ *Snapshot, old, m *dv1.KeyResult) {
	*b += resultBytes(proto.Size(m) - proto.Size(old))
}
