package state

import (
	"fmt"
	"slices"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Txn is a private, writable copy of a Snapshot: what a batch of commands is decided
// on, and what Apply writes. It must be used by one goroutine. A kind's rows are
// copied at the first write.
type Txn struct {
	Snapshot
	owned uint64 // bitmap of the kinds that were copied
	rev   uint64 // stamped into revisions; 0 leaves them unchanged
}

// NewTxn copies s, which stays unchanged, and may itself be a Txn's view.
func NewTxn(s *Snapshot) *Txn {
	if s.writer != nil {
		s.writer.owned = 0
	}
	t := &Txn{Snapshot: Snapshot{index: s.index, time: s.time, rows: slices.Clone(s.rows)}}
	t.writer = t
	return t
}

// View returns the transaction's state, including everything written so far.
func (t *Txn) View() *Snapshot { return &t.Snapshot }

// done returns the final state. t must not be written to afterwards.
func (t *Txn) done() *Snapshot {
	t.writer = nil
	return &t.Snapshot
}

// Apply applies effects in order, and keeps references to their messages.
func (t *Txn) Apply(all ...*dv1.Effect) error {
	for i, e := range all {
		m := e.ProtoReflect()
		field := m.WhichOneof(effectOf)
		if field == nil {
			return fmt.Errorf("effect %d is unknown: written by a newer version", i)
		}
		apply := effects[field.Name()]
		if apply == nil {
			return fmt.Errorf("effect %d: no kind of the state has a %s", i, field.Name())
		}
		if err := apply(t, m.Get(field)); err != nil {
			return fmt.Errorf("effect %d: %w", i, err)
		}
	}
	return nil
}

// PutResult stores the result of an idempotency key.
func (t *Txn) PutResult(r *dv1.KeyResult) { results.replace(t, r.Key, r) }
