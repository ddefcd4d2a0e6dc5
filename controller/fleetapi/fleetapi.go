// Package fleetapi serves the fleet API, drover.v1 over connect: what docker's
// API has no words for. It holds no state and decides nothing; that is the
// proposer's.
package fleetapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
	"github.com/drover/drover/pkg/trace"
)

// Bounds of requests, in bytes.
const (
	maxBody  = 64 << 10
	maxSpans = 4 << 20
)

// Fleet is what the API needs of the control plane; controller/fleet has it.
type Fleet interface {
	// State is at least as new as any answer before the call if a leader can be asked.
	State(ctx context.Context, least uint64) (*state.Snapshot, error)
	// Propose has the leader decide c; the state of here has it when it returns.
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
	// Observe is what agents reported to the leader, or without one what is known here.
	Observe(ctx context.Context, q fleet.Query) *fleet.Observations
}

// Options of New. All are needed but Gather and Grant.
type Options struct {
	Fleet  Fleet
	Traces *trace.Store
	// Gather asks the other controllers for their part of the traces. nil: there are none.
	Gather func(ctx context.Context, path string) [][]byte
	// Members are the controllers, as this one knows raft's configuration.
	Members func() []*dv1.ControllerInfo
	// Pin is the fingerprint of the fleet's authority, for tokens.
	Pin func() string
	// Grant lets a node read an image from others. nil: no node may.
	Grant func(node, digest string) ([]byte, error)
	// Remove calls do to remove a controller, by name or id, and returns its error, or
	// why the quorum can't do without that controller.
	Remove func(ctx context.Context, controller string, do func() error) error
}

type server struct{ Options }

// service makes the handler of a service, which is one of its procedures' too.
type service func(s *server, o ...connect.HandlerOption) http.Handler

func procedure(path string, at route.Place, who route.Who, read bool, of service) route.Handled[service] {
	return route.Handled[service]{Route: route.Route{Method: http.MethodPost, Pattern: path, At: at, Who: who, Body: route.Bounded(maxBody), Read: read}, Handle: of}
}

func reads(path string, at route.Place, who route.Who, of service) route.Handled[service] {
	return procedure(path, at, who, true, of)
}

func changes(path string, at route.Place, who route.Who, of service) route.Handled[service] {
	return procedure(path, at, who, false, of)
}

// table is the whole of the API: where each procedure is answered, and for whom.
// The last row is for what is not there.
var table = route.Table[service]{
	reads(dv1connect.NodesListProcedure, route.Leader, route.User, (*server).nodes),
	reads(dv1connect.NodesGetProcedure, route.Leader, route.User, (*server).nodes),
	changes(dv1connect.NodesUpdateProcedure, route.Leader, route.Admin, (*server).nodes),
	changes(dv1connect.NodesGrantProcedure, route.Leader, route.Admin, (*server).nodes),
	changes(dv1connect.NodesRemoveProcedure, route.Leader, route.Admin, (*server).nodes),
	reads(dv1connect.NodesListPoolsProcedure, route.Leader, route.User, (*server).nodes),
	changes(dv1connect.NodesAddPoolProcedure, route.Leader, route.Admin, (*server).nodes),
	reads(dv1connect.ControllersListProcedure, route.Leader, route.User, (*server).controllers),
	changes(dv1connect.ControllersRemoveProcedure, route.Leader, route.Admin, (*server).controllers),
	reads(dv1connect.ControllersGetTimingProcedure, route.Leader, route.User, (*server).controllers),
	changes(dv1connect.ControllersSetTimingProcedure, route.Leader, route.Admin, (*server).controllers),
	reads(dv1connect.TokensListProcedure, route.Leader, route.Admin, (*server).tokens),
	changes(dv1connect.TokensCreateProcedure, route.Leader, route.Admin, (*server).tokens),
	changes(dv1connect.TokensRevokeProcedure, route.Leader, route.Admin, (*server).tokens),
	reads(dv1connect.ImagesResolveProcedure, route.Leader, route.User|route.Members, (*server).images),
	reads(dv1connect.TracesListProcedure, route.Here, route.User, (*server).traces),
	reads(dv1connect.TracesGetProcedure, route.Here, route.User, (*server).traces),

	{Route: route.Route{Method: http.MethodPost, Pattern: trace.Path, At: route.Here, Who: route.User | route.Members, Body: route.Bounded(maxSpans)},
		Handle: func(s *server, _ ...connect.HandlerOption) http.Handler { return http.HandlerFunc(s.export) }},
	{Route: route.Route{Pattern: "/", At: route.Here, Who: route.User, Body: route.Bounded(maxBody)},
		Handle: func(*server, ...connect.HandlerOption) http.Handler { return http.HandlerFunc(unknown) }},
}

