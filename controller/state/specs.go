package state

import (
	"encoding/json"
	"iter"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var specs = &kind[*dv1.Spec]{
	name:    "spec",
	key:     func(m *dv1.Spec) string { return string(m.Id) },
	indexes: []*index[*dv1.Spec]{specsByImage},
	total:   func() total[*dv1.Spec] { return reservations{newTree[reservation]()} },
	around: func(t *Txn, key string, sign int) {
		for task := range t.TasksOfSpec([]byte(key)) {
			if sign < 0 {
				tasks.own(t).total.change(&t.Snapshot, task, nil)
			} else {
				tasks.own(t).total.change(&t.Snapshot, nil, task)
			}
		}
	},
}

var specsByImage = &index[*dv1.Spec]{key: func(m *dv1.Spec) string { return m.Digest + sep }}

// Spec returns a spec, or nil.
func (s *Snapshot) Spec(id []byte) *dv1.Spec { return specs.get(s, string(id)) }

// Specs yields all specs.
func (s *Snapshot) Specs() iter.Seq[*dv1.Spec] { return specs.each(s, "") }

// TasksOfImage yields the tasks whose spec uses the image.
func (s *Snapshot) TasksOfImage(digest string) iter.Seq[*dv1.Task] {
	return func(yield func(*dv1.Task) bool) {
		for spec := range specs.keys(s, specsByImage, digest+sep) {
			for t := range s.TasksOfSpec([]byte(spec)) {
				if !yield(t) {
					return
				}
			}
		}
	}
}

// reservation is what each container of a spec reserves on its node.
type reservation struct {
	memory   int64 // bytes
	nanoCPUs int64
}

// reservations caches what specs reserve, decoded once when they are written.
type reservations struct{ bySpec tree[reservation] }

func (r reservations) copy() total[*dv1.Spec] { return reservations{r.bySpec.copy()} }

func (r reservations) change(_ *Snapshot, old, m *dv1.Spec) {
	if old != nil {
		r.bySpec.del(string(old.Id))
	}
	if m == nil {
		return
	}
	var body struct {
		HostConfig struct{ MemoryReservation int64 }
	}
	if json.Unmarshal(m.Body, &body) == nil && body.HostConfig.MemoryReservation > 0 {
		r.bySpec.set(string(m.Id), reservation{memory: body.HostConfig.MemoryReservation})
	}
}

func (r reservations) load(s *Snapshot, all iter.Seq[*dv1.Spec]) {
	for m := range all {
		r.change(s, nil, m)
	}
}

func (s *Snapshot) reserves(spec []byte) reservation {
	return specs.in(s).total.(reservations).bySpec.get(string(spec))
}
