package consensus

import (
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// commitTimeout is how often raft tells followers of the commit index by itself. It
	// does so whether there is news or not, which is most of what an idle fleet costs.
	commitTimeout = 250 * time.Millisecond
	// tellAfter is how long the next entry may take to bring followers the commit index
	// of the last, before they are told.
	tellAfter = 2 * time.Millisecond
)

// pipelines are a leader's streams of entries to its followers. They bring followers
// each new commit index, which raft by itself does only with the next entry, or every
// commitTimeout. Safe for concurrent use.
type pipelines struct {
	mu     sync.Mutex // guards the fields below
	open   map[*pipeline]bool
	last   map[raft.ServerID]position // of what followers have taken outside of a pipeline
	commit uint64
}

// position is the header of a leader's requests, with the last entry that a follower
// has if it takes a request.
type position struct {
	header      raft.RPCHeader
	term        uint64 // of the leader
	index, last uint64 // of the entry, and its term
	commit      uint64 // that the request brought
}

func positionOf(r *raft.AppendEntriesRequest) position {
	p := position{header: r.RPCHeader, term: r.Term, index: r.PrevLogEntry, last: r.PrevLogTerm, commit: r.LeaderCommitIndex}
	if n := len(r.Entries); n > 0 {
		p.index, p.last = r.Entries[n-1].Index, r.Entries[n-1].Term
	}
	return p
}

// committed has the open pipelines bring followers a commit index. It does not block.
func (ps *pipelines) committed(index uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if index <= ps.commit {
		return
	}
	ps.commit = index
	for p := range ps.open {
		poke(p.news)
	}
}

func (ps *pipelines) committedIndex() uint64 {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.commit
}

// taken notes what a follower took outside of a pipeline: one begins there.
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
	p := &pipeline{AppendPipeline: inner, of: ps, at: ps.last[id], news: make(chan struct{}, 1), closing: make(chan struct{}), ended: make(chan struct{})}
	if ps.open == nil {
		ps.open = map[*pipeline]bool{}
	}
	ps.open[p] = true
	go p.run()
	return p
}

func (ps *pipelines) end(p *pipeline) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.open, p)
}

// pipeline is one of them. Close ends its goroutine and waits for it.
type pipeline struct {
	raft.AppendPipeline
	of      *pipelines
	news    chan struct{}
	stop    sync.Once
	closing chan struct{}
	ended   chan struct{}

	mu sync.Mutex // guards at, and orders requests
	at position   // of the last request; no term: there was none
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
	<-p.ended
	if err != nil {
		return fmt.Errorf("closing a stream of entries: %w", err)
	}
	return nil
}

func (p *pipeline) run() {
	defer close(p.ended)
	soon := time.NewTimer(0)
	defer soon.Stop()
	for {
		select {
		case <-p.closing:
			return
		case <-p.news:
		}
		soon.Reset(tellAfter)
		select {
		case <-p.closing:
			return
		case <-soon.C:
		}
		p.tell(p.of.committedIndex())
	}
}

// tell brings the follower a commit index, if no entry did so meanwhile: one that it
// has, with what it took before. What fails is for raft to find at its next request.
func (p *pipeline) tell(commit uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// No further than the entries that are known to be the leader's there: a follower
	// commits what it has up to that index.
	commit = min(commit, p.at.index)
	if p.at.term == 0 || commit <= p.at.commit {
		return
	}
	r := &raft.AppendEntriesRequest{RPCHeader: p.at.header, Term: p.at.term,
		PrevLogEntry: p.at.index, PrevLogTerm: p.at.last, LeaderCommitIndex: commit}
	if _, err := p.AppendPipeline.AppendEntries(r, new(raft.AppendEntriesResponse)); err == nil {
		p.at.commit = commit
	}
}
