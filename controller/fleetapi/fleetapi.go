// Package fleetapi serves the fleet API, drover.v1 over connect: what docker's API
// lacks. It holds no state and decides nothing; that is left to the proposer.
package fleetapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	oteltrace "go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
	"github.com/drover/drover/pkg/trace"
)

// Limits of requests, in bytes.
const (
	maxBody  = 64 << 10
	maxRun   = create.MaxBody*4/3 + maxBody // docker's request is in base64 in JSON
	maxSpans = 4 << 20
)

// Fleet is the control plane as the API uses it; controller/fleet implements it.
type Fleet interface {
	// State is at least as new as any response before the call, if a leader can be
	// asked.
	State(ctx context.Context, least uint64) (*state.Snapshot, error)
	// Propose has the leader decide c; when it returns, the state here has the effects.
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
	// Nodes has what agents reported to the leader, or without one what is known here.
	fleet.Nodes
}

// Options configures New. All but Tracer, Gather and Grant are required.
type Options struct {
	Fleet  Fleet
	Tracer oteltrace.Tracer // nil: none
	Traces *trace.Store
	// Gather asks the other controllers for their part of the traces; nil if there are
	// none.
	Gather func(ctx context.Context, path string) [][]byte
	// Members returns the controllers, according to this one's view of raft's
	// configuration.
	Members func() []*dv1.ControllerInfo
	// Pin returns the fingerprint of the fleet's authority, for tokens.
	Pin func() string
	// Grant lets a node read an image's content from others; nil grants nothing.
	Grant func(node, digest string) ([]byte, error)
	// Remove calls do to remove a controller, by name or id. It returns do's error, or
	// why the quorum can't lose that controller.
	Remove func(ctx context.Context, controller string, do func() error) error
	// Move moves the data of a volume for as long as ctx lasts: begin begins it.
	Move func(ctx context.Context, volume, copied []byte, begin func() (*dv1.CommandResult, error), progress func(written, total int64)) error
}

type server struct{ Options }

// service returns a function that creates a service's handler, which serves all of
// its procedures.
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

// upTo sets a procedure's own limit of requests.
func upTo(n int64, h route.Handled[service]) route.Handled[service] {
	h.Body = route.Bounded(n)
	return h
}

// table is the whole API: where each procedure is handled, and who may call it. The
// last row matches everything else.
var table = route.Table[service]{
	reads(dv1connect.NodesListProcedure, route.Leader, route.User, (*server).nodes),
	reads(dv1connect.NodesGetProcedure, route.Leader, route.User, (*server).nodes),
	changes(dv1connect.NodesUpdateProcedure, route.Leader, route.Admin, (*server).nodes),
	changes(dv1connect.NodesGrantProcedure, route.Leader, route.Admin, (*server).nodes),
	changes(dv1connect.NodesRemoveProcedure, route.Leader, route.Admin, (*server).nodes),
	reads(dv1connect.NodesListPoolsProcedure, route.Leader, route.User, (*server).nodes),
	changes(dv1connect.NodesAddPoolProcedure, route.Leader, route.Admin, (*server).nodes),
	reads(dv1connect.PortsListProcedure, route.Leader, route.User, (*server).ports),
	reads(dv1connect.NodesCheckNetworksProcedure, route.Leader, route.User, (*server).nodes),
	reads(dv1connect.NodesListWaysProcedure, route.Leader, route.User, (*server).nodes),
	upTo(maxRun, changes(dv1connect.RunsCreateProcedure, route.Leader, route.User, (*server).runs)),
	changes(dv1connect.VolumesMoveProcedure, route.Leader, route.User, (*server).volumes),
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

// handlerOf drops the path that a service is mounted at: the routes have it.
func handlerOf(_ string, h http.Handler) http.Handler { return h }

func (s *server) nodes(o ...connect.HandlerOption) http.Handler {
	return handlerOf(dv1connect.NewNodesHandler(nodes{s}, o...))
}

func (s *server) ports(o ...connect.HandlerOption) http.Handler {
	return handlerOf(dv1connect.NewPortsHandler(ports{s}, o...))
}

func (s *server) runs(o ...connect.HandlerOption) http.Handler {
	return handlerOf(dv1connect.NewRunsHandler(runs{s}, o...))
}

func (s *server) volumes(o ...connect.HandlerOption) http.Handler {
	return handlerOf(dv1connect.NewVolumesHandler(volumes{s}, o...))
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

// Routes are the API's routes; the last one matches everything else.
var Routes = table.Routes()

// API is the fleet API. Requests need their principal in the context. It is safe for
// concurrent use.
type API struct{ bound route.Table[http.Handler] }

// New returns an API.
func New(o Options) *API {
	if o.Tracer == nil {
		o.Tracer = noop.NewTracerProvider().Tracer("")
	}
	s, a := &server{o}, &API{}
	for _, h := range table {
		a.bound = append(a.bound, route.Handled[http.Handler]{Route: h.Route, Handle: s.traced(h.Route, h.Handle(s, connect.WithReadMaxBytes(int(h.Body.Max))))})
	}
	return a
}

// traced records a span for each request of what the leader answers, in the caller's
// trace. It never starts a trace: agents ask too.
func (s *server) traced(rt route.Route, h http.Handler) http.Handler {
	if rt.At != route.Leader {
		return h
	}
	name := "fleetapi " + strings.TrimPrefix(rt.Pattern, "/")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		if !oteltrace.SpanContextFromContext(ctx).IsValid() {
			h.ServeHTTP(w, r)
			return
		}
		p, _ := pki.PrincipalFrom(ctx)
		ctx, span := s.Tracer.Start(ctx, name, oteltrace.WithSpanKind(oteltrace.SpanKindServer), oteltrace.WithAttributes(attribute.String("principal", p.URI)))
		defer span.End()
		h.ServeHTTP(w, r.WithContext(ctx))
	})
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

// routed is a request with its route.
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

// answerError writes an error in connect's format, for any kind of caller.
func answerError(w http.ResponseWriter, status int, code connect.Code, msg string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": code.String(), "message": msg}) // it fails only if the client is gone
}
