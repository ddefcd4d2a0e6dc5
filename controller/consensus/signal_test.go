package consensus

import (
	"context"
	"errors"
	"fmt"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// An entry wakes those who wait for it or for an earlier one, in whichever order they
// came, and nobody who gave up.
func TestAnIndexWakesWhomItConcerns(t *testing.T) {
	var w waiters
	all := map[uint64]*waiter{}
	for i := range uint64(100) {
		index := i*37%100 + 1
		all[index] = w.add(index)
	}
	for index := uint64(10); index <= 100; index += 10 {
		w.remove(all[index])
		w.remove(all[index]) // once it waits no more that says nothing
	}
	for _, now := range []uint64{0, 1, 42, 42, 99, 1000} {
		w.applied(now)
		for index, one := range all {
			if want := index <= now && index%10 != 0; closed(one.done) != want {
				t.Errorf("at %d, who waits for %d is woken: %v", now, index, !want)
			}
		}
	}
	if len(w.queue) > 0 {
		t.Errorf("%d wait on", len(w.queue))
	}
	w.remove(all[1])
}

func TestASignalIsHeardByWhoWaited(t *testing.T) {
	var s signal
	s.notify() // of whom nobody waits for
	first, again := s.wait(), s.wait()
	if closed(first) || first != again {
		t.Error("what was before is heard, or each has a channel")
	}
	s.notify()
	if next := s.wait(); !closed(first) || closed(next) {
		t.Error("it isn't heard, or heard twice")
	}
	if n := testing.AllocsPerRun(100, func() { (&signal{}).notify() }); n > 1 {
		t.Errorf("a signal that nobody waits for makes %v allocations", n)
	}
}

// Whoever waits for another leader, or for an entry far off, is not woken by commits:
// a thousand sessions of a follower, or waits of clients, cost a commit nothing.
func TestACommitWakesNobodyWhoWaitsForSomethingElse(t *testing.T) {
	m := single(t, t.TempDir())
	until(t, "it leads", m.Node, m.Ready)
	leadership, next := m.LeadershipChanged(), m.Changed()
	far := m.fsm.waiters.add(1 << 40)
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error)
	go func() { _, err := m.WaitIndex(ctx, 1<<41); gaveUp <- err }()
	var last uint64
	for _, c := range []*dv1.Command{initCluster, registerNode, commitImage} {
		last = m.do(t, c).Index
	}
	if snap, err := m.WaitIndex(t.Context(), last); err != nil || snap.Index() < last {
		t.Errorf("after entry %d the state is at %d: %v", last, snap.Index(), err)
	}
	if closed(leadership) || closed(far.done) {
		t.Error("a commit woke who waits for a leader, or for another entry")
	}
	if !closed(next) {
		t.Error("a commit did not wake who waits for one")
	}
	cancel()
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up has %v", err)
	}
	m.fsm.waiters.remove(far)
	if n := len(m.fsm.waiters.queue); n != 0 {
		t.Errorf("%d wait on", n)
	}
}

func BenchmarkApplied(b *testing.B) {
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint("waiters=", n), func(b *testing.B) {
			var w waiters
			for i := range n {
				w.add(1<<40 + uint64(i))
			}
			index := uint64(0)
			for b.Loop() {
				index++
				one := w.add(index)
				w.applied(index)
				<-one.done
			}
		})
	}
}
