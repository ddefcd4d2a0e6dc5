package consensus

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// sent is a pipeline that notes what it is given.
type sent struct {
	raft.AppendPipeline
	mu   sync.Mutex
	all  []*raft.AppendEntriesRequest
	fail bool
}

func (s *sent) AppendEntries(r *raft.AppendEntriesRequest, _ *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail {
		return nil, errors.New("broken")
	}
	s.all = append(s.all, r)
	return nil, nil //nolint:nilnil // nobody looks at the future
}

func (s *sent) Close() error                       { return nil }
func (s *sent) Consumer() <-chan raft.AppendFuture { return nil }

func (s *sent) take() (out []*raft.AppendEntriesRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out, s.all = s.all, nil
	return out
}

func entry(index, term uint64) *raft.Log { return &raft.Log{Index: index, Term: term} }

// A follower is brought what was committed: once, as of the entries that it surely
// has, and not where raft's next entry brings it anyway.
func TestAFollowerIsBroughtWhatIsCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ps pipelines
		inner := &sent{}
		ps.taken("b", &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 4, PrevLogTerm: 2, Entries: []*raft.Log{entry(5, 3)}, LeaderCommitIndex: 4})
		p := ps.begin("b", inner)
		defer func() { _ = p.Close() }()
		send := func(r *raft.AppendEntriesRequest) {
			t.Helper()
			if _, err := p.AppendEntries(r, nil); err != nil {
				t.Fatal(err)
			}
			inner.take()
		}
		told := func(prev, prevTerm, commit uint64) {
			t.Helper()
			time.Sleep(2 * sendCommitAfter)
			synctest.Wait()
			got := inner.take()
			if commit == 0 {
				if len(got) > 0 {
					t.Errorf("it was told %+v", got[0])
				}
				return
			}
			if len(got) != 1 || got[0].PrevLogEntry != prev || got[0].PrevLogTerm != prevTerm || got[0].LeaderCommitIndex != commit || got[0].Term != 3 || len(got[0].Entries) > 0 {
				t.Errorf("it was told %+v, want that %d is committed behind %d", got, commit, prev)
			}
		}
		told(0, 0, 0)
		ps.committed(5, 3) // as of what it took before its pipeline
		told(5, 3, 5)
		ps.committed(5, 3)
		told(0, 0, 0)
		send(&raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 5, PrevLogTerm: 3, Entries: []*raft.Log{entry(6, 3), entry(7, 3)}, LeaderCommitIndex: 5})
		ps.committed(9, 3) // of which it has not seen all
		told(7, 3, 7)
		send(&raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 7, PrevLogTerm: 3, Entries: []*raft.Log{entry(8, 3), entry(9, 3)}, LeaderCommitIndex: 7})
		ps.committed(10, 3)
		send(&raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 9, PrevLogTerm: 3, Entries: []*raft.Log{entry(10, 3)}, LeaderCommitIndex: 10})
		told(0, 0, 0)
		inner.fail = true
		ps.committed(ps.newest().index+1, 3)
		told(0, 0, 0)
	})
}

// A pipeline whose follower took nothing from this leader is left to raft.
func TestAPipelineWithoutAPositionTellsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ps pipelines
		inner := &sent{}
		p := ps.begin("b", inner)
		ps.committed(5, 3)
		time.Sleep(2 * sendCommitAfter)
		synctest.Wait()
		if got := inner.take(); len(got) > 0 {
			t.Errorf("it was told %+v", got[0])
		}
		if err := p.Close(); err != nil || len(ps.open) > 0 {
			t.Errorf("closed: %v, open are %v", err, ps.open)
		}
	})
}

// A leader that was deposed learns as a follower what the next one committed, maybe
// before its own pipelines are closed: their followers may have its entries instead.
func TestADeposedLeaderDoesNotHaveItsEntriesCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ps pipelines
		inner := &sent{}
		p := ps.begin("b", inner)
		defer func() { _ = p.Close() }()
		if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 4, PrevLogTerm: 2, Entries: []*raft.Log{entry(5, 3), entry(6, 3)}, LeaderCommitIndex: 3}, nil); err != nil {
			t.Fatal(err)
		}
		inner.take()
		ps.committed(4, 2) // the next leader has an entry that was older, but not committed in term 3
		ps.committed(5, 4)
		time.Sleep(2 * sendCommitAfter)
		synctest.Wait()
		if got := inner.take(); len(got) > 0 {
			t.Errorf("a follower of term %d is told that %d is committed, which is another leader's", got[0].Term, got[0].LeaderCommitIndex)
		}
	})
}

