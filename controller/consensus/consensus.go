// Package consensus keeps the replicated log of the controllers and runs the
// leader's proposer, which decides commands one entry at a time.
// What commands mean is left to command, what entries do to state.
package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/timing"
)

// ErrNotLeader means that nothing was proposed: the caller should go to the leader.
var ErrNotLeader = errors.New("this controller is not the leader")

// ErrRetry means that the command may have been committed. Retrying it with the same
// key is safe; without a key it may be done twice.
var ErrRetry = errors.New("leadership was lost while the command was in flight")

// ErrKeyReused refuses a key that was used for another request.
var ErrKeyReused = errors.New("idempotency key was used before for a different request")

// Options configures a member. Layer carries raft's connections, unless Transport is
// set (in-memory clusters).
type Options struct {
	ID        string
	Dir       string
	Addr      raft.ServerAddress
	Layer     raft.StreamLayer
	Transport raft.Transport
	Logger    *slog.Logger
	Version   string
	// Clock stamps entries; nil is time.Now.
	Clock func() time.Time
	// Believe reports whether to trust the clock when it is more than MaxAhead ahead of
	// the state's time; nil always trusts it. It must not block.
	Believe func() bool
	// OnCommit receives each applied entry's effects, in order, and must not block.
	OnCommit func(effects []*dv1.Effect, index uint64)
	// OnRestore receives the state before and after a snapshot of another member
	// replaced it; OnCommit is not called for its entries. It must not block.
	OnRestore func(before, after *state.Snapshot)
	// TimingFile stores the fleet's timing for the next start: until a member has read its
	// log, it must not use another timing than the others. With "" nothing is stored.
	TimingFile string
	// Timing is used if there is no file; the zero value is timing.LAN.
	Timing timing.Timing

	segment int // bytes of the log's files; 0 is segmentSize
	compact int // bytes of entries between snapshots; 0 is compactBytes
}

func (o *Options) validate() error {
	switch {
	case o.ID == "":
		return errors.New("consensus: ID is required")
	case o.Dir == "":
		return errors.New("consensus: Dir is required")
	case o.Layer == nil && o.Transport == nil:
		return errors.New("consensus: Layer is required")
	}
	if o.segment == 0 {
		o.segment = segmentSize
	}
	if o.compact == 0 {
		o.compact = compactBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Timing == (timing.Timing{}) {
		o.Timing = timing.LAN
	}
	if o.TimingFile != "" {
		var err error
		if o.Timing, err = timing.Load(o.TimingFile, o.Timing); err != nil {
			return err
		}
	}
	return o.Timing.Validate()
}

// Node is one member. It is safe for concurrent use.
type Node struct {
	o        Options
	raft     atomic.Pointer[raft.Raft] // replaced when the timing changes
	fsm      *fsm
	log      store
	snaps    raft.SnapshotStore
	hl       hclog.Logger
	trans    raft.Transport
	pace     atomic.Pointer[timing.Timing] // timing of the running raft; changed by Run
	has      bool
	requests chan *pending // from users
	reports  chan *pending // from the fleet itself: exits, liveness
	turn     bool          // Run takes from reports next
	lead     chan bool
	ready    atomic.Uint64 // term in which everything committed before it is applied here; 0 if none

	leadership signal
	pipelines  pipelines
	heartbeats heartbeats

	seen     chan raft.Observation
	stamped  time.Time // when Run last stamped an entry
	parts    sync.WaitGroup
	stop     sync.Once
	stopped  chan struct{}
	ended    chan struct{} // closed when Run returns: the queues are no longer served
	closeErr error
}

// Open opens or creates the member's log in Dir and restores its state. A member
// without any state waits for Bootstrap, or for a leader to add it.
func Open(o Options) (*Node, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	walDir := filepath.Join(o.Dir, "wal")
	if err := os.MkdirAll(walDir, 0o700); err != nil {
		return nil, fmt.Errorf("creating raft's folder: %w", err)
	}
	hl := &logAdapter{l: o.Logger.With("part", "raft")}
	logs, err := openFiles(walDir, o.segment, hl)
	if err != nil {
		return nil, err
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(o.Dir, 2, hl)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening raft's snapshots in %s: %w", o.Dir, err), logs.Close())
	}
	n, err := open(o, logs, snaps, hl)
	if err != nil {
		return nil, errors.Join(err, logs.Close())
	}
	return n, nil
}

// store is where a member keeps its log.
type store interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

func open(o Options, logs store, snaps raft.SnapshotStore, hl hclog.Logger) (*Node, error) {
	has, err := raft.HasExistingState(logs, logs, snaps)
	if err != nil {
		return nil, fmt.Errorf("reading raft's state in %s: %w", o.Dir, err)
	}
	n := &Node{
		o: o, log: logs, snaps: snaps, hl: hl, has: has, trans: o.Transport,
		requests: make(chan *pending, 1024),
		reports:  make(chan *pending, 1024),
		lead:     make(chan bool, 64),
		stopped:  make(chan struct{}),
		ended:    make(chan struct{}),
		fsm:      newFSM(o.OnCommit, o.OnRestore),
	}
	n.fsm.size.every = o.compact / 4
	n.fsm.committed = n.pipelines.committed
	n.pace.Store(&o.Timing)
	if n.trans == nil {
		n.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: o.Layer, MaxPool: 3, Timeout: 2 * time.Second, Logger: hl,
		})
	}
	n.seen = make(chan raft.Observation, 16)
	if err := n.begin(n.config(hl)); err != nil {
		if c, ok := n.trans.(io.Closer); ok && o.Transport == nil {
			err = errors.Join(err, c.Close())
		}
		return nil, err
	}
	n.parts.Go(n.observe)
	n.parts.Go(n.compact)
	return n, nil
}

// begin starts this member's raft.
func (n *Node) begin(c *raft.Config) error {
	r, err := newRaft(c, n.fsm, n.log, n.snaps, n.transport())
	if err != nil {
		return fmt.Errorf("starting raft in %s: %w", n.o.Dir, err)
	}
	r.RegisterObserver(raft.NewObserver(n.seen, false, func(o *raft.Observation) bool {
		_, leader := o.Data.(raft.LeaderObservation)
		return leader
	}))
	n.raft.Store(r)
	return nil
}

// newRaft turns into an error raft's panic at missing entries, as when the newest
// snapshot can't be read and the log starts after the one before it.
func newRaft(c *raft.Config, f raft.FSM, logs store, snaps raft.SnapshotStore, trans raft.Transport) (r *raft.Raft, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the log does not continue from the newest readable snapshot: %v", p)
		}
	}()
	return raft.NewRaft(c, f, logs, logs, snaps, trans)
}

// observe announces changes of the leader.
func (n *Node) observe() {
	for {
		select {
		case <-n.seen:
			n.announce()
		case <-n.stopped:
			return
		}
	}
}

// Verify returns an index no lower than that of every entry that was answered before
// the call, after confirming that this member leads.
func (n *Node) Verify() (uint64, error) {
	term := n.readyTerm()
	if term == 0 {
		return 0, ErrNotLeader
	}
	index := n.Snapshot().Index()
	if err := n.verifyLeader(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	if n.readyTerm() != term { // it lost the leadership and regained it: the index is from before
		return 0, ErrNotLeader
	}
	return index, nil
}

func (n *Node) config(hl hclog.Logger) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.o.ID)
	t := n.Timing()
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = t.Heartbeat, t.Election, t.Lease
	c.CommitTimeout = commitTimeout
	c.TrailingLogs = trailing
	c.SnapshotThreshold = 4096
	c.NotifyCh = n.lead
	c.Logger = hl
	c.NoLegacyTelemetry = true
	return c
}

// HasState reports whether this member had a log or snapshot when it was opened.
func (n *Node) HasState() bool { return n.has }

// Bootstrap writes the first configuration of a cluster; call it once, on one
// member.
func (n *Node) Bootstrap(servers []raft.Server) error {
	if err := n.Raft().BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		return fmt.Errorf("bootstrapping raft: %w", err)
	}
	return nil
}

// Snapshot returns the state applied here so far.
func (n *Node) Snapshot() *state.Snapshot { return n.fsm.store.Snapshot() }

// Changed returns a channel that is closed at the next change of the state or of the
// leadership; get it before reading the state. It fires at every commit: use
// WaitIndex or LeadershipChanged where many goroutines wait.
func (n *Node) Changed() <-chan struct{} { return n.fsm.changed.wait() }

// LeadershipChanged returns a channel that is closed when the leader changes or is
// lost, or this member becomes or ceases to be ready; get it before reading either.
func (n *Node) LeadershipChanged() <-chan struct{} { return n.leadership.wait() }

// announce wakes those who wait for a change of the leadership.
func (n *Node) announce() {
	n.leadership.notify()
	n.fsm.changed.notify()
}

// WaitIndex blocks until the state is at index or later, and returns it.
func (n *Node) WaitIndex(ctx context.Context, index uint64) (*state.Snapshot, error) {
	if s := n.Snapshot(); s.Index() >= index {
		return s, nil
	}
	w := n.fsm.waiters.add(index)
	defer n.fsm.waiters.remove(w)
	if s := n.Snapshot(); s.Index() >= index { // it was applied before the waiter was registered
		return s, nil
	}
	select {
	case <-w.done:
		return n.Snapshot(), nil
	case <-n.fsm.halted:
		return nil, n.fsm.store.Fatal()
	case <-n.stopped:
		return nil, raft.ErrRaftShutdown
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for raft index %d, at %d: %w", index, n.Snapshot().Index(), ctx.Err())
	}
}

// Leader returns the leader's raft address and id, "" if there is none.
func (n *Node) Leader() (addr, id string) {
	a, i := n.Raft().LeaderWithID()
	return string(a), string(i)
}

// IsLeader reports whether raft considers this member the leader; see Ready.
func (n *Node) IsLeader() bool { return n.Raft().State() == raft.Leader }

// Ready reports whether this member leads and has applied everything that was
// committed before its term.
func (n *Node) Ready() bool { return n.readyTerm() != 0 }

// readyTerm returns the term in which this member is ready, 0 if it isn't. A member
// that was deposed and reelected has yet to apply what others committed in between.
func (n *Node) readyTerm() uint64 {
	if term := n.ready.Load(); n.IsLeader() && term == n.Term() {
		return term
	}
	return 0
}

// Applied returns the index of the last entry applied here, of any kind.
func (n *Node) Applied() uint64 { return n.Raft().AppliedIndex() }

// Term returns raft's current term.
func (n *Node) Term() uint64 { return n.Raft().CurrentTerm() }

// Raft is for membership changes and statistics; entries go through Propose. It is
// replaced when the timing changes: don't keep it.
func (n *Node) Raft() *raft.Raft { return n.raft.Load() }

// Close stops raft and closes the log; the files stay. Run must have returned.
func (n *Node) Close() error {
	n.stop.Do(func() {
		close(n.stopped)
		err := n.Raft().Shutdown().Error()
		if c, ok := n.trans.(io.Closer); ok {
			err = errors.Join(err, c.Close())
		}
		n.parts.Wait()
		n.closeErr = errors.Join(err, n.log.Close())
	})
	return n.closeErr
}
