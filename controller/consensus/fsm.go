package consensus

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/failpoint"
)

// fsm is state.Store behind raft's interface. raft calls Apply, Snapshot and Restore
// from one goroutine.
type fsm struct {
	store     *state.Store
	onCommit  func([]*dv1.Effect, uint64)
	onRestore func(before, after *state.Snapshot)
	halted    chan struct{} // closed at the first fatal entry
	timing    chan struct{} // signalled when the cluster's record changed, which has the timing
	size      logSize
	applied   atomic.Uint64 // index of the last entry that was applied or restored

	committed func(index, term uint64) // called with each entry's; may be nil
	waiters   waiters
	changed   signal // of the state, or of the leadership
}

func newFSM(onCommit func([]*dv1.Effect, uint64), onRestore func(before, after *state.Snapshot)) *fsm {
	return &fsm{store: state.NewStore(), onCommit: onCommit, onRestore: onRestore, halted: make(chan struct{}), timing: make(chan struct{}, 1), size: logSize{grown: make(chan struct{}, 1)}}
}

// Apply returns nil, state.ErrBase, or a *state.FatalError, after which this member
// applies nothing more and Run returns it.
func (f *fsm) Apply(l *raft.Log) any {
	if l.Index <= f.applied.Load() {
		return nil // raft was restarted in this process, from its last snapshot
	}
	if f.committed != nil {
		f.committed(l.Index, l.Term)
	}
	before := f.store.Snapshot().Cluster()
	defer f.settled(before, l.Index)
	f.size.add(len(l.Data))
	e, err := f.store.Apply(l.Index, l.Data)
	var fatal *state.FatalError
	switch {
	case errors.As(err, &fatal):
		if fatal.Index == l.Index {
			close(f.halted)
		}
		return err
	case err != nil:
		return err
	}
	failpoint.Here("controller.apply.after")
	f.reached(l.Index)
	if f.onCommit != nil {
		f.onCommit(e.Effects, l.Index)
	}
	return nil
}

func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	// A halted member's state lags behind the log: a snapshot would drop the entries
	// that it could not apply.
	if err := f.store.Fatal(); err != nil {
		return nil, err
	}
	f.size.cut()
	return snapshot{f.store.Snapshot()}, nil
}

func (f *fsm) Restore(r io.ReadCloser) error {
	defer func() { _ = r.Close() }()
	before := f.store.Snapshot()
	if err := f.store.Restore(r); err != nil {
		return err
	}
	after := f.store.Snapshot()
	f.settled(before.Cluster(), after.Index())
	f.reached(after.Index())
	if f.onRestore != nil {
		f.onRestore(before, after)
	}
	return nil
}

// reached wakes those who wait for the state to reach index, or to change.
func (f *fsm) reached(index uint64) {
	f.waiters.applied(index)
	f.changed.notify()
}

// settled records the state's index, and signals if the cluster's record changed.
func (f *fsm) settled(before *dv1.Cluster, index uint64) {
	f.applied.Store(index)
	if f.store.Snapshot().Cluster() != before {
		notify(f.timing)
	}
}

type snapshot struct{ s *state.Snapshot }

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.s.Write(sink); err != nil {
		return errors.Join(fmt.Errorf("writing a state snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

func (snapshot) Release() {}
