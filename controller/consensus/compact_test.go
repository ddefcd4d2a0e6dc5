package consensus

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// The log is cut by what its entries take, long before raft's own count of them.
func TestTheLogIsCutByBytes(t *testing.T) {
	dir := t.TempDir()
	const compact = 1 << 20
	m := single(t, dir, func(o *Options) { o.compact, o.segment = compact, 64<<10 })
	m.prepare(t)
	first := func() uint64 {
		i, err := m.log.FirstIndex()
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	n := 0
	for range 4 {
		from := first()
		for size := 0; size < compact+compact/4; n++ {
			c := createRun(fmt.Sprint("t", n))
			c.GetCreate().Spec.Body = fmt.Appendf(nil, `{"Image":"alpine","Hostname":"%d%s"}`, n, strings.Repeat("x", 20<<10))
			m.do(t, c)
			size += 20 << 10
		}
		until(t, "a log that begins later", m.Node, func() bool { return first() > from })
	}
	last, err := m.log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for i := first(); i <= last; i++ {
		var l raft.Log
		if err := m.log.GetLog(i, &l); err != nil {
			t.Fatal(err)
		}
		size += len(l.Data)
	}
	if size > 2*compact {
		t.Errorf("the log holds %d bytes in %d entries", size, last-first()+1)
	}
	if last-first() < trailingLeast {
		t.Errorf("only %d entries stay for who is a little behind", last-first())
	}
	want := m.Snapshot().Hash()
	m.kill(t)
	again := single(t, dir)
	until(t, "leading", again.Node, again.Ready)
	if again.Snapshot().Hash() != want {
		t.Error("a restart found another state")
	}
}

func TestWhatStaysBehindASnapshot(t *testing.T) {
	var s logSize
	for range 2 * trailing {
		s.add(1)
	}
	if since, n := s.now(1000); since != 2*trailing || n != trailing {
		t.Errorf("of small entries %d stay, of %d", n, since)
	}
	for range 100 {
		s.add(100)
	}
	if _, n := s.now(5000); n != 50 {
		t.Errorf("%d entries of 100 bytes are 5000", n)
	}
	if _, n := s.now(10); n != trailingLeast {
		t.Errorf("at least %d stay", n)
	}
	s.cut()
	if since, _ := s.now(0); since != 0 {
		t.Errorf("%d bytes since the snapshot", since)
	}
}
