package consensus

import (
	"errors"
	"sync"

	"github.com/hashicorp/raft"
)

// raft counts entries where it bounds its log, and looks every few minutes: 4,096
// entries of 256 KiB are a gigabyte.
const (
	// compactBytes of entries are followed by a snapshot.
	compactBytes = 32 << 20
	// trailingBytes of entries stay behind a snapshot, for members that are a little
	// behind; trailing entries at most, trailingLeast at least.
	trailingBytes = 8 << 20
	trailing      = 512
	trailingLeast = 16
)

// logSize is what the log has grown by.
type logSize struct {
	every int           // bytes between pokes; 0 is never
	grown chan struct{} // poked when it has grown by as much

	mu    sync.Mutex    // guards what follows
	last  [trailing]int // bytes of the last entries, the newest at next-1
	next  int
	since int // bytes since the last snapshot
	step  int // bytes since the last poke
}

func (s *logSize) add(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last[s.next%trailing] = n
	s.next++
	s.since += n
	if s.step += n; s.every > 0 && s.step >= s.every {
		s.step = 0
		poke(s.grown)
	}
}

// cut is called when a snapshot is taken.
func (s *logSize) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = 0
}

// now gives the bytes since the last snapshot, and how many of the last entries are
// within a number of bytes.
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

// compact takes snapshots by bytes, and keeps how much stays behind one up to date for
// those that raft takes by itself. It ends with the node.
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
			n.o.Logger.Warn("how much of the log stays could not be set", "err", err)
		}
		if since < n.o.compact {
			continue
		}
		err := r.Snapshot().Error()
		if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) && !errors.Is(err, raft.ErrRaftShutdown) {
			n.o.Logger.Warn("the log could not be cut by a snapshot", "bytes", since, "err", err)
		}
		n.fsm.changed.notify()
	}
}
