package state

import (
	"iter"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var tokens = &kind[*dv1.Token]{
	name:  "token",
	key:   func(m *dv1.Token) string { return m.Id },
	stamp: func(m *dv1.Token, index uint64) { m.Revision = index },
}

// Token returns a token, or nil.
func (s *Snapshot) Token(id string) *dv1.Token { return tokens.get(s, id) }

// Tokens yields all tokens, sorted by id.
func (s *Snapshot) Tokens() iter.Seq[*dv1.Token] { return tokens.each(s, "") }
