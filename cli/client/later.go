package client

import (
	"context"
	"net"
	"time"

	"github.com/moby/moby/client"
)

// made is a container that this command created.
type made struct {
	index uint64 // what the session had seen by then
	tty   bool
}

// remember records that this command created a container. Its attach and its wait may be
// sent together with its start then, instead of one after the other: an attach that comes
// late gets all output from the first byte, and a wait says which exits are not old.
func (c *fleetClient) remember(id string, tty bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made == nil {
		c.made = map[string]made{}
	}
	c.made[id] = made{c.s.seen.Load(), tty}
}

// own returns what is known of a container that this command created. Without an index, a
// late wait could not be told from one for what follows.
func (c *fleetClient) own(id string) (m made, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok = c.made[id]
	return m, ok && m.index > 0
}

// later is a net.Conn that is still being opened.
type later struct {
	cancel context.CancelFunc
	opened chan struct{} // closed once the fields below are set
	h      client.HijackedResponse
	err    error
}

// openLater opens a stream in the background. lose receives the error if it does not open.
func openLater(ctx context.Context, lose func(error), open func(context.Context) (client.HijackedResponse, error)) *later {
	ctx, cancel := context.WithCancel(ctx)
	l := &later{cancel: cancel, opened: make(chan struct{})}
	go func() {
		defer close(l.opened)
		if l.h, l.err = open(ctx); l.err != nil && ctx.Err() == nil {
			lose(l.err)
		}
	}()
	return l
}

func (l *later) conn() (net.Conn, error) {
	<-l.opened
	return l.h.Conn, l.err
}

// Read implements net.Conn.
func (l *later) Read(p []byte) (int, error) {
	if _, err := l.conn(); err != nil {
		return 0, err
	}
	return l.h.Reader.Read(p)
}

// Write implements net.Conn.
func (l *later) Write(p []byte) (int, error) {
	c, err := l.conn()
	if err != nil {
		return 0, err
	}
	return c.Write(p)
}

// CloseWrite ends the input.
func (l *later) CloseWrite() error {
	if _, err := l.conn(); err != nil {
		return err
	}
	return l.h.CloseWrite()
}

// Close implements net.Conn. It waits for the stream that is being opened.
func (l *later) Close() error {
	l.cancel()
	c, err := l.conn()
	if err != nil {
		return nil //nolint:nilerr // there is nothing to close
	}
	return c.Close()
}

// nowhere is the address of a stream that did not open.
type nowhere struct{}

func (nowhere) Network() string { return "unix" }
func (nowhere) String() string  { return "" }

// LocalAddr implements net.Conn.
func (l *later) LocalAddr() net.Addr {
	if c, err := l.conn(); err == nil {
		return c.LocalAddr()
	}
	return nowhere{}
}

// RemoteAddr implements net.Conn.
func (l *later) RemoteAddr() net.Addr {
	if c, err := l.conn(); err == nil {
		return c.RemoteAddr()
	}
	return nowhere{}
}

func (l *later) set(deadline func(net.Conn) error) error {
	c, err := l.conn()
	if err != nil {
		return err
	}
	return deadline(c)
}

// SetDeadline implements net.Conn.
func (l *later) SetDeadline(t time.Time) error {
	return l.set(func(c net.Conn) error { return c.SetDeadline(t) })
}

// SetReadDeadline implements net.Conn.
func (l *later) SetReadDeadline(t time.Time) error {
	return l.set(func(c net.Conn) error { return c.SetReadDeadline(t) })
}

// SetWriteDeadline implements net.Conn.
func (l *later) SetWriteDeadline(t time.Time) error {
	return l.set(func(c net.Conn) error { return c.SetWriteDeadline(t) })
}
