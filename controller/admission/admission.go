// Package admission answers hosts that want to join, over the protocol of pkg/join:
// any controller signs what the leader has decided. Limiting strangers' connections
// is left to the listener.
package admission

import (
	"context"
	"crypto/hpke"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/limit"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
)

// Routes are for hosts without an identity: a token's secret is in the body.
var Routes = table.Routes()

var table = route.Table[func(*Admission, http.ResponseWriter, *http.Request)]{
	{Route: route.Route{Method: http.MethodPost, Pattern: join.Path, At: route.Here, Who: route.Anyone, Body: route.Bounded(join.MaxBody)}, Handle: (*Admission).join},
}

// Vault is the part of the sealed values that admission uses.
type Vault interface {
	// WrapFor wraps the data key for a controller with the HPKE key pub.
	WrapFor(controller string, pub hpke.PublicKey) (*dv1.Sealed, error)
	Authority() (*pki.Authority, error)
}

// Options of New.
type Options struct {
	Snapshot func() *state.Snapshot
	// Propose has the leader decide a command. When it returns, Snapshot includes the
	// effects.
	Propose func(context.Context, *dv1.Command) (*dv1.CommandResult, error)
	Vault   Vault
	Logger  *slog.Logger
}

// Admission is the http.Handler of Routes. It is safe for concurrent use.
type Admission struct {
	o       Options
	refused *limit.Throttle // rate of logged refusals
}

// New returns a handler that admits hosts.
func New(o Options) *Admission { return &Admission{o: o, refused: limit.NewThrottle(time.Minute)} }

// ServeHTTP implements http.Handler.
func (a *Admission) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, _, ok := table.Match(r.Method, r.URL.Path)
	if !ok {
		wire.Refuse(w, http.StatusNotFound, r.Method+" "+r.URL.Path+" is not known here")
		return
	}
	r.Body = h.Body.Limit(w, r.Body)
	h.Handle(a, w, r)
}

func (a *Admission) join(w http.ResponseWriter, r *http.Request) {
	req, answer, err := a.answer(r)
	if err != nil {
		code := http.StatusInternalServerError
		if no := (*join.RefusedError)(nil); errors.As(err, &no) {
			code = no.Code
		}
		a.logRefusal(r, code)
		wire.Refuse(w, code, err.Error())
		return
	}
	a.o.Logger.Info("a host joined", "node", req.Name, "id", answer.Node, "controller", req.Controller)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // a client that is gone will retry
}

func (a *Admission) answer(r *http.Request) (*join.Request, *join.Answer, error) {
	b, err := io.ReadAll(r.Body)
	req := &join.Request{}
	if err == nil {
		err = json.Unmarshal(b, req)
	}
	if err == nil {
		err = req.Validate()
	}
	if err != nil {
		return nil, nil, refuse(http.StatusBadRequest, "reading the request to join: %v", err)
	}
	answer, err := a.admit(r.Context(), req)
	return req, answer, err
}

// logRefusal logs at most one line per source address and minute, without anything
// that the caller chose.
func (a *Admission) logRefusal(r *http.Request, code int) {
	from := limit.Source(remote(r.RemoteAddr))
	if before, ok := a.refused.Allow(from); ok {
		a.o.Logger.Warn("refused a join", "peer", from, "status", code, "refused before", before)
	}
}

// remote is the remote address of a request.
type remote string

func (remote) Network() string  { return "tcp" }
func (r remote) String() string { return string(r) }
