// Package gateway is a controller's way in: it has the listeners of the port and of
// the host's socket, identifies the other end of each connection, limits what it may
// cost, and closes it when its identity is revoked. Answering is left to the
// handlers.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"github.com/drover/drover/controller/engineapi"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/limit"
	"github.com/drover/drover/pkg/mux"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/unixsock"
)

// grace is how long requests in progress may take when the controller stops.
const grace = 500 * time.Millisecond

// Identities authorizes principals by this member's current state.
type Identities interface {
	Authorize(p pki.Principal, role string) error // refuses identities that are unknown, revoked, or without the role
	NotRevoked(p pki.Principal) error
}

// Options configures Listen. Everything but the durations is required.
type Options struct {
	Listen     string // host:port; port 0 is any
	Advertise  string // host[:port] that others dial; "" is the address listened on, unless that is a wildcard
	Socket     string // path of the host's socket
	Files      *pki.Files
	Identities Identities
	Logger     *slog.Logger
	// Linger is how long the connections of a removed controller stay open: the request
	// that removed it may have come through one of them, and needs a response.
	Linger time.Duration
	// Patience is how long requests wait for a controller that is starting; 0 is 5 s.
	Patience time.Duration
	// Pace is the minimum pace of request bodies; the zero value is DefaultPace.
	Pace Pace
}

// Handlers answer requests, by the kind of caller.
type Handlers struct {
	API      http.Handler // users' requests, with their principal
	Sessions http.Handler // agents' streams
	Peers    http.Handler // other controllers' own requests
	Callers  http.Handler // requests that other controllers relay
	Joins    http.Handler // hosts without an identity
}

// Gateway owns the listeners, and every connection in use. It is safe for concurrent
// use.
type Gateway struct {
	o         Options
	port      net.Listener
	socket    net.Listener
	mux       *mux.Mux
	raft      *raftLayer
	api       net.Listener
	sessions  net.Listener
	peers     net.Listener
	callers   net.Listener
	joins     net.Listener
	proxied   *socketProxy
	advertise string

	handlers atomic.Pointer[Handlers] // nil until Ready
	ready    chan struct{}            // closed when handlers is set
	warned   sync.Map                 // identities whose refusal was logged

	requests *conns
	streams  *conns // of agents and controllers
	granted  granted
}

// Listen opens the port and the socket. Nothing is answered before Serve.
func Listen(ctx context.Context, o Options) (_ *Gateway, err error) {
	if o.Patience == 0 {
		o.Patience = 5 * time.Second
	}
	if o.Pace == (Pace{}) {
		o.Pace = DefaultPace
	}
	g := &Gateway{o: o, ready: make(chan struct{}), requests: newConns(), streams: newConns(), granted: granted{}}
	if g.port, err = new(net.ListenConfig).Listen(ctx, "tcp", o.Listen); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", o.Listen, err)
	}
	if g.advertise, err = advertise(o.Advertise, g.port.Addr()); err == nil {
		g.socket, err = unixsock.Listen(ctx, o.Socket)
	}
	if err != nil {
		_ = g.port.Close()
		return nil, err
	}
	g.mux = mux.New(g.port, o.Logger)
	config := pki.ServerTLS(o.Files, nil)
	config.ClientAuth = tls.VerifyClientCertIfGiven
	g.api = g.mux.Handle(config, "h2", "http/1.1", "")
	// Sessions and peers accept revoked identities in order to tell them so: a refused
	// handshake can't say why.
	kinds := func(kind string) *tls.Config { return pki.PeerServerTLS(o.Files, pki.Kinds(kind)) }
	g.sessions = g.mux.Handle(kinds(pki.KindNode), wire.ALPNSession)
	g.peers = g.mux.Handle(kinds(pki.KindController), wire.ALPNPeer)
	g.callers = g.mux.Handle(kinds(pki.KindController), wire.ALPNRelay)
	members := pki.All(pki.Kinds(pki.KindController), o.Identities.NotRevoked)
	g.raft = &raftLayer{
		Listener: g.mux.Handle(pki.PeerServerTLS(o.Files, members), wire.ALPNRaft),
		addr:     advertised(g.advertise),
		config:   pki.PeerClientTLS(o.Files, wire.ALPNRaft, members),
		verify:   o.Identities.NotRevoked,
		conns:    newConns(),
	}
	admitting := pki.ServerTLS(o.Files, nil)
	whole := o.Files.Cert // including its root, for the pin to match
	whole.Certificate = append(slices.Clone(whole.Certificate[:1]), o.Files.Bundle[0].Raw)
	admitting.Certificates = []tls.Certificate{whole}
	g.joins = bare{g.mux.Handle(admitting, wire.ALPNJoin)}
	g.proxied = newSocketProxy(g.mux.Handle(kinds(pki.KindNode), wire.ALPNSocket), limit.NewThrottle(time.Minute), o.Logger)
	return g, nil
}

