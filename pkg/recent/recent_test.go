package recent

import (
	"fmt"
	"sync"
	"testing"
)

func TestWhatIsUsedStaysAndWhatIsNotGoes(t *testing.T) {
	m := &Map[string, int]{Max: 4}
	m.Put("used", 1, 1)
	m.Put("once", 2, 1)
	for n := range 20 {
		m.Put(fmt.Sprint(n), n, 1)
		if v, ok := m.Get("used"); !ok || v != 1 {
			t.Fatalf("after %d others, what is asked for all the time is %d, %t", n+1, v, ok)
		}
	}
	if _, ok := m.Get("once"); ok {
		t.Error("what nobody asked for is still there after five times the size")
	}
	if held := len(m.young) + len(m.old); held > 8 {
		t.Errorf("it holds %d, more than two generations of 4", held)
	}
}

func TestSizes(t *testing.T) {
	for _, c := range []struct {
		what  string
		sizes []int // of values put one after the other, under keys of their own
		held  []bool
	}{
		{"all fit", []int{25, 25, 25, 25}, []bool{true, true, true, true}},
		{"one is too large for the others", []int{25, 26, 25}, []bool{true, false, true}},
		{"two generations", []int{25, 25, 25, 25, 25, 25, 25, 25}, []bool{true, true, true, true, true, true, true, true}},
		{"a third", []int{25, 25, 25, 25, 25, 25, 25, 25, 25}, []bool{false, false, false, false, true, true, true, true, true}},
	} {
		m := &Map[int, int]{Max: 100}
		for k, size := range c.sizes {
			m.Put(k, k, size)
		}
		for k, want := range c.held {
			m.mu.Lock() // Get would change which are old
			_, young := m.young[k]
			_, old := m.old[k]
			m.mu.Unlock()
			if (young || old) != want {
				t.Errorf("%s: value %d is held: %t, want %t", c.what, k, young || old, want)
			}
		}
	}
}

func TestAValueIsReplacedAndCountedOnce(t *testing.T) {
	m := &Map[string, int]{Max: 8}
	m.Put("other", 1, 2)
	for n := range 100 {
		m.Put("a", n, 2)
		if v, ok := m.Get("a"); !ok || v != n {
			t.Fatalf("got %d, %t after %d was put", v, ok, n)
		}
	}
	if m.size > 4 {
		t.Errorf("two values of size 2 are counted as %d", m.size)
	}
}

func TestManyAtOnce(t *testing.T) {
	m := &Map[int, int]{Max: 64}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for n := range 2000 {
				k := n % 300
				if v, ok := m.Get(k); ok && v != k {
					t.Errorf("key %d has %d", k, v)
				}
				m.Put(k, k, 1)
			}
		})
	}
	wg.Wait()
}

func TestTheZeroMapKeepsNothing(t *testing.T) {
	var m Map[string, int]
	m.Put("a", 1, 1)
	if _, ok := m.Get("a"); ok {
		t.Error("it kept something")
	}
}
