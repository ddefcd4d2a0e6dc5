package consensus

import (
	"container/heap"
	"sync"
)

// signal lets any number of goroutines wait for the next occurrence of something. It
// costs nothing while nobody waits.
type signal struct {
	mu   sync.Mutex // guards next
	next chan struct{}
}

// wait returns a channel that is closed by the next notify.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = make(chan struct{})
	}
	return s.next
}

func (s *signal) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		close(s.next)
		s.next = nil
	}
}

// waiters wait until an index is applied. They are kept by index, so that an entry
// wakes those it concerns, however many others there are.
type waiters struct {
	mu    sync.Mutex // guards queue, and the positions in it
	queue waitQueue
}

// waiter waits for one index. done is closed once it is applied.
type waiter struct {
	index uint64
	done  chan struct{}
	at    int // index in the queue, -1 if in none
}

func (w *waiters) add(index uint64) *waiter {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := &waiter{index: index, done: make(chan struct{})}
	heap.Push(&w.queue, e)
	return e
}

// remove drops a waiter that gave up, if it still waits.
func (w *waiters) remove(e *waiter) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e.at >= 0 {
		heap.Remove(&w.queue, e.at)
	}
}

// applied wakes those whose index is reached.
func (w *waiters) applied(index uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.queue) > 0 && w.queue[0].index <= index {
		e, _ := heap.Pop(&w.queue).(*waiter)
		close(e.done)
	}
}

// waitQueue is a heap by index.
type waitQueue []*waiter

func (q waitQueue) Len() int           { return len(q) }
func (q waitQueue) Less(i, j int) bool { return q[i].index < q[j].index }
func (q waitQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i]; q[i].at, q[j].at = i, j }

// Push implements heap.Interface.
func (q *waitQueue) Push(x any) {
	e, _ := x.(*waiter)
	e.at = len(*q)
	*q = append(*q, e)
}

// Pop implements heap.Interface.
func (q *waitQueue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last], e.at = nil, -1
	*q = (*q)[:last]
	return e
}
