package state

import (
	"iter"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var controllers = &kind[*dv1.Controller]{
	name:  "controller",
	key:   func(m *dv1.Controller) string { return m.Id },
	stamp: func(m *dv1.Controller, index uint64) { m.Revision = index },
}

// Controller returns a controller, or nil.
func (s *Snapshot) Controller(id string) *dv1.Controller { return controllers.get(s, id) }

// Controllers yields all controllers, sorted by id.
func (s *Snapshot) Controllers() iter.Seq[*dv1.Controller] { return controllers.each(s, "") }
