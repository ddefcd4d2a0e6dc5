package runs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// parts is a log whose runs take some entries to fill.
type parts struct {
	mu     sync.Mutex
	txn    *state.Txn
	left   map[string]int
	asked  []string
	fail   int // proposals that fail first
	filler *Filler
}

func (l *parts) Snapshot() *state.Snapshot {
	l.mu.Lock()
	defer l.mu.Unlock()
	return state.NewTxn(l.txn.View()).View()
}

func (l *parts) Propose(_ context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	l.mu.Lock()
	id := string(c.GetFillRun().GetRunId())
	if c.Principal != "me" {
		id = "a stranger's"
	}
	l.asked = append(l.asked, id)
	if l.fail > 0 {
		l.fail--
		l.mu.Unlock()
		if l.fail%2 == 0 {
			return nil, errors.New("no leader")
		}
		return &dv1.CommandResult{Error: &dv1.Error{Message: "not now"}}, nil
	}
	l.left[id]--
	effects := l.put(id)
	l.mu.Unlock()
	l.filler.Committed(effects)
	return &dv1.CommandResult{}, nil
}

func (l *parts) put(id string) []*dv1.Effect {
	e := &dv1.Effect{Of: &dv1.Effect_Run{Run: &dv1.Run{Id: []byte(id), Filling: l.left[id] > 0}}}
	if err := l.txn.Apply(e); err != nil {
		panic(err)
	}
	return []*dv1.Effect{e}
}

func newParts(left map[string]int) *parts {
	l := &parts{txn: state.NewTxn(state.NewStore().Snapshot()), left: left}
	l.filler = New(l, "me", slog.New(slog.DiscardHandler))
	return l
}

// leads runs a term until f returns.
func (l *parts) leads(t *testing.T, f func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var term sync.WaitGroup
	term.Go(func() {
		if err := l.filler.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	f()
	cancel()
	term.Wait()
}

func (l *parts) want(t *testing.T, asked ...string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Equal(l.asked, asked) {
		t.Errorf("asked for were parts of %v, want %v", l.asked, asked)
	}
}

// What a former leader left is gone on with, all runs alike, and what comes later too.
func TestRunsAreFilledInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newParts(map[string]int{"a": 3, "b": 2, "c": 0})
		for _, id := range []string{"a", "b", "c"} {
			l.put(id)
		}
		l.leads(t, func() {
			synctest.Wait()
			l.want(t, "a", "b", "a", "b", "a")
			l.mu.Lock()
			l.left["d"] = 1
			effects := l.put("d")
			l.mu.Unlock()
			l.filler.Committed([]*dv1.Effect{{Of: &dv1.Effect_DeleteTask{DeleteTask: []byte("x")}}})
			l.filler.Committed(effects)
			synctest.Wait()
			l.want(t, "a", "b", "a", "b", "a", "d")
		})
	})
}

// What is refused, or finds no leader, is tried again after a while, not at once.
func TestAPartThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newParts(map[string]int{"a": 1})
		l.put("a")
		l.fail = 2
		l.leads(t, func() {
			for n := range 3 {
				synctest.Wait()
				l.want(t, slices.Repeat([]string{"a"}, n+1)...)
				time.Sleep(retryAfter)
			}
			synctest.Wait()
			l.want(t, "a", "a", "a")
		})
	})
}

func TestATermEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newParts(map[string]int{})
		start := time.Now()
		l.leads(t, synctest.Wait)
		if d := time.Since(start); d != 0 {
			t.Error(fmt.Sprint("it took ", d))
		}
	})
}
