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

// refusal is an answer instead of the asked-for one.
type refusal struct {
	code int
	msg  string
}

func (e *refusal) Error() string { return e.msg }

var errStarting = &refusal{http.StatusServiceUnavailable, "this controller is starting: its log is not ready yet"}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	dial.Watch(c) // who left without a word keeps no stream open
	return context.WithValue(ctx, connKey{}, c)
}

// request is what every request passes, on the port and on the socket: who is
// there, and is the controller ready for it.
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
				refuse(out, &refusal{http.StatusInternalServerError, fmt.Sprintf("this request met an error in drover: %v", p)})
				return
			}
		}
		panic(http.ErrAbortHandler) // too late for words: the client must see a broken answer
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
	// What it may do is asked after enter: a revocation that this misses ends the
	// connection.
	h.API.ServeHTTP(out, r.WithContext(pki.WithPrincipal(r.Context(), p)))
}

// maxKey leaves room for what drover puts before a caller's key.
const maxKey = consensus.MaxKey - 56

// awaitReady waits a moment for a controller that is starting; nil if it still is.
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
	w.Header().Set("Connection", "close") // each try costs a handshake
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

// caller is who sent a request, as far as connections tell.
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

// peerResult is what the kernel said of a connection.
type peerResult struct {
	principal pki.Principal
	err       error
}

// withPeer names who connects to the socket as a user of this host.
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

// answer records whether it has begun. One that refuses a caller ends its connection:
// neither the rest of a body nor another request is waited for, so that who was
// removed holds none.
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

// Unwrap is for http.ResponseController, which sets deadlines through it.
func (a *answer) Unwrap() http.ResponseWriter {
	return a.ResponseWriter
}
