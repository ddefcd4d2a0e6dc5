package state

import (
	"encoding/binary"
	"iter"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// ended holds the final records of auto-removed tasks.
var ended = &kind[*dv1.Task]{
	name:    "ended",
	key:     func(m *dv1.Task) string { return string(m.Id) },
	indexes: []*index[*dv1.Task]{endedByAge},
	stamp:   func(m *dv1.Task, index uint64) { m.Revision = index },
}

var endedByAge = &index[*dv1.Task]{width: 8, key: func(m *dv1.Task) string {
	return string(binary.BigEndian.AppendUint64(nil, m.Revision))
}}

// Ended returns the final record of an auto-removed task, nil if it is not (or no
// longer) known.
func (s *Snapshot) Ended(id []byte) *dv1.Task { return ended.get(s, string(id)) }

// EndedCount returns the number of ended tasks.
func (s *Snapshot) EndedCount() int { return ended.len(s) }

// EndedByAge yields ended tasks, oldest first.
func (s *Snapshot) EndedByAge() iter.Seq[*dv1.Task] { return ended.by(s, endedByAge, "") }
