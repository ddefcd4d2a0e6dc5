package consensus

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// isHeartbeat is how raft's own transport tells heartbeats.
func isHeartbeat(r *raft.AppendEntriesRequest) bool {
	return len(r.Entries) == 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && r.LeaderCommitIndex == 0
}

// heartbeats spaces a leader's heartbeats evenly, those to all followers at once, so
// that the process wakes once for all. raft lets a tenth to a fifth of the heartbeat
// timeout pass between two; they come no later this way, and a quarter fewer. Safe for
// concurrent use.
type heartbeats struct {
	mu        sync.Mutex // guards the fields below
	began     time.Time
	last      map[raft.ServerID]time.Duration // since began
	verifying int                             // who waits for a majority's answers: then none is held back
	urgent    signal
}

// wait blocks until the next heartbeat to a member is due.
func (h *heartbeats) wait(id raft.ServerID, every time.Duration) {
	for {
		urgent := h.urgent.wait()
		left := h.due(id, every)
		if left <= 0 {
			return
		}
		t := time.NewTimer(left)
		select {
		case <-t.C:
		case <-urgent:
		}
		t.Stop()
	}
}

// due is how long it is until the next heartbeat; one that is due counts as sent.
func (h *heartbeats) due(id raft.ServerID, every time.Duration) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == nil {
		h.began, h.last = time.Now(), map[raft.ServerID]time.Duration{}
	}
	now := time.Since(h.began)
	last, ok := h.last[id]
	if left := (last/every+1)*every - now; ok && left > 0 && h.verifying == 0 {
		return left
	}
	h.last[id] = now
	return 0
}

// verify holds back no heartbeat until done is called.
func (h *heartbeats) verify() (done func()) {
	h.add(1)
	h.urgent.notify()
	return func() { h.add(-1) }
}

func (h *heartbeats) add(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.verifying += n
}

// frugal is a transport that costs an idle leader little: its heartbeats are spaced,
// and its pipelines bring the commit index. It outlives a raft that uses it, which
// therefore can't close it.
type frugal struct {
	raft.Transport
	pipelines  *pipelines
	heartbeats *heartbeats
	every      func() time.Duration // between heartbeats
}

// AppendEntries implements raft.Transport.
func (t *frugal) AppendEntries(id raft.ServerID, target raft.ServerAddress, r *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if isHeartbeat(r) {
		t.heartbeats.wait(id, t.every())
		return t.Transport.AppendEntries(id, target, r, resp)
	}
	err := t.Transport.AppendEntries(id, target, r, resp)
	if err == nil && resp.Success {
		t.pipelines.taken(id, r)
	}
	return err
}

// AppendEntriesPipeline implements raft.Transport.
func (t *frugal) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := t.Transport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return t.pipelines.begin(id, p), nil
}

// transport is this member's, for one raft.
func (n *Node) transport() raft.Transport {
	t := &frugal{n.trans, &n.pipelines, &n.heartbeats, func() time.Duration { return n.Timing().Heartbeat / 5 }}
	if p, ok := n.trans.(raft.WithPreVote); ok {
		return struct {
			*frugal
			raft.WithPreVote
		}{t, p}
	}
	return t
}

// verifyLeader asks a majority whether this member leads still.
func (n *Node) verifyLeader() error {
	defer n.heartbeats.verify()()
	return n.Raft().VerifyLeader().Error()
}
