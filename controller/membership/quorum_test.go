package membership

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// quorum is the leader of a raft in memory, with a state and other controllers that a
// test plays.
type quorum struct {
	t *testing.T
	*Quorum
	raft *raft.Raft

	mu      sync.Mutex // guards what follows
	state   *state.Txn
	applied map[string]uint64 // of others that answer
	asked   int
}

// nothing is an FSM without a state.
type nothing struct{ raft.FSM }

func (nothing) Apply(*raft.Log) any { return nil }

func newQuorum(t *testing.T, others string) *quorum {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = "a", hclog.NewNullLogger()
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout, conf.CommitTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond, time.Millisecond
	_, trans := raft.NewInmemTransport("a")
	q := &quorum{t: t, state: state.NewTxn(state.NewStore().Snapshot()), applied: map[string]uint64{}}
	add := func(id string, trans *raft.InmemTransport) *raft.Raft {
		conf := *conf
		conf.LocalID = raft.ServerID(id)
		log := raft.NewInmemStore()
		r, err := raft.NewRaft(&conf, nothing{}, log, log, raft.NewInmemSnapshotStore(), trans)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Shutdown().Error() })
		return r
	}
	q.raft = add("a", trans)
	for _, id := range others {
		_, other := raft.NewInmemTransport(raft.ServerAddress(string(id)))
		trans.Connect(raft.ServerAddress(string(id)), other)
		other.Connect("a", trans)
		add(string(id), other)
	}
	leads := q.raft.LeaderCh()
	if err := q.raft.BootstrapCluster(raft.Configuration{Servers: servers("A")}).Error(); err != nil {
		t.Fatal(err)
	}
	<-leads
	q.Quorum = NewQuorum(QuorumOptions{Self: "a", Log: q, Status: q.status, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	return q
}

func (q *quorum) Raft() *raft.Raft { return q.raft }
func (q *quorum) Applied() uint64  { return 1000 }
func (q *quorum) Leader() (addr, id string) {
	a, i := q.raft.LeaderWithID()
	return string(a), string(i)
}
func (q *quorum) Propose(context.Context, *dv1.Command) (*dv1.CommandResult, error) {
	return nil, errors.ErrUnsupported
}

func (q *quorum) Snapshot() *state.Snapshot {
	q.mu.Lock()
	defer q.mu.Unlock()
	return state.NewTxn(q.state.View()).View()
}

func (q *quorum) status(_ context.Context, id, _ string) (uint64, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked++
	at, ok := q.applied[id]
	if !ok {
		return 0, errors.New("no answer")
	}
	return at, nil
}

// answers has others answer with how far they are.
func (q *quorum) answers(at uint64, ids string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range ids {
		q.applied[string(id)] = at
	}
}

func (q *quorum) commit(effects ...*dv1.Effect) {
	q.t.Helper()
	q.mu.Lock()
	if err := q.state.Apply(effects...); err != nil {
		q.t.Fatal(err)
	}
	q.mu.Unlock()
	q.Committed(effects)
}

func (q *quorum) join(ids string) {
	q.t.Helper()
	for _, c := range controllers(ids) {
		q.commit(&dv1.Effect{Of: &dv1.Effect_Controller{Controller: c}})
	}
}

// run leads until the test ends.
func (q *quorum) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	q.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			q.t.Error(err)
		}
	})
}

// is waits until raft has voters (upper case) and non-voters as text names them.
func (q *quorum) is(text string) {
	q.t.Helper()
	have := ""
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		f := q.raft.GetConfiguration()
		if f.Error() != nil {
			q.t.Fatal(f.Error())
		}
		all := []string{}
		for _, s := range f.Configuration().Servers {
			id := string(s.ID)
			if s.Suffrage == raft.Voter {
				id = strings.ToUpper(id)
			}
			all = append(all, id)
		}
		slices.SortFunc(all, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
		if have = strings.Join(all, ""); have == text {
			return
		}
	}
	q.t.Fatalf("raft has %s, want %s", have, text)
}

func TestControllersVoteOnceTheyHaveCaughtUp(t *testing.T) {
	q := newQuorum(t, "bcd")
	q.join("a")
	q.run()
	q.join("bc")
	q.answers(1000, "b")
	q.answers(10, "c") // far behind
	q.is("Abc")
	q.answers(1000-lag, "c")
	q.is("ABC")
	q.join("d")
	q.answers(1000, "d")
	q.is("ABCd") // a fourth has no vote to add

	// Its removal leaves two voters: the one that waits makes them three.
	q.commit(&dv1.Effect{Of: &dv1.Effect_DeleteController{DeleteController: "c"}})
	q.is("ABD")
	want := map[string]dv1.ControllerInfo_Role{"a": dv1.ControllerInfo_LEADER, "b": dv1.ControllerInfo_VOTER, "d": dv1.ControllerInfo_VOTER}
	for _, m := range q.Members() {
		if m.Role != want[m.Id] {
			t.Errorf("%v, want it as %s", m, want[m.Id])
		}
		delete(want, m.Id)
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
}

// While nobody waits for a vote, nobody is asked.
func TestAQuorumThatIsAsItShouldBeAsksNobody(t *testing.T) {
	q := newQuorum(t, "b")
	q.join("ab")
	q.answers(1000, "b")
	q.run()
	q.is("Ab")
	time.Sleep(2 * retryAfter)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.asked > 0 {
		t.Errorf("others were asked %d times", q.asked)
	}
}

func TestRemovalsAreJudgedOneAfterTheOther(t *testing.T) {
	q := newQuorum(t, "")
	q.join("a")
	first := make(chan error)
	begun, end := make(chan struct{}), make(chan struct{})
	go func() { first <- q.Remove(t.Context(), "one", func() error { close(begun); <-end; return nil }) }()
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := q.Remove(ctx, "other", func() error { t.Error("another was removed meanwhile"); return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("another removal: %v", err)
	}
	close(end)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	done := false
	if err := q.Remove(t.Context(), "other", func() error { done = true; return nil }); err != nil || !done {
		t.Errorf("the next one: %v, done %v", err, done)
	}
}

func TestAControllerThatTheQuorumNeedsStays(t *testing.T) {
	q := newQuorum(t, "bc")
	q.join("abc")
	q.answers(1000, "bc")
	q.run()
	q.is("ABC")
	q.mu.Lock()
	delete(q.applied, "b")
	q.mu.Unlock()
	err := q.Remove(t.Context(), "nc", func() error { t.Error("it was removed"); return nil })
	if err == nil || !strings.Contains(err.Error(), "nb does not") {
		t.Errorf("the one that answers: %v", err)
	}
	done := false
	if err := q.Remove(t.Context(), "nb", func() error { done = true; return nil }); err != nil || !done {
		t.Errorf("the one that does not answer: %v", err)
	}
}
