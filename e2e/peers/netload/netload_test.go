package main

import (
	"bytes"
	"context"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestTraffic(t *testing.T) {
	for what, take := range map[string]func(net.Conn){"send": sink, "connect": func(net.Conn) {}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var taken atomic.Int32
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = accept(l, func(c net.Conn) { taken.Add(1); take(c) })
		}()
		const d = 50 * time.Millisecond
		var rate float64
		if what == "send" {
			rate, err = send(l.Addr().String(), d)
		} else {
			rate, err = perSecond(d, func(end time.Time) (int, error) { return meet(l.Addr().String(), end) })
		}
		if n := float64(taken.Load()); err != nil || rate <= 0 || what == "connect" && rate*d.Seconds() > n {
			t.Errorf("%s: %v a second of %v connections, %v", what, rate, n, err)
		}
		_ = l.Close()
		<-done
		if _, err := send(l.Addr().String(), d); err == nil {
			t.Error("something was sent to nobody")
		}
	}
}

// names is a server that knows web from the 5th question for it on.
func names(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	begun, done := make(chan struct{}), make(chan struct{})
	s := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(begun) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		if asked++; q.Question[0].Name == "web." && asked > 4 {
			m = new(dns.Msg).SetReply(q)
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "web.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(10, 0, 0, 1)}}
		}
		_ = w.WriteMsg(m)
	})}
	go func() { defer close(done); _ = s.ActivateAndServe() }()
	<-begun
	t.Cleanup(func() { _ = s.Shutdown(); <-done })
	return pc.LocalAddr().String()
}

func TestNames(t *testing.T) {
	server := names(t)
	var out bytes.Buffer
	before := time.Now()
	if err := await(t.Context(), server, "web", &out); err != nil {
		t.Fatal(err)
	}
	said := strings.Fields(out.String())
	if len(said) != 2 || said[0] != "asking" {
		t.Fatalf("it says %q", said)
	}
	ns, err := strconv.ParseInt(said[1], 10, 64)
	if took := time.Unix(0, ns).Sub(before); err != nil || took < 4*asksEvery || took > time.Minute {
		t.Errorf("the fifth question was answered after %v, %v", took, err)
	}
	if n, err := ask(server, "web", time.Now().Add(20*time.Millisecond)); n == 0 || err != nil {
		t.Errorf("%d answers, %v", n, err)
	}
	if n, err := ask(server, "nobody", time.Now().Add(time.Second)); n != 0 || err == nil {
		t.Errorf("for a name that nobody has, %d answers, %v", n, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := await(ctx, server, "nobody", &out); err == nil {
		t.Error("a name that nobody has was awaited")
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"send"}, {"dance", "here"}} {
		if err := run(t.Context(), args, &bytes.Buffer{}); err == nil {
			t.Errorf("%q is understood", args)
		}
	}
}