// handlerOf drops the path that a service is mounted at: routes have it.
func handlerOf(_ string, h http.Handler) http.Handler { return h }

func (s *server) nodes(o ...connect.HandlerOption) http.Handler {
	return handlerOf(dv1connect.NewNodesHandler(nodes{s}, o...))
}

func (s *server) controllers(o ...connect.HandlerOption) http.Handler {
	return handlerOf(dv1connect.NewControllersHandler(controllers{s}, o...))
}

func (s *server) tokens(o ...connect.HandlerOption) http.Handler {
	return handlerOf(dv1connect.NewTokensHandler(tokens{s}, o...))
}

func (s *server) images(o ...connect.HandlerOption) http.Handler {
	return handlerOf(dv1connect.NewImagesHandler(images{s}, o...))
}

func (s *server) traces(o ...connect.HandlerOption) http.Handler {
	return handlerOf(dv1connect.NewTracesHandler(traces{s}, o...))
}

func unknown(w http.ResponseWriter, r *http.Request) {
	answerError(w, http.StatusNotFound, connect.CodeUnimplemented, r.Method+" "+r.URL.Path+" is not known here")
}

// Routes are what the API answers; the last is for what is not there.
var Routes = table.Routes()

// API is the fleet API. Requests need their principal in the context. Safe for
// concurrent use.
type API struct{ bound route.Table[http.Handler] }

// New makes an API.
func New(o Options) *API {
	s, a := &server{o}, &API{}
	for _, h := range table {
		a.bound = append(a.bound, route.Handled[http.Handler]{Route: h.Route, Handle: h.Handle(s, connect.WithReadMaxBytes(maxBody))})
	}
	return a
}

// Match implements route.API: the paths of drover.v1 and of OTLP are this API's.
func (a *API) Match(r *http.Request) (route.Route, http.Handler) {
	if r.URL.Path != trace.Path && !strings.HasPrefix(r.URL.Path, "/drover.v1.") {
		return route.Route{}, nil
	}
	h, _, _ := a.bound.Match(r.Method, r.URL.Path)
	return h.Route, routed(h)
}

// ServeHTTP implements http.Handler, for requests that Match finds.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, h := a.Match(r); h != nil {
		h.ServeHTTP(w, r)
		return
	}
	unknown(w, r)
}

// routed is a request that found its route.
type routed route.Handled[http.Handler]

// ServeHTTP implements http.Handler.
func (c routed) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p, ok := pki.PrincipalFrom(r.Context())
	switch {
	case !ok:
		answerError(w, http.StatusUnauthorized, connect.CodeUnauthenticated, pki.ErrNoPrincipal.Error())
	case !c.Who.Has(p):
		answerError(w, http.StatusForbidden, connect.CodePermissionDenied, p.URI+" has no role that allows this")
	default:
		r.Body = c.Body.Limit(w, r.Body)
		c.Handle.ServeHTTP(w, r)
	}
}

// answerError is an error in connect's form for callers of every kind.
func answerError(w http.ResponseWriter, status int, code connect.Code, msg string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": code.String(), "message": msg}) // who left needs no answer
}
