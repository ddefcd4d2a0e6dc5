package state

import (
	"iter"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var identities = &kind[*dv1.Identity]{
	name: "identity",
	key:  func(m *dv1.Identity) string { return m.Uri },
}

// Identity returns an identity, or nil.
func (s *Snapshot) Identity(uri string) *dv1.Identity { return identities.get(s, uri) }

// Identities yields all identities, sorted by URI.
func (s *Snapshot) Identities() iter.Seq[*dv1.Identity] { return identities.each(s, "") }
