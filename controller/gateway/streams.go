package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
)

func (g *Gateway) acceptStreams(ctx context.Context, l net.Listener, kind string, handler func(*Handlers) http.Handler) {
	var all sync.WaitGroup
	defer all.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed: by stop, or by the mux, whose failure is reported there
		}
		all.Go(func() { g.stream(ctx, conn, kind, handler) })
	}
}

// refusedFor is how long a refused connection may ask why.
const refusedFor = 5 * time.Second

// stream serves a connection of an agent or another controller. It waits for the
// controller to be ready: a refused peer would reconnect later than necessary.
func (g *Gateway) stream(ctx context.Context, conn net.Conn, kind string, handler func(*Handlers) http.Handler) {
	defer cut(conn)
	t, ok := conn.(*tls.Conn)
	if !ok || len(t.ConnectionState().PeerCertificates) == 0 {
		return
	}
	p, err := pki.FromCert(t.ConnectionState().PeerCertificates[0])
	if err != nil {
		return
	}
	leave, ok := g.streams.enter(conn, p.URI)
	if !ok {
		return
	}
	defer leave()
	select {
	case <-g.ready:
	case <-ctx.Done():
		return
	}
	if err := g.o.Identities.Authorize(p, kind); err != nil {
		if _, warned := g.warned.LoadOrStore(p.URI, true); !warned {
			g.o.Logger.Warn("refused a connection", "kind", kind, "peer", conn.RemoteAddr().String(), "err", err)
		}
		code := http.StatusForbidden
		if kind == pki.KindController {
			if !errors.Is(err, pki.ErrRevoked) {
				return // it dials again, and may be known here by then
			}
			code = http.StatusMisdirectedRequest // refuses its requests: no leader
		}
		(&http2.Server{IdleTimeout: refusedFor}).ServeConn(conn, &http2.ServeConnOpts{Context: ctx, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(wire.HeaderRemoved, strconv.FormatBool(errors.Is(err, pki.ErrRevoked)))
			http.Error(w, err.Error(), code)
		})})
		return
	}
	h := handler(g.handlers.Load())
	h2 := http2.Server{MaxConcurrentStreams: 8, IdleTimeout: time.Minute}
	if kind == pki.KindController {
		h2.MaxConcurrentStreams = 100_000 // enough for all nodes and callers
		h2.MaxReadFrameSize = wire.PeerFrame
		h2.MaxUploadBufferPerStream = wire.PeerRequestWindow
		h2.MaxUploadBufferPerConnection = wire.PeerConnWindow
	}
	h2.ServeConn(conn, &http2.ServeConnOpts{
		Context:    ctx,
		BaseConfig: &http.Server{ErrorLog: slog.NewLogLogger(g.o.Logger.Handler(), slog.LevelDebug)},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// Handlers may outlive ServeConn, but never the controller.
			if leave, ok := g.streams.enter(nil, p.URI); ok {
				defer leave()
				h.ServeHTTP(w, r.WithContext(pki.WithPrincipal(r.Context(), p)))
			}
		}),
	})
}
