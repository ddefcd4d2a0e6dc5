package state

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Format and EntryEffects are what this build writes into entries.
const (
	Format       = 1
	EntryEffects = 1
)

// ErrBase refuses an entry that was decided on another version; nothing was changed.
var ErrBase = errors.New("entry was decided on another state version")

// FatalError reports an entry that this member cannot apply. The member must halt:
// otherwise its state would diverge from the others'.
type FatalError struct {
	Index uint64
	Err   error
}

func (e *FatalError) Error() string {
	return fmt.Sprintf("log entry %d cannot be applied, halting this member: %v", e.Index, e.Err)
}
func (e *FatalError) Unwrap() error { return e.Err }

// Store is the state of one member. Apply and Restore must be called from one
// goroutine; Snapshot is safe for concurrent use.
type Store struct {
	cur   atomic.Pointer[Snapshot]
	fatal atomic.Pointer[FatalError]
}

func NewStore() *Store {
	s := &Store{}
	s.cur.Store(empty())
	return s
}

// Snapshot returns the current state.
func (s *Store) Snapshot() *Snapshot { return s.cur.Load() }

// Fatal returns the error that halted this member, or nil.
func (s *Store) Fatal() error {
	if f := s.fatal.Load(); f != nil {
		return f
	}
	return nil
}

// Apply applies the log entry at index and returns it decoded. On ErrBase the state
// is unchanged; after a *FatalError every later Apply fails too.
func (s *Store) Apply(index uint64, data []byte) (*dv1.Entry, error) {
	if f := s.fatal.Load(); f != nil {
		return nil, f
	}
	e, err := decode(data)
	if err != nil {
		return nil, s.halt(index, err)
	}
	cur := s.cur.Load()
	if e.Base != cur.index {
		return e, ErrBase
	}
	t := NewTxn(cur)
	t.rev, t.index, t.time = index, index, max(e.Time, cur.time)
	if err := t.Apply(e.Effects...); err != nil {
		return nil, s.halt(index, err)
	}
	for _, r := range e.Results {
		if r.Result == nil {
			r.Result = &dv1.CommandResult{}
		}
		r.Result.Index = index
		t.PutResult(r)
	}
	s.cur.Store(t.done())
	return e, nil
}

func (s *Store) halt(index uint64, err error) error {
	f := &FatalError{Index: index, Err: err}
	s.fatal.Store(f)
	return f
}

// Restore replaces the state with a snapshot; on error it is unchanged.
func (s *Store) Restore(r io.Reader) error {
	if f := s.fatal.Load(); f != nil {
		return f
	}
	snap, err := Read(r)
	if err != nil {
		return fmt.Errorf("restoring a state snapshot: %w", err)
	}
	s.cur.Store(snap)
	return nil
}

func decode(data []byte) (*dv1.Entry, error) {
	e := &dv1.Entry{}
	if err := proto.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("decoding: %w", err)
	}
	switch {
	case e.Format != Format:
		return nil, fmt.Errorf("format %d is unknown", e.Format)
	case e.Type != EntryEffects:
		return nil, fmt.Errorf("entry type %d is unknown", e.Type)
	case e.MinVersion > FeatureLevel:
		return nil, fmt.Errorf("requires feature level %d, this build has %d", e.MinVersion, FeatureLevel)
	}
	for i, r := range e.Results {
		if r.Key == "" {
			return nil, fmt.Errorf("result %d has no key", i)
		}
	}
	return e, nil
}
