package gateway

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/pkg/pki"
)

// raftLayer is raft's network: the port's connections that speak wire.ALPNRaft.
type raftLayer struct {
	net.Listener
	addr   advertised
	config *tls.Config
	verify pki.Verify // refuses revoked identities
	conns  *conns
}

// Accept returns connections that Close will close. Identities revoked since the
// handshake are refused; after enter, a revocation closes the connection.
func (l *raftLayer) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		t, ok := conn.(*tls.Conn)
		if !ok {
			cut(conn)
			continue
		}
		p, err := pki.FromCert(t.ConnectionState().PeerCertificates[0])
		if err != nil {
			cut(conn)
			continue
		}
		leave, ok := l.conns.enter(conn, p.URI)
		if !ok {
			cut(conn)
			return nil, net.ErrClosed
		}
		if l.verify(p) == nil {
			return &raftConn{Conn: conn, leave: sync.OnceFunc(leave)}, nil
		}
		leave()
		cut(conn)
	}
}

type raftConn struct {
	net.Conn
	leave func()
}

func (c *raftConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// Dial implements raft.StreamLayer.
func (l *raftLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	//nolint:noctx // raft has a timeout for it, and no context
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", string(addr), l.config)
	if err != nil {
		return nil, fmt.Errorf("dialing controller %s: %w", addr, err)
	}
	return c, nil
}

// Close implements raft.StreamLayer.
func (l *raftLayer) Close() error {
	err := l.Listener.Close()
	l.conns.close()
	return err
}

// Addr returns the address that other controllers dial.
func (l *raftLayer) Addr() net.Addr { return l.addr }

type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }
