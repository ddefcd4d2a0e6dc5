package dispatch

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Verdicts on many nodes are one command, and what an entry does not take of it goes
// into the next at once.
func TestManyVerdictsAreFewProposals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes = 2*perEntry + 1
		l := beginTerm(t, slices.Repeat([]dv1.Node_Liveness{dv1.Node_READY}, nodes)...)
		defer l.end()
		proposals := 0
		count := func() { proposals++ }
		l.before.Store(&count)
		l.answer.Store(true)
		time.Sleep(SuspectAfter + 2*BeatEvery)
		var want []string
		for i := range nodes {
			want = append(want, fmt.Sprintf("n%d=suspect", i))
		}
		l.want(want...)
		if proposals != 3 {
			t.Errorf("%d verdicts took %d proposals", nodes, proposals)
		}
	})
}

// A removal that somebody began is gone on with, whatever becomes of its node.
func TestALeaderGoesOnWithRemovals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := beginTerm(t, dv1.Node_READY)
		defer l.end()
		var removals int
		l.onCommand = func(c *dv1.Command) {
			if c.GetRemoveNode().GetNodeId() == "n0" {
				removals++
			}
		}
		l.put(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n0", Availability: dv1.Node_REMOVING}}})
		time.Sleep(BeatEvery + BeatEvery/2)
		l.want()
		if removals != 1 {
			t.Errorf("its removal is proposed %d times", removals)
		}
		l.put(&dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: "n0"}})
		time.Sleep(2 * BeatEvery)
		synctest.Wait()
		if removals > 2 || len(l.hub.Silent()) > 0 {
			t.Errorf("once it is gone: %d removals, silent are %v", removals, l.hub.Silent())
		}
	})
}

// A node is silent in views until it is heard, and no moment longer; one that was
// removed meanwhile is not.
func TestANodeThatIsHeardIsNotSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := beginTerm(t, dv1.Node_READY, dv1.Node_READY, dv1.Node_READY)
		defer l.end()
		l.answer.Store(true)
		began := time.Now()
		l.heard(BeatEvery, "n0")
		time.Sleep(SuspectAfter + 2*BeatEvery)
		synctest.Wait()
		silent := l.hub.Silent()
		if ids := slices.Sorted(maps.Keys(silent)); !slices.Equal(ids, []string{"n0", "n1", "n2"}) || silent["n1"] < began.UnixNano() {
			t.Fatalf("silent are %v", silent)
		}
		before := l.hub.View()
		term := l.hub.term.Load()
		for _, id := range []string{"n0", "n1"} { // the one had a session in this term, the other not
			if err := term.enter(newSession(id, func(error) {}), 1); err != nil {
				t.Fatal(err)
			}
		}
		l.put(&dv1.Effect{Of: &dv1.Effect_DeleteNode{DeleteNode: "n2"}})
		if silent := l.hub.Silent(); len(silent) > 0 {
			t.Errorf("once they were heard, silent are %v", silent)
		}
		if _, is := before.SilentSince("n0"); !is {
			t.Error("a view of before has changed")
		}
		l.heard(2*SuspectAfter, "n0", "n1")
		if silent := l.hub.Silent(); len(silent) > 0 {
			t.Errorf("while they are heard, silent are %v", silent)
		}
	})
}

// A node whose session broke has a grace to come back; one whose session ended because
// it was silent has none.
func TestASessionThatBreaksLeavesAGrace(t *testing.T) {
	for _, c := range []struct {
		why   error
		after time.Duration
	}{{errDeposed, grace}, {errSilent, 0}} {
		synctest.Test(t, func(t *testing.T) {
			l := beginTerm(t, dv1.Node_READY)
			defer l.end()
			l.answer.Store(true)
			term := l.hub.term.Load()
			s := newSession("n0", func(error) {})
			if err := term.enter(s, 1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(SuspectAfter - BeatEvery/2) // nearly silent already
			term.leave(s, c.why)
			if s.of.session.Load() != nil {
				t.Error("its session is still there")
			}
			left := time.Now()
			for len(l.hub.Silent()) == 0 {
				time.Sleep(BeatEvery / 10)
				synctest.Wait()
			}
			if after := time.Since(left); after < c.after || after > c.after+2*BeatEvery {
				t.Errorf("%v: it is silent after %v", c.why, after)
			}
			if term.leave(s, c.why); s.of.session.Load() != nil {
				t.Error("leaving twice made a session")
			}
		})
	}
}

// However many nodes are silent, so many are probed at once, and each has its turn.
func TestNodesThatAreSilentTogetherAreProbedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 600 * time.Millisecond
		var now, most int
		var mu sync.Mutex
		asked := map[string]int{}
		p := newProbes(func(_ context.Context, id string) bool {
			mu.Lock()
			now++
			most = max(most, now)
			asked[id]++
			mu.Unlock()
			time.Sleep(takes)
			mu.Lock()
			defer mu.Unlock()
			now--
			return false
		})
		silent := map[string]time.Time{}
		for i := range 4 * maxProbes {
			silent[fmt.Sprint("n", i)] = time.Now()
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range 2 * takes / BeatEvery * 4 { // twice the time that it takes to probe all
			p.ask(ctx, time.Now(), silent)
			time.Sleep(BeatEvery)
		}
		cancel()
		p.all.Wait()
		if most != maxProbes {
			t.Errorf("%d were probed at once", most)
		}
		for id := range silent {
			if _, probed := p.result(id); !probed || asked[id] > 3 {
				t.Errorf("%s was probed %d times", id, asked[id])
			}
		}
	})
}

// A node that answers nobody is probed less and less: it may be gone for ever. One that
// answers, or that is silent again, is probed as often as ever.
func TestANodeThatAnswersNoProbeIsProbedLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers, asked := false, 0
		p := newProbes(func(context.Context, string) bool { asked++; return answers })
		silent := map[string]time.Time{"n": time.Now()}
		during := func(d time.Duration) (n int) {
			before := asked
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(BeatEvery) {
				p.ask(t.Context(), time.Now(), silent)
				synctest.Wait()
			}
			return asked - before
		}
		if n := during(time.Minute); n != 6 { // after 0, 1, 3, 7, 15 and 31 s
			t.Errorf("it was probed %d times in its first minute", n)
		}
		if n := during(10 * time.Minute); n < 19 || n > 21 {
			t.Errorf("it was probed %d times in ten minutes more", n)
		}
		answers = true
		during(probeMost)
		if n := during(time.Minute); n != 60 {
			t.Errorf("it was probed %d times in the minute after it answered", n)
		}
		answers = false
		during(time.Minute)
		heard := silent
		silent = nil
		during(BeatEvery)
		silent = heard
		if n := during(time.Minute); n != 6 {
			t.Errorf("it was probed %d times in the minute after it was silent again", n)
		}
		p.all.Wait()
	})
}
