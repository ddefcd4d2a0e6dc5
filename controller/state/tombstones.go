package state

import (
	"iter"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var tombstones = &kind[*dv1.Tombstone]{
	name:    "tombstone",
	key:     func(m *dv1.Tombstone) string { return string(Removed(m)) },
	indexes: []*index[*dv1.Tombstone]{tombstonesByNode},
	stamp:   func(m *dv1.Tombstone, index uint64) { m.Revision = index },
}

var tombstonesByNode = &index[*dv1.Tombstone]{key: func(m *dv1.Tombstone) string { return m.NodeId + sep }}

// Removed returns the id of the task or volume whose removal a tombstone is.
func Removed(m *dv1.Tombstone) []byte {
	if len(m.VolumeId) > 0 {
		return m.VolumeId
	}
	return m.TaskId
}

// Tombstone returns the unacknowledged removal of a task or volume, or nil.
func (s *Snapshot) Tombstone(id []byte) *dv1.Tombstone { return tombstones.get(s, string(id)) }

// Tombstones yields the unacknowledged removals of a node; of all nodes for "".
func (s *Snapshot) Tombstones(node string) iter.Seq[*dv1.Tombstone] {
	if node == "" {
		return tombstones.each(s, "")
	}
	return tombstones.by(s, tombstonesByNode, node+sep)
}
