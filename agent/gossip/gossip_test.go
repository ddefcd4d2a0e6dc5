package gossip

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// member is a node on an address of loopback's net, all on one port.
type member struct {
	*Gossip
	mu   sync.Mutex // guards have
	have []string
}

func (m *member) holds(digests ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.have = digests
}

func begin(t *testing.T, i int, port string, keys ...[]byte) *member {
	t.Helper()
	m := &member{}
	host := fmt.Sprintf("127.0.0.%d", 10+i)
	g, err := Start(Options{Node: fmt.Sprint("n", i), Bind: net.JoinHostPort(host, port), Advertise: host, Addr: net.JoinHostPort(host, "7444"), Keys: keys,
		Have: func() []string { m.mu.Lock(); defer m.mu.Unlock(); return m.have }})
	if err != nil {
		t.Fatal(err)
	}
	m.Gossip = g
	t.Cleanup(g.Close)
	return m
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.10:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestNodesHearWhatOthersHold(t *testing.T) {
	key, next, port := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32), freePort(t)
	a, b := begin(t, 1, port, key), begin(t, 2, port, key)
	a.holds("sha256:one")
	stranger := begin(t, 3, port, bytes.Repeat([]byte{9}, 32))
	stranger.holds("sha256:poison")
	if err := b.Join([]string{"127.0.0.11:7444"}); err != nil {
		t.Fatal(err)
	}
	until(t, "b knows that a holds one", func() bool { return slices.Equal(b.Holders("sha256:one"), []string{"127.0.0.11:7444"}) })
	a.holds("sha256:one", "sha256:two")
	a.Tell()
	until(t, "b hears of two", func() bool { return len(b.Holders("sha256:two")) == 1 })
	if err := stranger.Join([]string{"127.0.0.11:7444"}); err == nil {
		t.Error("who has another key was let in")
	}
	if h := a.Holders("sha256:poison"); len(h) > 0 {
		t.Errorf("a believes a stranger: %v", h)
	}
	// Keys change one node after the other: both are understood meanwhile.
	for _, m := range []*member{a, b} {
		if err := m.Keys([][]byte{next, key}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Keys([][]byte{next}); err != nil {
		t.Fatal(err)
	}
	a.holds("sha256:three")
	a.Tell()
	until(t, "b hears under the new key", func() bool { return len(b.Holders("sha256:three")) == 1 })
	b.take([]byte("no json"))
	b.take([]byte(`{"Node":"n1","Digests":["sha256:old"],"At":1}`))
	if len(b.Holders("sha256:old")) > 0 {
		t.Error("an old word replaced a newer one")
	}
	a.Close()
	until(t, "who left holds nothing", func() bool { return len(b.Holders("sha256:three")) == 0 })
}
