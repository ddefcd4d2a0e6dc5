package state

import (
	"iter"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var sealed = &kind[*dv1.Sealed]{
	name: "sealed",
	key:  func(m *dv1.Sealed) string { return m.Name },
}

// Sealed returns a sealed value, or nil.
func (s *Snapshot) Sealed(name string) *dv1.Sealed { return sealed.get(s, name) }

// SealedAll yields all sealed values, sorted by name.
func (s *Snapshot) SealedAll() iter.Seq[*dv1.Sealed] { return sealed.each(s, "") }
