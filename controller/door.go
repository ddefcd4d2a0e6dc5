package controller

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/limit"
	"github.com/drover/drover/pkg/pki"
)

// doors are connections that agents pass through from the sockets of hosts
// without a controller. They act with the role that (node, uid) has in raft, which is
// asked when the log is ready: the node's own certificate gives none.
type doors struct {
	net.Listener // of agents
	c            *controller
	said         *limit.Throttle // of refusals that are logged
	ready        chan net.Conn
	done         chan struct{}
	once         sync.Once
}

type doorConn struct {
	net.Conn
	r    *bufio.Reader
	node pki.Principal
	who  pki.Principal // a user of the node
}

func (d *doorConn) Read(p []byte) (int, error) { return d.r.Read(p) }

// NetConn is what lies under it, for dial.Watch.
func (d *doorConn) NetConn() net.Conn { return d.Conn }

// CloseWrite passes a half-close on.
func (d *doorConn) CloseWrite() error {
	if t, ok := d.Conn.(*tls.Conn); ok {
		return t.CloseWrite()
	}
	return errors.New("no half-close")
}

const doorWithin = 5 * time.Second

func newDoors(c *controller, l net.Listener) *doors {
	d := &doors{Listener: l, c: c, said: limit.NewThrottle(time.Minute), ready: make(chan net.Conn), done: make(chan struct{})}
	go d.run()
	return d
}

func (d *doors) run() {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			_ = d.Close()
			return
		}
		go d.greet(conn)
	}
}

// greet reads for whom the agent opens the door.
func (d *doors) greet(conn net.Conn) {
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
	_ = conn.SetReadDeadline(time.Now().Add(doorWithin))
	r := bufio.NewReaderSize(conn, 16<<10)
	line, err := r.ReadSlice('\n')
	var hello wire.SocketHello
	if err == nil && json.Unmarshal(line, &hello) != nil {
		err = errors.New("its first line does not say for whom it is")
	}
	if err != nil {
		d.refused(conn, p, err)
		cut(conn)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	select {
	case d.ready <- &doorConn{Conn: conn, r: r, node: p, who: pki.Local(hello.UID).At(p)}:
	case <-d.done:
		cut(conn)
	}
}

// refused logs that a door was not opened. Nothing in the line is the caller's own, and
// each host gets one in a while.
func (d *doors) refused(conn net.Conn, node pki.Principal, err error) {
	from := limit.Source(conn.RemoteAddr())
	if held, ok := d.said.Allow(from); ok {
		d.c.Logger.Warn("refused a door", "peer", from, "node", node.ID, "err", err, "refused before", held)
	}
}

// Accept implements net.Listener.
func (d *doors) Accept() (net.Conn, error) {
	select {
	case c := <-d.ready:
		return c, nil
	case <-d.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (d *doors) Close() error {
	d.once.Do(func() { close(d.done) })
	return d.Listener.Close()
}

type doorKey struct{}

// withDoor puts who came through a door into a connection's context.
func (c *controller) withDoor(ctx context.Context, conn net.Conn) context.Context {
	d, ok := conn.(*doorConn)
	if !ok {
		return ctx
	}
	return context.WithValue(withConn(ctx, conn), doorKey{}, d)
}
