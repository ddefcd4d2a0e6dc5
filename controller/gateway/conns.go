package gateway

import (
	"crypto/tls"
	"net"
	"sync"

	"github.com/drover/drover/pkg/pki"
)

// conns tracks connections in use. net/http loses track of hijacked connections, and
// of handlers that outlive their connection: here both can be closed and waited for.
type conns struct {
	mu     sync.Mutex // guards closed and in
	closed bool
	in     map[*open]struct{}
	all    sync.WaitGroup
}

type open struct {
	conn net.Conn // nil if someone else owns it
	uri  string
}

func newConns() *conns { return &conns{in: map[*open]struct{}{}} }

// enter fails after close was called. leave must be called once.
func (v *conns) enter(c net.Conn, uri string) (leave func(), ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, false
	}
	who := &open{c, uri}
	v.in[who] = struct{}{}
	v.all.Add(1)
	return func() {
		v.mu.Lock()
		delete(v.in, who)
		v.mu.Unlock()
		v.all.Done()
	}, true
}

// expel closes an identity's connections; for a host, also those of its users. It
// never blocks.
func (v *conns) expel(uri string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for who := range v.in {
		if host, _, _ := pki.HostOf(who.uri); host == uri || who.uri == uri {
			cut(who.conn)
		}
	}
}

// close refuses further connections and closes all current ones.
func (v *conns) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for who := range v.in {
		cut(who.conn)
	}
}

// wait blocks until all have left, after close.
func (v *conns) wait() { v.all.Wait() }

// cut closes without TLS's close_notify, which would wait for a peer that doesn't
// read.
func cut(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if c != nil {
		_ = c.Close()
	}
}
