package bulk

import (
	"net"
	"sync"
)

// Input is stdin that survives broken connections: it continues over the next one. What
// a connection accepted and did not deliver is lost. It is safe for concurrent use,
// except that Write must not be called concurrently with itself.
type Input struct {
	mu      sync.Mutex // guards the fields below
	cur     *Conn
	half    bool
	closed  bool
	changed chan struct{} // closed when one of them changes
}

// NewInput writes to c until Replace is called.
func NewInput(c *Conn) *Input { return &Input{cur: c, changed: make(chan struct{})} }

func (i *Input) look() (cur *Conn, changed chan struct{}, closed bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.cur, i.changed, i.closed
}

func (i *Input) change(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
	close(i.changed)
	i.changed = make(chan struct{})
}

// Write blocks until there is another connection when one breaks.
func (i *Input) Write(p []byte) (n int, err error) {
	for {
		cur, changed, closed := i.look()
		if closed {
			return n, net.ErrClosed
		}
		k, err := cur.Write(p[n:])
		if n += k; err == nil {
			return n, nil
		}
		<-changed
	}
}

// CloseWrite ends stdin, on this connection and on those that replace it.
func (i *Input) CloseWrite() error {
	var cur *Conn
	i.change(func() { i.half, cur = true, i.cur })
	return cur.CloseWrite()
}

// Replace continues over c, and reports whether stdin had ended before, in which case no
// typed input can be missing.
func (i *Input) Replace(c *Conn) (ended bool) {
	closed := false
	i.change(func() { i.cur, ended, closed = c, i.half, i.closed })
	if ended {
		_ = c.CloseWrite() // if this one breaks too, it is replaced as well
	}
	if closed {
		_ = c.Close()
	}
	return ended
}

// Closed reports whether Close was called.
func (i *Input) Closed() bool { _, _, closed := i.look(); return closed }

// Close closes the connection, and each one that replaces it.
func (i *Input) Close() error {
	var cur *Conn
	i.change(func() { i.closed, cur = true, i.cur })
	return cur.Close()
}
