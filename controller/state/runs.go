package state

import dv1 "github.com/drover/drover/pkg/api/v1"

var runs = &kind[*dv1.Run]{
	name:    "run",
	key:     func(m *dv1.Run) string { return string(m.Id) },
	indexes: []*index[*dv1.Run]{runsBySpec},
}

var runsBySpec = &index[*dv1.Run]{key: func(m *dv1.Run) string { return string(m.SpecId) }}

// Run is nil if there is none.
func (s *Snapshot) Run(id []byte) *dv1.Run { return runs.get(s, string(id)) }

// SpecHasRuns says whether at least n runs, above 0, use a spec.
func (s *Snapshot) SpecHasRuns(spec []byte, n int) bool {
	for range runs.keys(s, runsBySpec, string(spec)) {
		if n--; n <= 0 {
			return true
		}
	}
	return false
}
