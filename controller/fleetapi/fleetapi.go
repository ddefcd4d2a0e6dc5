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

// procedures are the whole of the API beside OTLP's own path: where each is
// answered, and for whom.
var procedures = []struct {
	path string
	at   route.Place
	who  route.Who
	read bool
}{
	{dv1connect.NodesListProcedure, route.Leader, route.User, true},
	{dv1connect.NodesGetProcedure, route.Leader, route.User, true},
	{dv1connect.NodesUpdateProcedure, route.Leader, route.Admin, false},
	{dv1connect.NodesGrantProcedure, route.Leader, route.Admin, false},
	{dv1connect.NodesRemoveProcedure, route.Leader, route.Admin, false},
	{dv1connect.NodesListPoolsProcedure, route.Leader, route.User, true},
	{dv1connect.NodesAddPoolProcedure, route.Leader, route.Admin, false},
	{dv1connect.ControllersListProcedure, route.Leader, route.User, true},
	{dv1connect.ControllersRemoveProcedure, route.Leader, route.Admin, false},
	{dv1connect.ControllersGetTimingProcedure, route.Leader, route.User, true},
	{dv1connect.ControllersSetTimingProcedure, route.Leader, route.Admin, false},
	{dv1connect.TokensListProcedure, route.Leader, route.Admin, true},
	{dv1connect.TokensCreateProcedure, route.Leader, route.Admin, false},
	{dv1connect.TokensRevokeProcedure, route.Leader, route.Admin, false},
	{dv1connect.ImagesResolveProcedure, route.Leader, route.User | route.Members, true},
	{dv1connect.TracesListProcedure, route.Here, route.User, true},
	{dv1connect.TracesGetProcedure, route.Here, route.User, true},
}

// Routes are what New answers; the last is for what is not there.
var Routes = table()

func table() (t route.Table) {
	for _, p := range procedures {
		t = append(t, route.Route{Method: http.MethodPost, Pattern: p.path, At: p.at, Who: p.who, Body: maxBody, Read: p.read})
	}
	return append(t,
		route.Route{Method: http.MethodPost, Pattern: trace.Path, At: route.Here, Who: route.User | route.Members, Body: maxSpans},
		route.Route{Pattern: "/", At: route.Here, Who: route.User, Body: maxBody})
}

// Serves reports whether a path is this API's.
func Serves(path string) bool {
	return path == trace.Path || strings.HasPrefix(path, "/drover.v1.")
}

// Match finds a request's route.
func Match(r *http.Request) route.Route {
	i, _ := Routes.Match(r.Method, r.URL.Path)
	return Routes[i]
}

// New returns a handler of requests that carry their principal in the context.
func New(o Options) http.Handler {
	s := &server{o}
	mux := http.NewServeMux()
	opts := connect.WithHandlerOptions(connect.WithReadMaxBytes(maxBody))
	for _, add := range []func() (string, http.Handler){
		func() (string, http.Handler) { return dv1connect.NewNodesHandler(nodes{s}, opts) },
		func() (string, http.Handler) { return dv1connect.NewControllersHandler(controllers{s}, opts) },
		func() (string, http.Handler) { return dv1connect.NewTokensHandler(tokens{s}, opts) },
		func() (string, http.Handler) { return dv1connect.NewImagesHandler(images{s}, opts) },
		func() (string, http.Handler) { return dv1connect.NewTracesHandler(traces{s}, opts) },
	} {
		mux.Handle(add())
	}
	mux.HandleFunc("POST "+trace.Path, s.export)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i, _ := Routes.Match(r.Method, r.URL.Path)
		p, ok := pki.PrincipalFrom(r.Context())
		switch {
		case !ok:
			answerError(w, http.StatusUnauthorized, connect.CodeUnauthenticated, pki.ErrNoPrincipal.Error())
		case !Routes[i].Who.Has(p):
			answerError(w, http.StatusForbidden, connect.CodePermissionDenied, p.URI+" has no role that allows this")
		case i == len(Routes)-1:
			answerError(w, http.StatusNotFound, connect.CodeUnimplemented, r.Method+" "+r.URL.Path+" is not known here")
		default:
			r.Body = http.MaxBytesReader(w, r.Body, Routes[i].Body)
			mux.ServeHTTP(w, r)
		}
	})
}

// answerError is an error in connect's form for callers of every kind.
func answerError(w http.ResponseWriter, status int, code connect.Code, msg string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": code.String(), "message": msg}) // who left needs no answer
}