// advertise completes the address that others dial with the address listened on.
func advertise(want string, l net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(l.String())
	if err != nil {
		return "", fmt.Errorf("reading the address listened on: %w", err)
	}
	if want == "" {
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			return "", errors.New("controller: Advertise is required if Listen is a wildcard address")
		}
		return l.String(), nil
	}
	if _, _, err := net.SplitHostPort(want); err != nil {
		return net.JoinHostPort(strings.Trim(want, "[]"), port), nil
	}
	return want, nil
}

// Addr returns the port's address.
func (g *Gateway) Addr() net.Addr { return g.port.Addr() }

// Advertise returns the host:port that others dial.
func (g *Gateway) Advertise() string { return g.advertise }

// Raft returns raft's network: the port's connections that speak wire.ALPNRaft.
func (g *Gateway) Raft() raft.StreamLayer { return g.raft }

// Ready makes Serve answer requests; until then they wait for up to Patience and are
// then asked to retry. Call it once.
func (g *Gateway) Ready(h Handlers) {
	g.handlers.Store(&h)
	close(g.ready)
}

// Run accepts connections on the port and does the handshakes, until ctx is done. It
// must outlive raft and Serve.
func (g *Gateway) Run(ctx context.Context) error { return g.mux.Run(ctx) }

// Serve answers requests until ctx is done, and returns after the last one: requests
// in progress get a moment, then their connections are closed before their contexts
// end. It must stop before the log, which these requests need.
func (g *Gateway) Serve(ctx context.Context) error {
	// Requests end in order with their connections, not all at once with ctx.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	onPort, onSocket := g.server(base, g.request, withConn), g.server(base, g.request, g.withPeer)
	onProxy, onJoin := g.server(base, g.request, withProxied), g.server(base, g.join, withConn)
	parts, failed := errgroup.WithContext(ctx)
	serve := func(what string, s *http.Server, l net.Listener) {
		parts.Go(func() error {
			// A closed listener is a stop, or the mux's failure, which is reported there.
			if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("serving %s: %w", what, err)
			}
			return nil
		})
	}
	serve("the API's port", onPort, g.api)
	serve(g.o.Socket, onSocket, g.socket)
	serve("proxied sockets", onProxy, g.proxied)
	serve("joins", onJoin, g.joins)
	parts.Go(func() error { return g.proxied.run(base) })
	for _, l := range []struct {
		net.Listener
		kind    string
		handler func(*Handlers) http.Handler
	}{
		{g.sessions, pki.KindNode, func(h *Handlers) http.Handler { return h.Sessions }},
		{g.peers, pki.KindController, func(h *Handlers) http.Handler { return h.Peers }},
		{g.callers, pki.KindController, func(h *Handlers) http.Handler { return h.Callers }},
	} {
		parts.Go(func() error { g.acceptStreams(base, l.Listener, l.kind, l.handler); return nil })
	}
	<-failed.Done() // ctx is done, or a part failed
	polite, enough := context.WithTimeout(base, grace)
	defer enough()
	var shut sync.WaitGroup
	for _, s := range []*http.Server{onPort, onSocket} {
		shut.Go(func() { _ = s.Shutdown(polite) })
	}
	shut.Wait()
	// Connections first: when a request's context ends, nobody must be left who could be
	// told that it succeeded.
	g.requests.close()
	_, _ = onPort.Close(), onSocket.Close()
	cancel()
	_, _ = onJoin.Close(), onProxy.Close()
	_, _, _ = g.sessions.Close(), g.peers.Close(), g.callers.Close()
	g.streams.close()
	g.requests.wait()
	g.streams.wait()
	return parts.Wait()
}

func (g *Gateway) server(base context.Context, h http.HandlerFunc, conn func(context.Context, net.Conn) context.Context) *http.Server {
	return &http.Server{
		Handler: h, ConnContext: func(ctx context.Context, l net.Conn) context.Context { return conn(engineapi.ServedBy(ctx), l) },
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 256 << 10,
		ErrorLog: slog.NewLogLogger(g.o.Logger.Handler(), slog.LevelDebug),
	}
}

// bare hides TLS from net/http, which doesn't serve ALPN protocols that it doesn't
// know.
type bare struct{ net.Listener }

// Accept implements net.Listener.
func (l bare) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{c}, nil
}
