package server

import (
	"net"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
)

// Bounds of what one container can occupy.
const (
	maxConns    = 64              // of TCP
	connIdle    = 5 * time.Second // until one of them is closed
	writeWithin = 2 * time.Second // to one of them: a client need not read its answers
	maxAnswers  = 2 * maxForwards // by UDP, being made: names of the fleet are answered beside what is forwarded
)

// bounded is a UDP server's reader, which reads the next query only while fewer than
// maxAnswers are being answered. What comes meanwhile waits in the socket, or is dropped.
type bounded struct {
	dns.Reader
	slots chan struct{}
}

// udpServer returns one for a socket. Each query that was read ends in one of the functions
// that free its slot.
func udpServer(on *net.UDPConn, h dns.Handler) *dns.Server {
	slots := make(chan struct{}, maxAnswers)
	free := func() { <-slots }
	return &dns.Server{
		PacketConn: on, UDPSize: dns.DefaultMsgSize,
		DecorateReader: func(r dns.Reader) dns.Reader { return bounded{r, slots} },
		MsgInvalidFunc: func([]byte, error) { free() },
		MsgAcceptFunc: func(h dns.Header) dns.MsgAcceptAction {
			a := dns.DefaultMsgAcceptFunc(h)
			if a != dns.MsgAccept {
				free()
			}
			return a
		},
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			defer free()
			h.ServeDNS(w, q)
		}),
	}
}

// ReadUDP implements dns.Reader.
func (b bounded) ReadUDP(conn *net.UDPConn, timeout time.Duration) ([]byte, *dns.SessionUDP, error) {
	b.slots <- struct{}{}
	m, from, err := b.Reader.ReadUDP(conn, timeout)
	if err != nil {
		<-b.slots
	}
	return m, from, err
}

// tcpServer returns one for a socket.
func tcpServer(on net.Listener, h dns.Handler) *dns.Server {
	return &dns.Server{Listener: impatient{netutil.LimitListener(on, maxConns)}, Handler: h, IdleTimeout: func() time.Duration { return connIdle }}
}

// impatient is a listener whose connections are closed when an answer can't be written in
// time.
type impatient struct{ net.Listener }

// Accept implements net.Listener.
func (l impatient) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return impatientConn{c}, nil
}

type impatientConn struct{ net.Conn }

// Write implements net.Conn.
func (c impatientConn) Write(b []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(writeWithin))
	n, err := c.Conn.Write(b)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}
