package pki

import (
	"crypto/tls"
	"net"
	"sync"
)

// Conns tracks open connections with authenticated peers, so that those of a revoked
// identity can be cut. Verify decides who may stay. It is called again when a connection
// enters, since the identity may have been revoked after the handshake. Safe for
// concurrent use.
type Conns struct {
	Verify Verify

	mu sync.Mutex // guards in
	in map[*entered]struct{}
}

type entered struct {
	conn *tls.Conn
	who  Principal
}

// Enter tracks c until leave is called; it closes c at once if Verify refuses its peer.
func (c *Conns) Enter(t *tls.Conn) (leave func(), err error) {
	certs := t.ConnectionState().PeerCertificates
	err = ErrNoPrincipal
	e := &entered{conn: t}
	if len(certs) > 0 {
		e.who, err = FromCert(certs[0])
	}
	if err == nil {
		c.mu.Lock()
		if c.in == nil {
			c.in = map[*entered]struct{}{}
		}
		c.in[e] = struct{}{}
		c.mu.Unlock()
		err = c.Verify(e.who)
	}
	leave = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.in, e)
	}
	if err != nil {
		leave()
		_ = t.NetConn().Close()
		return nil, err
	}
	return leave, nil
}

// Wrap is Enter for connections that are closed elsewhere: closing the result leaves.
func (c *Conns) Wrap(t *tls.Conn) (net.Conn, error) {
	leave, err := c.Enter(t)
	if err != nil {
		return nil, err
	}
	return &knownConn{t, leave}, nil
}

type knownConn struct {
	*tls.Conn
	leave func()
}

func (k *knownConn) Close() error {
	k.leave()
	return k.Conn.Close()
}

// Cut closes every connection that Verify now refuses. It never blocks: TLS's
// close_notify would wait for a peer that doesn't read.
func (c *Conns) Cut() {
	c.mu.Lock()
	var out []*tls.Conn
	for e := range c.in {
		if c.Verify(e.who) != nil {
			out = append(out, e.conn)
		}
	}
	c.mu.Unlock()
	for _, t := range out {
		_ = t.NetConn().Close()
	}
}

// Listen returns a listener whose connections are tracked. l must accept *tls.Conn after
// the handshake, as package mux does.
func (c *Conns) Listen(l net.Listener) net.Listener { return &knownListener{l, c} }

type knownListener struct {
	net.Listener
	to *Conns
}

func (l *knownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		t, ok := conn.(*tls.Conn)
		if !ok {
			_ = conn.Close()
			continue
		}
		if k, err := l.to.Wrap(t); err == nil {
			return k, nil
		}
	}
}
