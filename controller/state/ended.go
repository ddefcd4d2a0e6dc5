package state

import (
	"encoding/binary"
	"iter"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// ended are auto-removed tasks as they were last.
var ended = &kind[*dv1.Task]{
	name:    "ended",
	key:     func(m *dv1.Task) string { return string(m.Id) },
	indexes: []*index[*dv1.Task]{endedByAge},
	stamp:   func(m *dv1.Task, index uint64) { m.Revision = index },
}

var endedByAge = &index[*dv1.Task]{width: 8, key: func(m *dv1.Task) string {
	return string(binary.BigEndian.AppendUint64(nil, m.Revision))
}}

// Ended is an auto-removed task as it was last, nil if it is not (or no longer) known.
func (s *Snapshot) Ended(id []byte) *dv1.Task { return ended.get(s, string(id)) }

// EndedCount is how many ended tasks are kept.
func (s *Snapshot) EndedCount() int { return ended.len(s) }

// EndedByAge yields ended tasks, oldest first.
func (s *Snapshot) EndedByAge() iter.Seq[*dv1.Task] { return ended.by(s, endedByAge, "") }
