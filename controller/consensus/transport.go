package consensus

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// isHeartbeat recognizes heartbeats as raft's own transport does.
func isHeartbeat(r *raft.AppendEntriesRequest) bool {
	return len(r.Entries) == 0 && r.PrevLogEntry == 0 && r.PrevLogTerm == 0 && r.LeaderCommitIndex == 0
}

// heartbeats spaces a leader's heartbeats evenly, sending them to all followers at
// once, so that the process wakes up once for all. raft's own interval is random, a
// tenth to a fifth of the heartbeat timeout; this is no slower, with a quarter fewer
// heartbeats. It is safe for concurrent use.
type heartbeats struct {
	mu        sync.Mutex // guards the fields below
	began     time.Time
	last      map[raft.ServerID]time.Duration // since began
	verifying int                             // how many calls wait for a majority; then no heartbeat is held back
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

// due returns how long it is until the next heartbeat; one that is due counts as
// sent.
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

// verify disables spacing until done is called.
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

// frugal is a transport that makes an idle leader cheap: its heartbeats are spaced,
// and its pipelines carry the commit index. It outlives the raft that uses it, which
// must therefore not close it.
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

// transport returns this member's transport, for one raft.
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

// verifyLeader asks a majority to confirm that this member, which knows of nobody else
// that leads, still does.
func (n *Node) verifyLeader() error {
	if n.alone() {
		return nil
	}
	defer n.heartbeats.verify()()
	return n.Raft().VerifyLeader().Error()
}

// alone reports whether this member is the only voter: nobody else can lead before an entry
// of its own says so. Raft would answer the same, but not while it writes to the disk.
func (n *Node) alone() bool {
	f := n.Raft().GetConfiguration()
	if f.Error() != nil {
		return false
	}
	var voters []raft.ServerID
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, s.ID)
		}
	}
	return len(voters) == 1 && voters[0] == raft.ServerID(n.o.ID)
}
