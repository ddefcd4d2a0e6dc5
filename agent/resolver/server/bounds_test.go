package server

import (
	"context"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// flooded is a server of one socket on the loopback, and a connection to it.
func flooded(t *testing.T, h dns.HandlerFunc) (*dns.Server, *dns.Conn) {
	t.Helper()
	on, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	_ = on.SetReadBuffer(4 << 20)
	s := udpServer(on, h)
	serve(t, s)
	c, err := net.Dial("udp4", on.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return s, &dns.Conn{Conn: c}
}

func TestAFloodOfQueriesWaitsInTheSocket(t *testing.T) {
	begun, hold := make(chan struct{}, 2*maxAnswers), make(chan struct{})
	_, c := flooded(t, func(w dns.ResponseWriter, q *dns.Msg) {
		begun <- struct{}{}
		<-hold
		_ = w.WriteMsg(new(dns.Msg).SetReply(q))
	})
	before := runtime.NumGoroutine()
	const more = 100
	for range maxAnswers + more {
		if err := c.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	for range maxAnswers {
		<-begun
	}
	// The reader is not one of those that answer: it would have gone on by now.
	for range 1000 {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine() - before; n > maxAnswers || len(begun) > 0 {
		t.Errorf("%d more goroutines answer queries, and %d more begun", n, len(begun))
	}
	close(hold)
	for i := range more {
		if _, err := c.ReadMsg(); err != nil {
			t.Fatalf("after %d answers: %v", i, err)
		}
	}
}

// However a query ends, the next one can be read.
func TestGarbageOccupiesNothing(t *testing.T) {
	_, c := flooded(t, func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(new(dns.Msg).SetReply(q)) })
	answer := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("web.", dns.TypeA))
	refused, err := answer.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for range maxAnswers + 1 {
		for _, b := range append(garbage, refused) {
			if _, err := c.Conn.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		q := new(dns.Msg).SetQuestion("web.", dns.TypeA) // so that the socket does not overflow
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		for {
			m, err := c.ReadMsg()
			if err != nil && m == nil {
				t.Fatal(err)
			}
			if m.Id == q.Id && m.Rcode == dns.RcodeSuccess {
				break
			}
		}
	}
}

// one is a listener of one connection.
type one struct {
	conns chan net.Conn
	end   func()
}

func (l one) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l one) Close() error   { l.end(); return nil }
func (l one) Addr() net.Addr { return &net.TCPAddr{} }

// A client that does not read its answers keeps neither its container's resolver nor the
// process from ending.
func TestAnAnswerThatNobodyReadsIsGivenUp(t *testing.T) {
	conns := make(chan net.Conn, 1)
	l := one{conns, sync.OnceFunc(func() { close(conns) })}
	served, client := net.Pipe() // without a buffer
	defer func() { _ = client.Close() }()
	conns <- served
	writing := make(chan struct{})
	s := tcpServer(l, dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		close(writing)
		_ = w.WriteMsg(new(dns.Msg).SetReply(q))
	}))
	done := make(chan error, 1)
	go func() { done <- s.ActivateAndServe() }()
	q, err := new(dns.Msg).SetQuestion("web.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write(append([]byte{0, byte(len(q))}, q...)); err != nil {
		t.Fatal(err)
	}
	<-writing
	ctx, cancel := context.WithTimeout(t.Context(), 3*writeWithin)
	defer cancel()
	if err := s.ShutdownContext(ctx); err != nil {
		t.Fatal("it does not end: ", err)
	}
	<-done
}
