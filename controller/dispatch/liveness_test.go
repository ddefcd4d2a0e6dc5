package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
)

// leading is a hub in a term of its leadership, on virtual time. Its log takes each
// verdict.
type leading struct {
	*fakeLog
	t      *testing.T
	frozen atomic.Int64 // how long this process stood still
	answer atomic.Bool  // what probes say
	before atomic.Pointer[func()]
	said   []string // liveness that was proposed, as node=liveness
	end    context.CancelFunc

	onCommand func(*dv1.Command) // may be nil
}

func (l *leading) Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	if before := l.before.Load(); before != nil {
		(*before)()
	}
	if l.onCommand != nil {
		l.onCommand(c)
	}
	nodes := c.GetSetLiveness().GetNodes()
	left := max(0, len(nodes)-perEntry)
	for _, v := range nodes[:len(nodes)-left] {
		l.said = append(l.said, v.NodeId+"="+wire.Word(v.Liveness))
		l.put(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: v.NodeId, Liveness: v.Liveness}}})
	}
	return &dv1.CommandResult{Left: uint32(left)}, ctx.Err()
}

// perEntry is how many verdicts its log takes at once.
const perEntry = 3

// beginTerm begins one with nodes as the log knows them.
func beginTerm(t *testing.T, liveness ...dv1.Node_Liveness) *leading {
	t.Helper()
	l := &leading{fakeLog: newFakeLog(), t: t}
	l.hub = New(Options{Log: l, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Now().Add(time.Duration(l.frozen.Load())) },
		Probe: func(context.Context, string) bool { return l.answer.Load() }})
	for i, x := range liveness {
		l.put(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprint("n", i), Liveness: x}}})
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = l.hub.Run(ctx) }()
	l.end = func() { cancel(); <-done }
	synctest.Wait()
	return l
}

// heard has nodes beat for d.
func (l *leading) heard(d time.Duration, nodes ...string) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(BeatEvery) {
		term := l.hub.term.Load()
		for _, id := range nodes {
			n, err := term.enrol(id)
			if err != nil {
				l.t.Fatal(err)
			}
			term.hear(n)
		}
		synctest.Wait()
	}
}

func (l *leading) want(said ...string) {
	l.t.Helper()
	synctest.Wait()
	slices.Sort(l.said)
	if !slices.Equal(l.said, said) {
		l.t.Errorf("it was found that %v, want %v", l.said, said)
	}
	l.said = nil
}

// A new leader takes nobody for alive whom it has not heard, nor for dead.
func TestAnElectionChangesNobodysLiveness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := beginTerm(t, dv1.Node_READY, dv1.Node_SUSPECT, dv1.Node_DOWN, dv1.Node_READY, dv1.Node_DOWN)
		defer l.end()
		time.Sleep(SuspectAfter - BeatEvery)
		l.want()
		l.heard(5*BeatEvery, "n3", "n4")
		l.want("n0=down", "n0=suspect", "n1=down", "n4=ready")
	})
}

func TestASilentNodeIsSuspectAndOneThatNobodyReachesIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := beginTerm(t, dv1.Node_READY, dv1.Node_READY)
		defer l.end()
		l.answer.Store(true)
		l.heard(2*SuspectAfter, "n0", "n1")
		l.want()
		l.heard(2*SuspectAfter, "n0")
		l.want("n1=suspect")
		if s := l.hub.Silent(); len(s) != 1 || s["n1"] == 0 {
			t.Errorf("silent are %v", s)
		}
		l.answer.Store(false)
		l.heard(2*SuspectAfter, "n0")
		l.want("n1=down")
		l.answer.Store(true)
		l.heard(2*SuspectAfter, "n0")
		l.want("n1=suspect")
		l.heard(BeatEvery, "n0", "n1")
		l.want("n1=ready")
	})
}

// A process that stood still has heard nobody, and finds nobody silent for it.
func TestWhoWasFrozenCallsNobodySilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := beginTerm(t, dv1.Node_READY, dv1.Node_READY)
		defer l.end()
		l.heard(2*SuspectAfter, "n0", "n1")
		l.frozen.Add(int64(time.Minute))
		if s := l.hub.Silent(); len(s) != 0 {
			t.Errorf("silent are %v", s)
		}
		l.heard(SuspectAfter-BeatEvery, "n0")
		l.want()
		l.heard(4*BeatEvery, "n0")
		l.want("n1=down", "n1=suspect")
	})
}

// Once its term ended a hub proposes nothing: another judges these nodes now.
func TestADeposedHubJudgesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := beginTerm(t, slices.Repeat([]dv1.Node_Liveness{dv1.Node_READY}, 5)...)
		deposed := make(chan struct{})
		before := func() { // in the middle of its first verdict
			select {
			case <-deposed:
			default:
				close(deposed)
				go l.end()
				synctest.Wait()
			}
		}
		l.before.Store(&before)
		<-deposed
		time.Sleep(2 * SuspectAfter)
		synctest.Wait()
		if len(l.said) != perEntry { // of five nodes
			t.Errorf("after its first proposal it found that %v", l.said[min(perEntry, len(l.said)):])
		}
		if s := l.hub.Silent(); len(s) != 0 {
			t.Errorf("silent are %v", s)
		}
	})
}
