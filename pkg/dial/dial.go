// Package dial connects to whichever of several controllers answers first.
package dial

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// stagger is how long an address may take before the next one is tried in parallel.
const stagger = 150 * time.Millisecond

// within bounds the dial of one address.
const within = 5 * time.Second

// First returns a watched TLS connection to one of addrs (host:port): the first of them,
// unless it fails or is slow. Connections that are made later are closed.
func First(ctx context.Context, conf *tls.Config, addrs []string) (*tls.Conn, error) {
	if len(addrs) == 0 {
		return nil, errors.New("no controller is known")
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	type result struct {
		c   *tls.Conn
		err error
	}
	results := make(chan result)
	started, ended := 0, 0
	begin := func() {
		addr := addrs[started]
		started++
		go func() {
			c, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
			if err != nil {
				results <- result{err: fmt.Errorf("reaching %s: %w", addr, err)}
				return
			}
			t, ok := c.(*tls.Conn)
			if !ok {
				err = fmt.Errorf("reaching %s: a %T is no TLS connection", addr, c)
			}
			Watch(c)
			results <- result{t, err}
		}()
	}
	// cancel ends the remaining dials; connections they made by then are closed.
	defer func() {
		cancel()
		go func(left int) {
			for range left {
				if r := <-results; r.c != nil {
					_ = r.c.Close()
				}
			}
		}(started - ended)
	}()
	next := time.NewTicker(stagger)
	defer next.Stop()
	begin()
	var errs []error
	for {
		select {
		case r := <-results:
			ended++
			if r.err == nil {
				return r.c, nil
			}
			if errs = append(errs, r.err); len(errs) == len(addrs) {
				return nil, errors.Join(errs...)
			}
		case <-next.C:
		}
		if started < len(addrs) {
			begin()
		}
	}
}

// Dialer adapts First to http.Transport's DialTLSContext and DialContext. addrs is
// called for each dial.
func Dialer(conf *tls.Config, addrs func() []string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := First(ctx, conf, addrs())
		if err != nil {
			return nil, err // never a nil *tls.Conn in a net.Conn
		}
		return c, nil
	}
}
