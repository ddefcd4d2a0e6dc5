package consensus

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// commitTimeout is how often raft sends followers the commit index by itself,
	// whether it changed or not. It dominates the cost of an idle fleet.
	commitTimeout = 250 * time.Millisecond
	// sendCommitAfter is how long to wait for the next entry to carry a commit index to
	// followers, before sending it separately.
	sendCommitAfter = 2 * time.Millisecond
)

// pipelines are a leader's streams of entries to its followers. They send followers
// each new commit index, which raft by itself sends only with the next entry, or
// every commitTimeout. It is safe for concurrent use.
type pipelines struct {
	mu     sync.Mutex // guards the fields below
	open   map[*pipeline]bool
	last   map[raft.ServerID]position // what followers accepted outside of a pipeline
	commit commit
}

// commit is a commit index, with the term of the last entry that it commits.
type commit struct{ index, term uint64 }

// position is the header of a leader's request, with the last entry that a follower
// has if it accepts the request.
type position struct {
	header      raft.RPCHeader
	term        uint64 // of the leader
	index, last uint64 // the last entry's index and term
	commit      uint64 // commit index that the request carried
}

func positionOf(r *raft.AppendEntriesRequest) position {
	p := position{header: r.RPCHeader, term: r.Term, index: r.PrevLogEntry, last: r.PrevLogTerm, commit: r.LeaderCommitIndex}
	if n := len(r.Entries); n > 0 {
		p.index, p.last = r.Entries[n-1].Index, r.Entries[n-1].Term
	}
	return p
}

// committed makes the open pipelines of a term's leader send a commit index, whose
// entry is of that term. It does not block.
func (ps *pipelines) committed(index, term uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if index <= ps.commit.index {
		return
	}
	ps.commit = commit{index, term}
	for p := range ps.open {
		notify(p.news)
	}
}

func (ps *pipelines) newest() commit {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.commit
}

// taken records what a follower accepted outside of a pipeline: the next pipeline
// starts there.
func (ps *pipelines) taken(id raft.ServerID, r *raft.AppendEntriesRequest) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.last == nil {
		ps.last = map[raft.ServerID]position{}
	}
	ps.last[id] = positionOf(r)
}

// begin wraps a pipeline that raft opened.
func (ps *pipelines) begin(id raft.ServerID, inner raft.AppendPipeline) *pipeline {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := &pipeline{AppendPipeline: inner, of: ps, at: ps.last[id], news: make(chan struct{}, 1), answers: make(chan raft.AppendFuture), closing: make(chan struct{})}
	if ps.open == nil {
		ps.open = map[*pipeline]bool{}
	}
	ps.open[p] = true
	p.parts.Go(p.run)
	p.parts.Go(p.read)
	return p
}

func (ps *pipelines) end(p *pipeline) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.open, p)
}

// pipeline is the stream to one follower. Close stops its goroutines and waits for
// them.
type pipeline struct {
	raft.AppendPipeline
	of      *pipelines
	news    chan struct{}
	answers chan raft.AppendFuture
	stop    sync.Once
	closing chan struct{}
	parts   sync.WaitGroup

	mu sync.Mutex // guards at, and orders requests
	at position   // of the last request; without a term there was none
}

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(r *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, err := p.AppendPipeline.AppendEntries(r, resp)
	if err != nil {
		return nil, fmt.Errorf("sending entries to a follower: %w", err)
	}
	p.at = positionOf(r)
	return f, nil
}

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.of.end(p)
	p.stop.Do(func() { close(p.closing) })
	err := p.AppendPipeline.Close()
	p.parts.Wait()
	if err != nil {
		return fmt.Errorf("closing a stream of entries: %w", err)
	}
	return nil
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

// read passes the answers on to raft, which reads no more after the first failure.
// The pipeline is shut down then: without a reader of answers, the next request would
// block its sender, who is the one that closes the pipeline.
func (p *pipeline) read() {
	for {
		select {
		case <-p.closing:
			return
		case f := <-p.AppendPipeline.Consumer():
			failed := !f.Response().Success || f.Response().Term > f.Request().Term
			select {
			case <-p.closing:
				return
			case p.answers <- f:
			}
			if failed {
				_ = p.AppendPipeline.Close() // again by Close, which reports errors
				return
			}
		}
	}
}

func (p *pipeline) run() {
	soon := time.NewTimer(0)
	defer soon.Stop()
	for {
		select {
		case <-p.closing:
			return
		case <-p.news:
		}
		soon.Reset(sendCommitAfter)
		select {
		case <-p.closing:
			return
		case <-soon.C:
		}
		p.sendCommit(p.of.newest())
	}
}

// sendCommit sends the follower a commit index that it has the entries for, unless an
// entry has carried it meanwhile. Errors are left for raft to find at its next
// request.
func (p *pipeline) sendCommit(c commit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// A deposed leader's pipeline may still be open when the next leader's entries are
	// committed, and its follower may have others in their place.
	if p.at.term != c.term {
		return
	}
	// Not beyond the entries that are known to match the leader's: a follower commits
	// whatever it has up to that index.
	commit := min(c.index, p.at.index)
	if commit <= p.at.commit {
		return
	}
	r := &raft.AppendEntriesRequest{RPCHeader: p.at.header, Term: p.at.term,
		PrevLogEntry: p.at.index, PrevLogTerm: p.at.last, LeaderCommitIndex: commit}
	if _, err := p.AppendPipeline.AppendEntries(r, new(raft.AppendEntriesResponse)); err == nil {
		p.at.commit = commit
	}
}
