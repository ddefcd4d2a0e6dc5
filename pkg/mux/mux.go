// Package mux shares one TLS port among protocols, selected by ALPN. What is
// spoken over them is up to their users.
package mux

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/drover/drover/pkg/limit"
)

// Limits of the port. A source is a host, as far as addresses can tell (limit.Source).
const (
	HandshakeTimeout = 5 * time.Second
	// MaxUnknown is how many connections without a client certificate (or without one yet,
	// unless certificates have been shown from there) a source may have at a time: enough
	// for everything that needs no identity, and too few to exhaust the file descriptors
	// that raft needs.
	MaxUnknown = 64
	maxUnknown = 1024 // of all sources together
)

// Mux hands each connection to the listener of its protocol, as a bare
// *tls.Conn: net/http speaks HTTP/2 only on a conn of that dynamic type.
type Mux struct {
	l       net.Listener
	log     *slog.Logger
	routes  []*route
	unknown *strangers
	cut     *limit.Throttle
}

type route struct {
	protos []string // "" is a client that offers none: docker, python, wget
	config *tls.Config
	q      *queue
}

// New shares l. Call Handle before Run. Clients that offer only unknown protocols are
// refused with no_application_protocol, by the configuration of the first route.
func New(l net.Listener, log *slog.Logger) *Mux {
	return &Mux{l: l, log: log, unknown: newStrangers(MaxUnknown, maxShaking, maxUnknown), cut: limit.NewThrottle(time.Minute)}
}

// Handle returns a listener for the given ALPN names ("" for none offered), whose
// connections use the TLS configuration.
func (m *Mux) Handle(config *tls.Config, protos ...string) net.Listener {
	c := config.Clone()
	c.NextProtos = slices.DeleteFunc(slices.Clone(protos), func(s string) bool { return s == "" })
	r := &route{protos: protos, config: c, q: &queue{c: make(chan net.Conn), addr: m.l.Addr(), done: make(chan struct{})}}
	m.routes = append(m.routes, r)
	return r.q
}

// Run accepts connections until ctx ends or the listener fails, and returns once every
// handshake is over. It closes the listeners that Handle returned.
func (m *Mux) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = m.l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer func() {
		cancel()
		for _, r := range m.routes {
			_ = r.q.Close()
		}
		wg.Wait()
	}()
	front := &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: m.configFor}
	for {
		c, err := m.l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return ctx.Err()
		}
		if isTemporary(err) {
			select { // out of file descriptors: wait for connections to close
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("accepting on %s: %w", m.l.Addr(), err)
		}
		in, out := m.unknown.enter(c, limit.Source(c.RemoteAddr()))
		m.evict(out)
		wg.Go(func() { m.handshake(ctx, tls.Server(in, front), in) })
	}
}

// evict closes a connection that another one took the place of; nil: there is none.
func (m *Mux) evict(c *stranger) {
	if c == nil {
		return
	}
	_ = c.Conn.Close()
	if held, say := m.cut.Allow(c.place.source); say {
		m.log.Warn("cut a connection: there were too many without a certificate, most of them of its host", "peer", c.RemoteAddr().String(), "cut before", held)
	}
}

func isTemporary(err error) bool {
	var ne interface{ Temporary() bool }
	return err != nil && errors.As(err, &ne) && ne.Temporary() && !errors.Is(err, net.ErrClosed)
}

func (m *Mux) configFor(h *tls.ClientHelloInfo) (*tls.Config, error) {
	for _, r := range m.routes {
		for _, p := range r.protos {
			if slices.Contains(h.SupportedProtos, p) || p == "" && len(h.SupportedProtos) == 0 {
				return r.config, nil
			}
		}
	}
	if len(m.routes) == 0 {
		return nil, errors.New("no protocol is served here")
	}
	return m.routes[0].config, nil
}

func (m *Mux) handshake(ctx context.Context, c *tls.Conn, from *stranger) {
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil { // a panic in VerifyConnection must not end the process
			m.log.Error("handshake panicked", "peer", c.RemoteAddr(), "panic", p)
			_ = c.Close()
		}
	}()
	if err := c.HandshakeContext(ctx); err != nil {
		m.log.Debug("handshake refused", "peer", c.RemoteAddr(), "err", err)
		_ = c.Close()
		return
	}
	if len(c.ConnectionState().PeerCertificates) > 0 {
		m.unknown.shown(from) // the configurations verify every certificate that is presented
	} else {
		m.evict(m.unknown.stay(from))
	}
	p := c.ConnectionState().NegotiatedProtocol
	for _, r := range m.routes {
		if slices.Contains(r.protos, p) {
			r.q.put(ctx, c)
			return
		}
	}
	_ = c.Close()
}

// queue is a net.Listener that the mux feeds.
type queue struct {
	c    chan net.Conn
	addr net.Addr
	once sync.Once
	done chan struct{}
}

func (q *queue) put(ctx context.Context, c net.Conn) {
	select {
	case q.c <- c:
	case <-q.done:
		_ = c.Close()
	case <-ctx.Done():
		_ = c.Close()
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.c:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error   { q.once.Do(func() { close(q.done) }); return nil }
func (q *queue) Addr() net.Addr { return q.addr }
