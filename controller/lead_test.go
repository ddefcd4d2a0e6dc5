package controller

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// elections is a member whose leadership a test gives and takes.
type elections struct {
	mu      sync.Mutex
	ready   bool
	term    uint64
	changed chan struct{}
}

func (e *elections) Ready() bool  { e.mu.Lock(); defer e.mu.Unlock(); return e.ready }
func (e *elections) Term() uint64 { e.mu.Lock(); defer e.mu.Unlock(); return e.term }
func (e *elections) LeadershipChanged() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changed
}

func (e *elections) set(ready bool, term uint64) {
	e.mu.Lock()
	e.ready, e.term = ready, term
	close(e.changed)
	e.changed = make(chan struct{})
	e.mu.Unlock()
	synctest.Wait()
}

// All that only a leader does ends with its term, also with one whose end was not
// seen, before any of it begins for the next.
func TestLeadersPartsEndWithTheirTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &elections{changed: make(chan struct{})}
		var mu sync.Mutex
		var said []string
		note := func(s string) { mu.Lock(); defer mu.Unlock(); said = append(said, s) }
		want := func(w ...string) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(said, w) {
				t.Errorf("%v, want %v", said, w)
			}
			said = nil
		}
		slow := make(chan struct{}) // what the slow part waits for at its end
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- lead(ctx, e, func(ctx context.Context) error {
				note("begins")
				<-ctx.Done()
				note("ends")
				return ctx.Err()
			}, func(ctx context.Context) error {
				<-ctx.Done()
				<-slow
				return errors.New("cut short by the end of the term")
			})
		}()
		synctest.Wait()
		want()
		e.set(true, 3)
		want("begins")
		e.set(true, 3) // any commit
		want()
		e.set(false, 3)
		want("ends")
		e.set(true, 5)
		want()
		slow <- struct{}{}
		synctest.Wait()
		want("begins")
		e.set(true, 7)
		want("ends")
		slow <- struct{}{}
		synctest.Wait()
		want("begins")
		cancel()
		slow <- struct{}{}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestALeadersPartThatFailsEndsItsController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &elections{ready: true, term: 1, changed: make(chan struct{})}
		broken := errors.New("broken")
		others := false
		err := lead(t.Context(), e, func(context.Context) error { return broken }, func(ctx context.Context) error {
			<-ctx.Done()
			others = true
			return nil
		})
		if !errors.Is(err, broken) || !others {
			t.Errorf("%v, the other part has ended: %v", err, others)
		}
	})
}
