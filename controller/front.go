package controller

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
)

// startPatience is how long requests wait for a controller that is starting.
var startPatience = 5 * time.Second

// refusal is an answer instead of the asked-for one.
type refusal struct {
	code int
	msg  string
}

func (e *refusal) Error() string { return e.msg }

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	dial.Watch(c) // who left without a word keeps no stream open
	return context.WithValue(ctx, connKey{}, c)
}

// front is what every request passes, on the port and on the socket: who is
// there, and is the controller ready for it.
func (c *controller) front(w http.ResponseWriter, r *http.Request) {
	out := &answer{ResponseWriter: w}
	pace(out, r)
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
			c.Logger.Error("a request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			if !out.begun {
				refuse(out, &refusal{http.StatusInternalServerError, fmt.Sprintf("this request met an error in drover: %v", p)})
				return
			}
		}
		panic(http.ErrAbortHandler) // too late for words: the client must see a broken answer
	}()
	p, err := c.caller(r)
	if err != nil {
		refuse(out, err)
		return
	}
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	leave, ok := c.requests.enter(conn, p.URI)
	if !ok {
		refuse(out, &refusal{http.StatusServiceUnavailable, "this controller is stopping"})
		return
	}
	defer leave()
	s := c.served(r.Context())
	if s == nil {
		refuse(out, &refusal{http.StatusServiceUnavailable, "this controller is starting: its log is not ready yet"})
		return
	}
	if k := r.Header.Get(wire.HeaderKey); len(k) > maxKey {
		refuse(out, &refusal{http.StatusBadRequest, fmt.Sprintf("header %s has %d bytes, more than the %d allowed", wire.HeaderKey, len(k), maxKey)})
		return
	}
	// What it may do is asked after enter: a revocation that this misses ends the
	// connection.
	s.api.ServeHTTP(out, r.WithContext(pki.WithPrincipal(r.Context(), p)))
}

// maxKey leaves room for what drover puts before a caller's key.
const maxKey = consensus.MaxKey - 56

// served waits a moment for a controller that is starting.
func (c *controller) served(ctx context.Context) *serving {
	if s := c.serving.Load(); s != nil {
		return s
	}
	enough := time.NewTimer(startPatience)
	defer enough.Stop()
	select {
	case <-c.ready:
	case <-enough.C:
	case <-ctx.Done():
	}
	return c.serving.Load()
}

// caller is who sent a request, as far as connections tell.
func (c *controller) caller(r *http.Request) (pki.Principal, error) {
	if d, ok := r.Context().Value(doorKey{}).(*doorConn); ok {
		r.Header.Set(wire.HeaderContact, d.node.ID)
		return d.who, nil
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

func refuse(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	if r := (*refusal)(nil); errors.As(err, &r) {
		code = r.code
	}
	wire.Refuse(w, code, err.Error())
}

// answer knows whether it has begun. One that refuses a caller ends its connection:
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
