package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/miekg/dns"
)

// ask asks for a name until end, and returns how many answers had an address.
func ask(server, name string, end time.Time) (n int, err error) {
	c, err := dns.Dial("udp", server)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	for ; time.Now().Before(end); n++ {
		if err := c.WriteMsg(question(name)); err != nil {
			return n, err
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		m, err := c.ReadMsg()
		if err != nil {
			return n, err
		}
		if len(m.Answer) == 0 {
			return n, fmt.Errorf("the answer to %s is %s", name, dns.RcodeToString[m.Rcode])
		}
	}
	return n, nil
}

func question(name string) *dns.Msg { return new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA) }

const (
	asksEvery   = 2 * time.Millisecond
	awaitWithin = 30 * time.Second
)

// await asks for a name, without waiting for answers in between, until one has an address.
func await(ctx context.Context, server, name string, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, awaitWithin)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "udp", server)
	if err != nil {
		return err
	}
	c := &dns.Conn{Conn: conn}
	read := make(chan time.Time, 1) // when it had an address
	done := make(chan struct{})
	defer func() { cancel(); _ = c.Close(); <-done }()
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if m, err := c.ReadMsg(); err == nil && len(m.Answer) > 0 {
				read <- time.Now()
				return
			}
		}
	}()
	if _, err := fmt.Fprintln(out, "asking"); err != nil {
		return err
	}
	for t := time.NewTicker(asksEvery); ; {
		_ = c.WriteMsg(question(name)) // what is refused is asked again
		select {
		case at := <-read:
			_, err := fmt.Fprintln(out, at.UnixNano())
			return err
		case <-ctx.Done():
			return fmt.Errorf("%s has no address within %v", name, awaitWithin)
		case <-t.C:
		}
	}
}
