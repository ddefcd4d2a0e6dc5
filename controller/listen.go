package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/net/http2"

	"github.com/drover/drover/controller/engineapi"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/mux"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/unixsock"
)

// grace is what requests in progress get when the controller stops.
const grace = 500 * time.Millisecond

// listen takes the port and the socket. begin then answers on both; it gives
// what ends that, which may be called twice.
func (c *controller) listen() (begin func() (stop func()), err error) {
	if c.port, err = net.Listen("tcp", c.Listen); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", c.Listen, err)
	}
	path := unixsock.File(c.RunDir)
	var socket net.Listener
	if c.Advertise, err = advertise(c.Advertise, c.port.Addr()); err == nil {
		socket, err = unixsock.Listen(path)
	}
	if err != nil {
		_ = c.port.Close()
		return nil, err
	}
	c.mux = mux.New(c.port, c.Logger)
	config := pki.ServerTLS(c.files, nil)
	config.ClientAuth = tls.VerifyClientCertIfGiven
	api := c.mux.Handle(config, "h2", "http/1.1", "")
	// Who was revoked is let in by sessions and peers to be told so: a refused
	// handshake has no words.
	sessions := c.mux.Handle(pki.PeerServerTLS(c.files, pki.Kinds(pki.KindNode)), wire.ALPNSession)
	c.layer = &raftLayer{
		Listener: c.mux.Handle(pki.PeerServerTLS(c.files, pki.All(pki.Kinds(pki.KindController), c.identities.NotRevoked)), wire.ALPNRaft),
		addr:     advertised(c.Advertise),
		config:   pki.PeerClientTLS(c.files, wire.ALPNRaft, pki.All(pki.Kinds(pki.KindController), c.identities.NotRevoked)),
		verify:   c.identities.NotRevoked,
		conns:    newVisitors(),
	}
	admitting := pki.ServerTLS(c.files, nil)
	whole := c.files.Cert // with its root, for the pin to be found
	whole.Certificate = append(slices.Clone(whole.Certificate[:1]), c.files.Bundle[0].Raw)
	admitting.Certificates = []tls.Certificate{whole}
	joins := c.mux.Handle(admitting, wire.ALPNJoin)
	peers := c.mux.Handle(pki.PeerServerTLS(c.files, pki.Kinds(pki.KindController)), wire.ALPNPeer)
	callers := c.mux.Handle(pki.PeerServerTLS(c.files, pki.Kinds(pki.KindController)), wire.ALPNRelay)
	through := newDoors(c, c.mux.Handle(pki.PeerServerTLS(c.files, pki.Kinds(pki.KindNode)), wire.ALPNSocket))
	return func() func() {
		base, cancel := context.WithCancel(context.Background())
		onPort, onSocket := c.server(base, withConn), c.server(base, c.withPeer(path))
		var parts sync.WaitGroup
		parts.Go(func() { c.accept("the API's port", onPort, api) })
		parts.Go(func() { c.accept(path, onSocket, socket) })
		parts.Go(func() {
			c.acceptStreams(base, sessions, pki.KindNode, func(s *serving) http.Handler { return s.sessions })
		})
		parts.Go(func() {
			c.acceptStreams(base, peers, pki.KindController, func(s *serving) http.Handler { return s.peers })
		})
		parts.Go(func() {
			c.acceptStreams(base, callers, pki.KindController, func(s *serving) http.Handler { return s.callers })
		})
		onDoor := c.server(base, c.withDoor)
		parts.Go(func() { c.accept("doors", onDoor, through) })
		onJoin := c.server(base, withConn)
		onJoin.Handler = http.HandlerFunc(c.admit)
		parts.Go(func() { c.accept("joins", onJoin, bare{joins}) })
		return sync.OnceFunc(func() {
			polite, enough := context.WithTimeout(base, grace)
			defer enough()
			var shut sync.WaitGroup
			for _, s := range []*http.Server{onPort, onSocket} {
				shut.Go(func() { _ = s.Shutdown(polite) })
			}
			shut.Wait()
			// Connections first: a request whose context ends must have nobody
			// left to tell that it succeeded.
			c.requests.close()
			_, _ = onPort.Close(), onSocket.Close()
			cancel()
			_, _ = onJoin.Close(), onDoor.Close()
			_, _, _ = sessions.Close(), peers.Close(), callers.Close()
			c.sessions.close()
			c.requests.wait()
			c.sessions.wait()
			parts.Wait()
		})
	}, nil
}

// advertise completes the address that others dial with what was listened on.
func advertise(want string, l net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(l.String())
	if err != nil {
		return "", fmt.Errorf("reading the address listened on: %w", err)
	}
	if want == "" {
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			return "", errors.New("controller: Advertise is required where Listen is every address")
		}
		return l.String(), nil
	}
	if _, _, err := net.SplitHostPort(want); err != nil {
		return net.JoinHostPort(strings.Trim(want, "[]"), port), nil
	}
	return want, nil
}

func (c *controller) server(base context.Context, conn func(context.Context, net.Conn) context.Context) *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(c.front), ConnContext: func(ctx context.Context, l net.Conn) context.Context { return conn(engineapi.ServedBy(ctx), l) },
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 256 << 10,
		ErrorLog: slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
	}
}

