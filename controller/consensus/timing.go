package consensus

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/pkg/timing"
)

// retimePause is between looks at whether a member has caught up: raft tells
// nobody of its commit index.
const retimePause = 50 * time.Millisecond

// Timing is what this member's raft runs with.
func (n *Node) Timing() timing.Timing { return *n.pace.Load() }

// retime brings this member to the timing that the fleet decided: it is kept for the
// next start, and raft begins anew in this process, since a lease can't be changed
// while it runs. Members do that each for itself, and elect a leader afterwards.
// Run calls it, so that nothing else is proposed meanwhile.
func (n *Node) retime() error {
	c := n.Snapshot().Cluster()
	if c == nil {
		return nil
	}
	want := timing.FromProto(c.Timing)
	if want == n.Timing() {
		return n.keepTiming(want)
	}
	if !n.caughtUp() { // the log may hold others behind this one
		time.AfterFunc(retimePause, func() { poke(n.fsm.timing) })
		return nil
	}
	if err := want.Validate(); err != nil {
		n.o.Logger.Error("the timing in the log can't be used", "timing", want, "err", err)
		return nil
	}
	if err := n.keepTiming(want); err != nil {
		return err
	}
	if n.IsLeader() {
		// Its commit tells the others that the new timing was committed.
		_ = n.Raft().Barrier(raftTimeout).Error()
	}
	n.o.Logger.Info("the controllers' timing changes", "from", n.Timing(), "to", want)
	// A raft that ends answers no heartbeat, and its sender would wait: the next one does.
	n.trans.SetHeartbeatHandler(nil)
	if err := n.Raft().Shutdown().Error(); err != nil {
		return fmt.Errorf("ending raft for another timing: %w", err)
	}
	n.pace.Store(&want)
	conf := n.config(n.hl)
	conf.NoSnapshotRestoreOnStart = true // the state is newer, and applies no entry twice
	return n.begin(conf)
}

func (n *Node) keepTiming(t timing.Timing) error {
	if n.o.TimingFile == "" {
		return nil
	}
	if had, err := timing.Load(n.o.TimingFile, timing.Timing{}); err == nil && had == t {
		return nil
	}
	return timing.Save(n.o.TimingFile, t)
}

// caughtUp says whether the state has all that this member knows to be committed,
// from a leader that it knows.
func (n *Node) caughtUp() bool {
	r := n.Raft()
	if _, leader := r.LeaderWithID(); leader == "" || r.AppliedIndex() < r.CommitIndex() {
		return false
	}
	// raft counts an entry as applied when it has handed it over.
	for i := r.AppliedIndex(); i > n.fsm.applied.Load(); i-- {
		var l raft.Log
		if err := n.log.GetLog(i, &l); err != nil {
			return true // behind a snapshot, which holds all before it
		}
		if l.Type == raft.LogCommand {
			return false
		}
	}
	return true
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
