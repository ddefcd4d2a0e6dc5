// Package recent keeps what was made last of what it can be made of again.
package recent

import "sync"

// Map holds the values that were used last, up to twice a size. It has two
// generations: when the young one is full it becomes the old one, and what nobody asks
// for until that happens again is dropped. Safe for concurrent use; values are shared
// by all who get them. The zero Map keeps nothing.
type Map[K comparable, V any] struct {
	Max int // size of a generation, in the unit that Put uses; it is not changed once used

	mu         sync.Mutex // guards the fields below
	young, old map[K]entry[V]
	size       int // of young
}

type entry[V any] struct {
	value V
	size  int
}

// Get returns the value of a key, and whether there is one.
func (m *Map[K, V]) Get(k K) (v V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.young[k]; ok {
		return e.value, true
	}
	e, ok := m.old[k]
	if ok {
		m.put(k, e)
	}
	return e.value, ok
}

// Put keeps a value of a size, in the place of what the key had. One that is larger
// than a quarter of a generation is not kept: a few such would push all others out.
func (m *Map[K, V]) Put(k K, v V, size int) {
	if size > m.Max/4 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(k, entry[V]{v, size})
}

// put is called with mu held.
func (m *Map[K, V]) put(k K, e entry[V]) {
	if m.young == nil || m.size+e.size > m.Max {
		m.old, m.young, m.size = m.young, map[K]entry[V]{}, 0
	}
	m.size += e.size - m.young[k].size
	m.young[k] = e
}