// raft stops reading answers at the first refusal, and closes a pipeline once its send
// has returned. A commit index that waited to be sent at the time must not keep that
// send from returning: the replication would hang, and the member's shutdown with it.
func TestASendReturnsOnceItsFollowerRefused(t *testing.T) {
	transport := func() *raft.NetworkTransport {
		tr, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, 5*time.Second, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tr.Close() })
		return tr
	}
	leader, follower := transport(), transport()
	inner, err := leader.AppendEntriesPipeline("b", follower.LocalAddr())
	if err != nil {
		t.Fatal(err)
	}
	var ps pipelines
	p := ps.begin("b", inner)
	send := func(index uint64) error {
		_, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 3, PrevLogEntry: index - 1, PrevLogTerm: 3, Entries: []*raft.Log{entry(index, 3)}}, new(raft.AppendEntriesResponse))
		return err
	}
	if err := send(5); err != nil {
		t.Fatal(err)
	}
	first := <-follower.Consumer()
	ps.committed(5, 3) // by another follower: this one has yet to answer
	time.Sleep(20 * sendCommitAfter)
	second := make(chan error, 1)
	go func() { second <- send(6) }()
	time.Sleep(20 * sendCommitAfter)
	go func() {
		for {
			first.Respond(&raft.AppendEntriesResponse{Term: 4}, nil)
			select {
			case first = <-follower.Consumer():
			case <-t.Context().Done():
				return
			}
		}
	}()
	if f := <-p.Consumer(); f.Response().Success || f.Response().Term != 4 {
		t.Errorf("the follower's answer arrives as %+v", f.Response())
	}
	select {
	case <-second:
	case <-time.After(2 * time.Second):
		t.Error("the next entry's send does not return")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestHeartbeatsAreSpacedUntilSomebodyWaitsForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every = 30 * time.Millisecond
		var h heartbeats
		began := time.Now()
		at := func(to raft.ServerID, want time.Duration) {
			t.Helper()
			h.wait(to, every)
			if got := time.Since(began); got != want {
				t.Errorf("a heartbeat to %s leaves after %v, want %v", to, got, want)
			}
		}
		at("b", 0)
		at("b", every)
		time.Sleep(every + every/3)
		at("b", 2*every+every/3) // it is late
		at("b", 3*every)         // the next one is not
		time.Sleep(every / 3)
		at("c", 3*every+every/3) // the first to another member
		at("c", 4*every)         // goes on with the others'
		at("b", 4*every)
		go func() {
			time.Sleep(every / 3)
			done := h.verify()
			time.Sleep(every / 3)
			done()
		}()
		at("b", 4*every+every/3)
		at("b", 4*every+every/3)
		time.Sleep(every / 2)
		synctest.Wait()
		at("b", 5*every)
	})
}

// counting is a transport that counts what it is asked to send.
type counting struct {
	*raft.InmemTransport
	heartbeats, requests *atomic.Int64
}

func (c counting) AppendEntries(id raft.ServerID, target raft.ServerAddress, r *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if isHeartbeat(r) {
		c.heartbeats.Add(1)
	} else {
		c.requests.Add(1)
	}
	return c.InmemTransport.AppendEntries(id, target, r, resp)
}

func (c counting) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := c.InmemTransport.AppendEntriesPipeline(id, target)
	return countingPipeline{p, c.requests}, err
}

type countingPipeline struct {
	raft.AppendPipeline
	requests *atomic.Int64
}

func (p countingPipeline) AppendEntries(r *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.requests.Add(1)
	return p.AppendPipeline.AppendEntries(r, resp)
}

// What an idle fleet sends is its heartbeats and little else, and yet followers have
// an entry within milliseconds of its commit.
func TestAnIdleLeaderSendsLittleAndACommitReachesFollowersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var heartbeats, requests atomic.Int64
		s := simulate(t.Context(), t, 1, "", func(o *Options) {
			tr, _ := o.Transport.(*raft.InmemTransport)
			o.Transport = counting{tr, &heartbeats, &requests}
		})
		defer func() {
			for _, id := range s.ids {
				s.crash(id)
			}
		}()
		time.Sleep(time.Second)
		heartbeats.Store(0)
		requests.Store(0)
		const span = 60 * time.Second
		time.Sleep(span)
		perFollower := func(n *atomic.Int64) float64 { return float64(n.Load()) / 2 / span.Seconds() }
		if hb, rq := perFollower(&heartbeats), perFollower(&requests); hb > 34 || hb < 25 || rq > 4 {
			t.Errorf("a follower gets %.1f heartbeats and %.1f other requests a second", hb, rq)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for i := range 5 {
			time.Sleep(time.Second)
			r := s.ask(ctx, &dv1.Command{Of: &dv1.Command_PutTag{PutTag: &dv1.PutTag{Ref: "t" + string(rune('a'+i)), Source: digest}}})
			if r.GetError() != nil {
				t.Fatal(r.Error)
			}
			began := time.Now()
			for _, id := range s.ids {
				if _, err := s.members[id].WaitIndex(ctx, r.Index); err != nil {
					t.Fatal(err)
				}
			}
			if lag := time.Since(began); lag > 2*sendCommitAfter {
				t.Errorf("followers have it %v later", lag)
			}
		}
	})
}
