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

	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/relaysock"
)

// doors are connections that agents pass through from the sockets of hosts
// without a controller. They act with the role that (node, uid) has in raft, which is
// asked when the log is ready: the node's own certificate gives none.
type doors struct {
	net.Listener // of agents
	c            *controller
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
	d := &doors{Listener: l, c: c, ready: make(chan net.Conn), done: make(chan struct{})}
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
	var hello relaysock.Hello
	if err == nil {
		err = json.Unmarshal(line, &hello)
	}
	if err != nil {
		d.c.Logger.Warn("refused a door", "peer", conn.RemoteAddr().String(), "err", err)
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
