package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/limit"
	"github.com/drover/drover/pkg/pki"
)

// socketProxy accepts connections that agents proxy from the sockets of hosts
// without a controller. They act with the role that (node, uid) has in raft, looked
// up once the log is ready: the node's own certificate gives none.
type socketProxy struct {
	net.Listener // accepts agents' connections
	refused      *limit.Throttle
	log          *slog.Logger
	greeted      chan net.Conn
	done         chan struct{}
	once         sync.Once
}

// proxiedConn is a connection whose first line has been read.
type proxiedConn struct {
	net.Conn
	r    *bufio.Reader
	node pki.Principal
	who  pki.Principal // a user of the node
}

func (p *proxiedConn) Read(b []byte) (int, error) { return p.r.Read(b) }

// NetConn returns the underlying connection, for dial.Watch.
func (p *proxiedConn) NetConn() net.Conn { return p.Conn }

// CloseWrite forwards a half-close.
func (p *proxiedConn) CloseWrite() error {
	if t, ok := p.Conn.(*tls.Conn); ok {
		return t.CloseWrite()
	}
	return errors.New("no half-close")
}

const helloWithin = 5 * time.Second

func newSocketProxy(l net.Listener, refused *limit.Throttle, log *slog.Logger) *socketProxy {
	return &socketProxy{Listener: l, refused: refused, log: log, greeted: make(chan net.Conn), done: make(chan struct{})}
}

// run reads the first lines of connections until the listener is closed or ctx is
// done, and waits for those being read.
func (s *socketProxy) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := s.Listener.Accept()
		if err != nil { // closed: by stop, or by the mux, whose failure is reported there
			return s.Close()
		}
		all.Go(func() { s.greet(ctx, conn) })
	}
}

// greet reads which of its users the agent proxies the connection for.
func (s *socketProxy) greet(ctx context.Context, conn net.Conn) {
	t, ok := conn.(*tls.Conn)
	if !ok || len(t.ConnectionState().PeerCertificates) == 0 {
		cut(conn)
		return
	}
	p, err := pki.FromCert(t.ConnectionState().PeerCertificates[0])
	if err != nil {
		cut(conn)
		return
	}
	stop := context.AfterFunc(ctx, func() { cut(conn) }) // nobody waits for the line any longer
	_ = conn.SetReadDeadline(time.Now().Add(helloWithin))
	r := bufio.NewReaderSize(conn, 16<<10)
	line, err := r.ReadSlice('\n')
	stop()
	var hello wire.SocketHello
	if err == nil && json.Unmarshal(line, &hello) != nil {
		err = errors.New("the first line does not name a user")
	}
	if err != nil {
		s.logRefusal(conn, p, err)
		cut(conn)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	select {
	case s.greeted <- &proxiedConn{Conn: conn, r: r, node: p, who: pki.Local(hello.UID).At(p)}:
	case <-s.done:
		cut(conn)
	}
}

// logRefusal logs at most one line per source address and minute, without anything
// that the caller chose.
func (s *socketProxy) logRefusal(conn net.Conn, node pki.Principal, err error) {
	from := limit.Source(conn.RemoteAddr())
	if before, ok := s.refused.Allow(from); ok {
		s.log.Warn("refused a proxied socket", "peer", from, "node", node.ID, "err", err, "refused before", before)
	}
}

// Accept implements net.Listener.
func (s *socketProxy) Accept() (net.Conn, error) {
	select {
	case c := <-s.greeted:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (s *socketProxy) Close() error {
	s.once.Do(func() { close(s.done) })
	return s.Listener.Close()
}

type proxiedKey struct{}

// withProxied adds the user of a proxied connection to its context.
func withProxied(ctx context.Context, conn net.Conn) context.Context {
	p, ok := conn.(*proxiedConn)
	if !ok {
		return ctx
	}
	return context.WithValue(withConn(ctx, conn), proxiedKey{}, p)
}
