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

// ErrNotLeader asks the caller to go to the leader; nothing was proposed.
var ErrNotLeader = errors.New("this controller is not the leader")

// ErrRetry leaves open whether the command was committed: repeating it with
// the same key is safe, and without a key may do it twice.
var ErrRetry = errors.New("leadership was lost while the command was in flight")

// ErrKeyReused refuses a key that was used for another request.
var ErrKeyReused = errors.New("idempotency key was used before for a different request")

// Options say who this member is. Layer carries raft's connections, unless
// Transport is given (in-memory clusters).
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
	// Believe says whether the clock is to be believed where it is more than MaxAhead
	// ahead of the state's time; nil says yes. It must not block.
	Believe func() bool
	// OnCommit gets each applied entry's effects, in order, and must not block.
	OnCommit func(effects []*dv1.Effect, index uint64)
	// OnRestore gets what the state was and is when a snapshot of another member
	// took its place, whose entries OnCommit does not get. It must not block.
	OnRestore func(before, after *state.Snapshot)
	// TimingFile keeps the fleet's timing for the next start, which must not use
	// another one than the others do until it has read its log. "" keeps nothing.
	TimingFile string
	// Timing is used where there is no file; the zero value is timing.LAN.
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
	raft     atomic.Pointer[raft.Raft] // another one after its timing changed
	fsm      *fsm
	log      store
	snaps    raft.SnapshotStore
	hl       hclog.Logger
	trans    raft.Transport
	pace     atomic.Pointer[timing.Timing] // of raft as it runs; Run changes it
	has      bool
	requests chan *pending // what people ask for
	reports  chan *pending // what the fleet found out about itself
	turn     bool          // Run takes from reports first
	lead     chan bool
	ready    atomic.Uint64 // the term in which all that was committed before it was applied here; 0: none

	leadership signal
	pipelines  pipelines
	heartbeats heartbeats

	seen     chan raft.Observation
	stamped  time.Time // when Run last gave an entry its time
	parts    sync.WaitGroup
	stop     sync.Once
	stopped  chan struct{}
	ended    chan struct{} // closed when Run returns: nothing takes from the queues any more
	closeErr error
}

// Open opens or makes the member's log under Dir and restores its state. A
// member without any state waits for Bootstrap, or to be added by a leader.
func Open(o Options) (*Node, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	walDir := filepath.Join(o.Dir, "wal")
	if err := os.MkdirAll(walDir, 0o700); err != nil {
		return nil, fmt.Errorf("making raft's folder: %w", err)
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

// begin makes the raft of this member.
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

// newRaft makes an error of raft's panic at entries that it lacks, as where the
// newest snapshot can't be read and the log begins behind the one before it.
func newRaft(c *raft.Config, f raft.FSM, logs store, snaps raft.SnapshotStore, trans raft.Transport) (r *raft.Raft, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the log does not go on from the newest snapshot that can be read: %v", p)
		}
	}()
	return raft.NewRaft(c, f, logs, logs, snaps, trans)
}

// observe announces other leaders.
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

// Verify gives an index at or above that of every entry which was answered
// before the call, after making sure that this member leads.
func (n *Node) Verify() (uint64, error) {
	term := n.readyTerm()
	if term == 0 {
		return 0, ErrNotLeader
	}
	index := n.Snapshot().Index()
	if err := n.verifyLeader(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNotLeader, err)
	}
	if n.readyTerm() != term { // it led, lost, and leads again: the index is of before
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

// HasState says whether this member had a log or snapshot when it was opened.
func (n *Node) HasState() bool { return n.has }

// Bootstrap makes the first configuration of a cluster; once, on one member.
func (n *Node) Bootstrap(servers []raft.Server) error {
	if err := n.Raft().BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		return fmt.Errorf("bootstrapping raft: %w", err)
	}
	return nil
}

// Snapshot is the state applied here so far.
func (n *Node) Snapshot() *state.Snapshot { return n.fsm.store.Snapshot() }

// Changed returns a channel that is closed at the next change of the state or of the
// leadership; take it before looking. It wakes at each commit: waits of which there
// are many are WaitIndex or LeadershipChanged.
func (n *Node) Changed() <-chan struct{} { return n.fsm.changed.wait() }

// LeadershipChanged returns a channel that is closed when another member leads, none
// does any more, or this one becomes ready or ceases to be; take it before looking.
func (n *Node) LeadershipChanged() <-chan struct{} { return n.leadership.wait() }

// announce wakes who waits for another leader.
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
	if s := n.Snapshot(); s.Index() >= index { // it came before the waiter did
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

// Leader is the leader's raft address and id, "" while there is none.
func (n *Node) Leader() (addr, id string) {
	a, i := n.Raft().LeaderWithID()
	return string(a), string(i)
}

// IsLeader says whether raft thinks this member leads; see Ready.
func (n *Node) IsLeader() bool { return n.Raft().State() == raft.Leader }

// Ready says whether this member leads and has applied all that was
// committed before its term.
func (n *Node) Ready() bool { return n.readyTerm() != 0 }

// readyTerm is the term in which this member is ready, 0 if it isn't. Who was
// deposed and elected again has not applied yet what others committed meanwhile.
func (n *Node) readyTerm() uint64 {
	if term := n.ready.Load(); n.IsLeader() && term == n.Term() {
		return term
	}
	return 0
}

// Applied is the index of the last entry applied here, of any kind.
func (n *Node) Applied() uint64 { return n.Raft().AppliedIndex() }

// Term is raft's current term.
func (n *Node) Term() uint64 { return n.Raft().CurrentTerm() }

// Raft is for membership changes and statistics; entries go through Propose. It
// ends when the timing changes: ask again.
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
