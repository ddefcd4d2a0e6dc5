package consensus

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/pkg/timing"
)

// retimePause is the interval at which a member checks whether it has caught up:
// raft doesn't announce its commit index.
const retimePause = 50 * time.Millisecond

// Timing returns the timing of this member's raft.
func (n *Node) Timing() timing.Timing { return *n.pace.Load() }

// retime switches this member to the timing that the fleet decided: it is stored for
// the next start, and raft is restarted within this process, since a lease can't be
// changed while raft runs. Every member does so by itself, and they elect a leader
// afterwards. It is called by Run, so that nothing is proposed meanwhile.
func (n *Node) retime() error {
	c := n.Snapshot().Cluster()
	if c == nil {
		return nil
	}
	want := timing.FromProto(c.Timing)
	if want == n.Timing() {
		return n.keepTiming(want)
	}
	if !n.caughtUp() { // the log may have newer timings than this one
		time.AfterFunc(retimePause, func() { notify(n.fsm.timing) })
		return nil
	}
	if err := want.Validate(); err != nil {
		n.o.Logger.Error("the timing in the log is invalid", "timing", want, "err", err)
		return nil
	}
	if err := n.keepTiming(want); err != nil {
		return err
	}
	if n.IsLeader() {
		// Its commit shows the others that the new timing is committed.
		_ = n.Raft().Barrier(raftTimeout).Error()
	}
	n.o.Logger.Info("changing the controllers' timing", "from", n.Timing(), "to", want)
	// A raft that is shutting down doesn't answer heartbeats, and would stall their
	// sender: leave them to the next raft.
	n.trans.SetHeartbeatHandler(nil)
	if err := n.Raft().Shutdown().Error(); err != nil {
		return fmt.Errorf("stopping raft for another timing: %w", err)
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

// caughtUp reports whether the state has everything that this member knows to be
// committed, according to a known leader.
func (n *Node) caughtUp() bool {
	r := n.Raft()
	if _, leader := r.LeaderWithID(); leader == "" || r.AppliedIndex() < r.CommitIndex() {
		return false
	}
	// raft counts an entry as applied once it has handed it over.
	for i := r.AppliedIndex(); i > n.fsm.applied.Load(); i-- {
		var l raft.Log
		if err := n.log.GetLog(i, &l); err != nil {
			return true // the rest is in a snapshot
		}
		if l.Type == raft.LogCommand {
			return false
		}
	}
	return true
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
