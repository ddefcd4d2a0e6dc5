package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/dial"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/unixsock"
)

// refusal is the gateway's answer in place of a handler's.
type refusal struct {
	code int
	msg  string
}

func (e *refusal) Error() string { return e.msg }

var errStarting = &refusal{http.StatusServiceUnavailable, "this controller is starting: its log is not ready yet"}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	dial.Watch(c) // closes the streams of clients that vanish
	return context.WithValue(ctx, connKey{}, c)
}

// request handles every request, on the port and on the socket: it identifies the
// caller, and waits for the controller to be ready.
func (g *Gateway) request(w http.ResponseWriter, r *http.Request) {
	out := &answer{ResponseWriter: w}
	g.o.Pace.hold(out, r)
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
			g.o.Logger.Error("a request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			if !out.begun {
				refuse(out, &refusal{http.StatusInternalServerError, fmt.Sprintf("this request hit a bug in drover: %v", p)})
				return
			}
		}
		panic(http.ErrAbortHandler) // too late for an error: the client must see a broken response
	}()
	p, err := g.caller(r)
	if err != nil {
		refuse(out, err)
		return
	}
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	leave, ok := g.requests.enter(conn, p.URI)
	if !ok {
		refuse(out, &refusal{http.StatusServiceUnavailable, "this controller is stopping"})
		return
	}
	defer leave()
	h := g.awaitReady(r.Context())
	if h == nil {
		refuse(out, errStarting)
		return
	}
	if k := r.Header.Get(wire.HeaderKey); len(k) > maxKey {
		refuse(out, &refusal{http.StatusBadRequest, fmt.Sprintf("header %s has %d bytes, more than the %d allowed", wire.HeaderKey, len(k), maxKey)})
		return
	}
	// Authorization comes after enter: a revocation that it misses closes the
	// connection.
	h.API.ServeHTTP(out, r.WithContext(pki.WithPrincipal(r.Context(), p)))
}

// maxKey leaves room for drover's prefix of a caller's key.
const maxKey = consensus.MaxKey - 56

// awaitReady waits up to Patience for a controller that is starting; nil if it still
// is.
func (g *Gateway) awaitReady(ctx context.Context) *Handlers {
	if h := g.handlers.Load(); h != nil {
		return h
	}
	enough := time.NewTimer(g.o.Patience)
	defer enough.Stop()
	select {
	case <-g.ready:
	case <-enough.C:
	case <-ctx.Done():
	}
	return g.handlers.Load()
}

// join answers a host that wants to join.
func (g *Gateway) join(w http.ResponseWriter, r *http.Request) {
	g.o.Pace.hold(w, r)
	w.Header().Set("Connection", "close") // so that each attempt costs a handshake
	leave, ok := g.requests.enter(nil, "")
	if !ok {
		return
	}
	defer leave()
	h := g.awaitReady(r.Context())
	if h == nil {
		refuse(w, errStarting)
		return
	}
	h.Joins.ServeHTTP(w, r)
}

// caller returns who sent a request, according to its connection.
func (g *Gateway) caller(r *http.Request) (pki.Principal, error) {
	if p, ok := r.Context().Value(proxiedKey{}).(*proxiedConn); ok {
		r.Header.Set(wire.HeaderContact, p.node.ID)
		return p.who, nil
	}
	if local, ok := r.Context().Value(peerKey{}).(peerResult); ok {
		if local.err != nil {
			return pki.Principal{}, &refusal{http.StatusForbidden, local.err.Error()}
		}
		return local.principal, nil
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return pki.Principal{}, &refusal{http.StatusUnauthorized, pki.ErrNoPrincipal.Error()}
	}
	p, err := pki.FromCert(r.TLS.PeerCertificates[0])
	if err != nil {
		return pki.Principal{}, &refusal{http.StatusForbidden, err.Error()}
	}
	return p, nil
}

type peerKey struct{}

// peerResult is what the kernel reports of a connection.
type peerResult struct {
	principal pki.Principal
	err       error
}

// withPeer adds to ctx which user of this host connected to the socket.
func (g *Gateway) withPeer(ctx context.Context, conn net.Conn) context.Context {
	p, err := unixsock.Peer(g.o.Socket, conn)
	return context.WithValue(withConn(ctx, conn), peerKey{}, peerResult{p.At(g.o.Files.Principal), err})
}

func refuse(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	if r := (*refusal)(nil); errors.As(err, &r) {
		code = r.code
	}
	wire.Refuse(w, code, err.Error())
}

// answer records whether the response has begun. A refusal closes the connection,
// without waiting for the rest of the body or another request, so that removed
// callers don't hold connections.
type answer struct {
	http.ResponseWriter
	begun bool
}

func (a *answer) WriteHeader(code int) {
	a.begun = a.begun || code >= 200
	if code == http.StatusUnauthorized || code == http.StatusForbidden {
		a.Header().Set("Connection", "close")
	}
	a.ResponseWriter.WriteHeader(code)
}

func (a *answer) Write(p []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (a *answer) Flush() {
	a.begun = true
	_ = http.NewResponseController(a.ResponseWriter).Flush()
}

// Hijack implements http.Hijacker.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	a.begun = true
	return http.NewResponseController(a.ResponseWriter).Hijack()
}

// Unwrap lets http.ResponseController set deadlines.
func (a *answer) Unwrap() http.ResponseWriter {
	return a.ResponseWriter
}
