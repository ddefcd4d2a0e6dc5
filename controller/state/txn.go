package state

import (
	"fmt"
	"slices"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Txn is a private, writable copy of a Snapshot: what a batch of commands is
// decided on, and what Apply writes. One goroutine owns it. A kind's records are
// copied when the first of them is written.
type Txn struct {
	Snapshot
	owned uint64 // kinds that were copied, a bit for each
	rev   uint64 // stamped into revisions; 0 leaves them
}

// NewTxn copies s; s stays as it is, and may itself be a Txn's view.
func NewTxn(s *Snapshot) *Txn {
	if s.writer != nil {
		s.writer.owned = 0
	}
	t := &Txn{Snapshot: Snapshot{index: s.index, time: s.time, rows: slices.Clone(s.rows)}}
	t.writer = t
	return t
}

// View reads the transaction, with all that was written to it so far.
func (t *Txn) View() *Snapshot { return &t.Snapshot }

// done returns the state as it was written. t must not be written any more.
func (t *Txn) done() *Snapshot {
	t.writer = nil
	return &t.Snapshot
}

// Apply writes effects in order, and keeps their messages.
func (t *Txn) Apply(all ...*dv1.Effect) error {
	for i, e := range all {
		m := e.ProtoReflect()
		field := m.WhichOneof(effectOf)
		if field == nil {
			return fmt.Errorf("effect %d is unknown here: a newer version wrote it", i)
		}
		apply := effects[field.Name()]
		if apply == nil {
			return fmt.Errorf("effect %d: no kind of the state takes a %s", i, field.Name())
		}
		if err := apply(t, m.Get(field)); err != nil {
			return fmt.Errorf("effect %d: %w", i, err)
		}
	}
	return nil
}

// PutResult keeps the answer to a key.
func (t *Txn) PutResult(r *dv1.KeyResult) { results.replace(t, r.Key, r) }
