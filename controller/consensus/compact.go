package consensus

import (
	"errors"
	"sync"

	"github.com/hashicorp/raft"
)

// raft bounds its log by the number of entries, and checks only every few minutes:
// 4,096 entries of 256 KiB are a gigabyte.
const (
	// compactBytes is after how many bytes of entries a snapshot is taken.
	compactBytes = 32 << 20
	// trailingBytes of entries are kept after a snapshot, for members that are slightly
	// behind: at most trailing entries, at least trailingLeast.
	trailingBytes = 8 << 20
	trailing      = 512
	trailingLeast = 16
)

// logSize tracks the growth of the log.
type logSize struct {
	every int           // bytes between signals; 0 is never
	grown chan struct{} // signalled whenever it has grown by every

	mu    sync.Mutex    // guards the fields below
	last  [trailing]int // bytes of the last entries, the newest at next-1
	next  int
	since int // bytes since the last snapshot
	step  int // bytes since the last signal
}

func (s *logSize) add(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[s.next%trailing] = n
	s.next++
	s.since += n
	if s.step += n; s.every > 0 && s.step >= s.every {
		s.step = 0
		notify(s.grown)
	}
}

// cut is called when a snapshot is taken.
func (s *logSize) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = 0
}

// now returns the bytes since the last snapshot, and how many of the latest entries
// fit in within bytes.
func (s *logSize) now(within int) (since int, entries uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := 0; entries < trailing; entries++ {
		if n += s.last[(s.next-1-int(entries)+trailing*2)%trailing]; n > within && entries >= trailingLeast {
			break
		}
	}
	return s.since, entries
}

// compact takes snapshots by size, and keeps raft's number of trailing entries in
// line with trailingBytes for the snapshots that raft takes itself. It returns when
// the node is closed.
func (n *Node) compact() {
	for {
		select {
		case <-n.fsm.size.grown:
		case <-n.stopped:
			return
		}
		since, entries := n.fsm.size.now(n.o.compact / (compactBytes / trailingBytes))
		r := n.Raft()
		c := r.ReloadableConfig()
		c.TrailingLogs = entries
		if err := r.ReloadConfig(c); err != nil {
			n.o.Logger.Warn("setting the number of trailing entries failed", "err", err)
		}
		if since < n.o.compact {
			continue
		}
		err := r.Snapshot().Error()
		if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) && !errors.Is(err, raft.ErrRaftShutdown) {
			n.o.Logger.Warn("compacting the log failed", "bytes", since, "err", err)
		}
		n.fsm.changed.notify()
	}
}
