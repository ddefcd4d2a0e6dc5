package state

import (
	"crypto/sha256"
	"encoding/binary"
	"iter"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var runs = &kind[*dv1.Run]{
	name:    "run",
	key:     func(m *dv1.Run) string { return string(m.Id) },
	indexes: []*index[*dv1.Run]{runsBySpec, runsByName, runsFilling},
	stamp:   func(m *dv1.Run, index uint64) { m.Revision = index },
}

var (
	runsBySpec = &index[*dv1.Run]{key: func(m *dv1.Run) string { return string(m.SpecId) }}
	runsByName = &index[*dv1.Run]{unique: "name", key: func(m *dv1.Run) string {
		if m.Name == "" {
			return ""
		}
		return m.Name + sep
	}}
	runsFilling = &index[*dv1.Run]{width: len(sep), key: func(m *dv1.Run) string {
		if m.Filling {
			return sep
		}
		return ""
	}}
)

// TaskID returns the id of the task in a slot of a run over nodes, counted from 1,
// for a generation of the run.
func TaskID(run []byte, slot uint32, generation uint64) []byte {
	b := binary.BigEndian.AppendUint32(append([]byte("drover task 1\n"), run...), slot)
	sum := sha256.Sum256(binary.BigEndian.AppendUint64(b, generation))
	return sum[:]
}

// Run returns a run, or nil.
func (s *Snapshot) Run(id []byte) *dv1.Run { return runs.get(s, string(id)) }

// Runs yields all runs, sorted by id.
func (s *Snapshot) Runs() iter.Seq[*dv1.Run] { return runs.each(s, "") }

// RunByName returns a run, or nil. Runs of one have no name: their task has.
func (s *Snapshot) RunByName(name string) *dv1.Run { return runs.first(s, runsByName, name+sep) }

// RunsFilling yields the runs that lack tasks for some of their slots.
func (s *Snapshot) RunsFilling() iter.Seq[*dv1.Run] { return runs.by(s, runsFilling, "") }

// RunHasTasks reports whether a run has at least n tasks; n must be above 0.
func (s *Snapshot) RunHasTasks(run []byte, n int) bool {
	return atLeast(n, tasks.keys(s, tasksByRun, string(run)))
}

// SpecInUse reports whether at least n runs and tasks use a spec; n must be above 0.
func (s *Snapshot) SpecInUse(spec []byte, n int) bool {
	return atLeast(n, tasks.keys(s, tasksBySpec, string(spec)), runs.keys(s, runsBySpec, string(spec)))
}

func atLeast(n int, all ...iter.Seq[string]) bool {
	for _, some := range all {
		for range some {
			if n--; n <= 0 {
				return true
			}
		}
	}
	return false
}
