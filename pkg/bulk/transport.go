package bulk

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/drover/drover/pkg/dial"
	"github.com/drover/drover/pkg/pki"
)

var aLongTimeAgo = time.Unix(1, 0)

func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	c.KeepAliveInterval = 5 * time.Second // detects a stuck peer; an unreachable one is detected sooner, by dial.Watch
	c.StreamOpenTimeout = 10 * time.Second
	c.StreamCloseTimeout = 10 * time.Second // our streams are never half-closed for long, see conn.go
	return c
}

// Serve serves h on the streams of every connection that l accepts (already
// authenticated), until ctx ends or l fails. Then it closes open streams.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	streams := &streamListener{c: make(chan net.Conn), done: make(chan struct{}), addr: l.Addr()}
	srv := &http.Server{
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, ok := c.(*principalConn); ok {
				return pki.WithPrincipal(ctx, p.who)
			}
			return ctx
		},
		Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() {
		_ = l.Close()
		_ = streams.Close()
		_ = srv.Close()
	})
	defer stop()
	defer cancel()
	wg.Go(func() { _ = srv.Serve(streams) })
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("accepting bulk connections: %w", err)
		}
		dial.Watch(c)
		wg.Go(func() { serveConn(ctx, c, streams, log) })
	}
}

// principalConn is a stream of a connection whose peer is authenticated.
type principalConn struct {
	net.Conn
	who pki.Principal
}

func known(st net.Conn, c net.Conn) net.Conn {
	t, ok := c.(interface{ ConnectionState() tls.ConnectionState })
	if !ok || len(t.ConnectionState().PeerCertificates) == 0 {
		return st
	}
	p, err := pki.FromCert(t.ConnectionState().PeerCertificates[0])
	if err != nil {
		return st
	}
	return &principalConn{st, p}
}

func serveConn(ctx context.Context, c net.Conn, to *streamListener, log *slog.Logger) {
	s, err := yamux.Server(c, config())
	if err != nil {
		log.Warn("bulk connection refused", "peer", c.RemoteAddr(), "err", err)
		_ = c.Close()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	defer func() { _ = s.Close() }()
	for {
		st, err := s.Accept()
		if err != nil {
			return
		}
		select {
		case to.c <- known(st, c):
		case <-to.done:
			_ = st.Close()
			return
		}
	}
}

type streamListener struct {
	c    chan net.Conn
	done chan struct{}
	once sync.Once
	addr net.Addr
}

func (l *streamListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *streamListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *streamListener) Addr() net.Addr { return l.addr }

// Client keeps one connection to an agent, dialed on first use and redialed after it
// breaks. Safe for concurrent use.
type Client struct {
	dial func(context.Context) (net.Conn, error)
	http *http.Client

	mu      sync.Mutex // guards session, closed and dialing
	session *yamux.Session
	closed  bool
	dialing chan struct{} // closed when the dial in flight is over
}

// NewClient reaches an agent through connect, which returns authenticated connections.
func NewClient(connect func(context.Context) (net.Conn, error)) *Client {
	c := &Client{dial: connect}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return c.open(ctx) },
		MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
	}}
	return c
}

// HTTP returns a client for http://agent/v1/…
func (c *Client) HTTP() *http.Client { return c.http }

// Close ends the connection and every stream on it.
func (c *Client) Close() error {
	c.mu.Lock()
	s := c.session
	c.closed, c.session = true, nil
	c.mu.Unlock()
	c.http.CloseIdleConnections()
	if s == nil {
		return nil
	}
	return s.Close()
}

var errClosed = errors.New("bulk client is closed")

func (c *Client) open(ctx context.Context) (net.Conn, error) {
	for {
		s, wait, err := c.current()
		if err != nil {
			return nil, err
		}
		if s != nil {
			st, err := s.Open()
			if err == nil {
				return st, nil
			}
			c.forget(s)
			continue
		}
		if wait != nil {
			select {
			case <-wait:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if err := c.connect(ctx); err != nil {
			return nil, err
		}
	}
}

// current returns the live session, or the dial to wait for, or neither: then the caller
// must dial.
func (c *Client) current() (*yamux.Session, chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, nil, errClosed
	case c.session != nil && !c.session.IsClosed():
		return c.session, nil, nil
	case c.dialing != nil:
		return nil, c.dialing, nil
	}
	c.dialing = make(chan struct{})
	return nil, nil, nil
}

func (c *Client) connect(ctx context.Context) error {
	conn, err := c.dial(ctx)
	var s *yamux.Session
	if err == nil {
		dial.Watch(conn)
		if s, err = yamux.Client(conn, config()); err != nil {
			_ = conn.Close()
		}
	}
	c.mu.Lock()
	close(c.dialing)
	c.dialing = nil
	late := c.closed && s != nil
	if err == nil && !late {
		c.session = s
	}
	c.mu.Unlock()
	if late {
		_ = s.Close()
		return errClosed
	}
	return err
}

func (c *Client) forget(s *yamux.Session) {
	c.mu.Lock()
	if c.session == s {
		c.session = nil
	}
	c.mu.Unlock()
	_ = s.Close()
}
