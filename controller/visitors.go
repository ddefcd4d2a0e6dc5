package controller

import (
	"crypto/tls"
	"net"
	"sync"

	"github.com/drover/drover/pkg/pki"
)

// visitors are the connections on which something goes on. net/http forgets
// those that a handler took over, and handlers that outlive their connection:
// here both can be ended and waited for.
type visitors struct {
	mu     sync.Mutex // guards closed and in
	closed bool
	in     map[*visitor]struct{}
	all    sync.WaitGroup
}

type visitor struct {
	conn net.Conn // nil where another visitor has it
	uri  string
}

func newVisitors() *visitors { return &visitors{in: map[*visitor]struct{}{}} }

// enter refuses once close was called. leave is to be called once.
func (v *visitors) enter(c net.Conn, uri string) (leave func(), ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, false
	}
	who := &visitor{c, uri}
	v.in[who] = struct{}{}
	v.all.Add(1)
	return func() {
		v.mu.Lock()
		delete(v.in, who)
		v.mu.Unlock()
		v.all.Done()
	}, true
}

// expel ends an identity's connections, and a host's also those of its users. It never
// blocks.
func (v *visitors) expel(uri string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for who := range v.in {
		if host, _, _ := pki.HostOf(who.uri); host == uri || who.uri == uri {
			cut(who.conn)
		}
	}
}

// close lets nobody in any more and ends every connection.
func (v *visitors) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
	for who := range v.in {
		cut(who.conn)
	}
}

// wait returns when everybody left, after close.
func (v *visitors) wait() { v.all.Wait() }

// cut closes without TLS's good-bye, which waits for a peer that doesn't read.
func cut(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if c != nil {
		_ = c.Close()
	}
}