func (c *controller) accept(what string, s *http.Server, l net.Listener) {
	// A closed listener is the mux's failure, told there, or a stop.
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		c.fail(fmt.Errorf("serving %s: %w", what, err))
	}
}

// bare hides TLS from net/http, which serves no protocols that it doesn't know.
type bare struct{ net.Listener }

// Accept implements net.Listener.
func (l bare) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{c}, nil
}

// admit answers a host that wants to join.
func (c *controller) admit(w http.ResponseWriter, r *http.Request) {
	pace(w, r)
	w.Header().Set("Connection", "close") // each try costs a handshake
	leave, ok := c.requests.enter(nil, "")
	if !ok {
		return
	}
	defer leave()
	s := c.served(r.Context())
	if s == nil {
		refuse(w, &refusal{http.StatusServiceUnavailable, "this controller is starting: its log is not ready yet"})
		return
	}
	s.joins.ServeHTTP(w, r)
}

func (c *controller) acceptStreams(ctx context.Context, l net.Listener, kind string, handler func(*serving) http.Handler) {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed: by stop, or by the mux, whose failure is told there
		}
		all.Go(func() { c.streams(ctx, conn, kind, handler) })
	}
}

// refusedFor is how long a refused connection may ask why.
const refusedFor = 5 * time.Second

// once does what is to be done the first time for an identity.
func (c *controller) once(uri string, f func()) {
	if _, told := c.told.LoadOrStore(uri, true); !told {
		f()
	}
}

// streams serves one connection of an agent or another controller. Before the
// controller is ready it waits: who is refused would come back later than needed.
func (c *controller) streams(ctx context.Context, conn net.Conn, kind string, handler func(*serving) http.Handler) {
	defer cut(conn)
	t, ok := conn.(*tls.Conn)
	if !ok || len(t.ConnectionState().PeerCertificates) == 0 {
		return
	}
	p, err := pki.FromCert(t.ConnectionState().PeerCertificates[0])
	if err != nil {
		return
	}
	leave, ok := c.sessions.enter(conn, p.URI)
	if !ok {
		return
	}
	defer leave()
	select {
	case <-c.ready:
	case <-ctx.Done():
		return
	}
	if err := c.identities.Authorize(p, kind); err != nil {
		c.once(p.URI, func() {
			c.Logger.Warn("refused a connection", "kind", kind, "peer", conn.RemoteAddr().String(), "err", err)
		})
		code := http.StatusForbidden
		if kind == pki.KindController {
			if !errors.Is(err, pki.ErrRevoked) {
				return // it dials again, and may be known here then
			}
			code = http.StatusMisdirectedRequest // for its requests: no leader
		}
		(&http2.Server{IdleTimeout: refusedFor}).ServeConn(conn, &http2.ServeConnOpts{Context: ctx, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(wire.HeaderRemoved, strconv.FormatBool(errors.Is(err, pki.ErrRevoked)))
			http.Error(w, err.Error(), code)
		})})
		return
	}
	h := handler(c.serving.Load())
	h2 := http2.Server{MaxConcurrentStreams: 8, IdleTimeout: time.Minute}
	if kind == pki.KindController {
		h2.MaxConcurrentStreams = 100_000 // as many as there are nodes, and callers
	}
	h2.ServeConn(conn, &http2.ServeConnOpts{
		Context:    ctx,
		BaseConfig: &http.Server{ErrorLog: slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug)},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Handlers may outlive ServeConn, never the controller.
			if leave, ok := c.sessions.enter(nil, p.URI); ok {
				defer leave()
				h.ServeHTTP(w, r.WithContext(pki.WithPrincipal(r.Context(), p)))
			}
		}),
	})
}

// raftLayer is raft's network: the port's connections that speak wire.ALPNRaft.
type raftLayer struct {
	net.Listener
	addr   advertised
	config *tls.Config
	verify pki.Verify // that it is not revoked
	conns  *visitors
}

// Accept gives connections that Close will end. Who was revoked since its handshake gets
// none: from enter on, a revocation ends it.
func (l *raftLayer) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		t, ok := conn.(*tls.Conn)
		if !ok {
			cut(conn)
			continue
		}
		p, err := pki.FromCert(t.ConnectionState().PeerCertificates[0])
		if err != nil {
			cut(conn)
			continue
		}
		leave, ok := l.conns.enter(conn, p.URI)
		if !ok {
			cut(conn)
			return nil, net.ErrClosed
		}
		if l.verify(p) == nil {
			return &raftConn{Conn: conn, leave: sync.OnceFunc(leave)}, nil
		}
		leave()
		cut(conn)
	}
}

type raftConn struct {
	net.Conn
	leave func()
}

func (c *raftConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// Dial implements raft.StreamLayer.
func (l *raftLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", string(addr), l.config)
	if err != nil {
		return nil, fmt.Errorf("dialing controller %s: %w", addr, err)
	}
	return c, nil
}

// Close implements raft.StreamLayer.
func (l *raftLayer) Close() error {
	err := l.Listener.Close()
	l.conns.close()
	return err
}

// Addr is what other controllers dial.
func (l *raftLayer) Addr() net.Addr { return l.addr }

type advertised string

func (advertised) Network() string  { return "tcp" }
func (a advertised) String() string { return string(a) }
