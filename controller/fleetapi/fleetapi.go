// Package fleetapi answers what docker's API has no words for: nodes,
// controllers, tokens, traces. It decides nothing; that is the proposer's.
package fleetapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
	"github.com/drover/drover/pkg/trace"
)

// maxSpans bounds a body of spans.
const maxSpans = 4 << 20

// Prefix of this API's own paths; trace.Path is OTLP's.
const Prefix = "/drover/v1/"

// Fleet is what this package needs of the control plane; controller/fleet has it.
type Fleet interface {
	// State is at least as new as any answer before the call if a leader can be asked.
	State(ctx context.Context, least uint64) (*state.Snapshot, error)
	// Propose has the leader decide c; the state of here has it when it returns.
	Propose(ctx context.Context, c *dv1.Command) (*dv1.CommandResult, error)
	// Observe is what agents reported to the leader, or without one what is known here.
	Observe(ctx context.Context, q fleet.Query) *fleet.Observations
}

// Options of New; all are needed.
type Options struct {
	Traces  *trace.Store
	Gather  func(ctx context.Context, path string) [][]byte // asks the other controllers for their part; nil: there are none
	Fleet   Fleet
	Members func() []Member
	Pin     func() string                                                 // of the fleet's authority
	Grant   func(node, digest string) ([]byte, error)                     // lets a node read an image from others; may be nil
	Remove  func(ctx context.Context, controller string, do func()) error // has do remove one, by name or id; else why the quorum can't do without it
}

type server struct {
	o      Options
	traces *trace.Store
}

// answered is a route and what answers it.
type answered struct {
	method, pattern string
	at              route.Place
	who             route.Who
	do              http.HandlerFunc
}

// surface is the whole of the API.
func (s *server) surface() []answered {
	return []answered{
		{"GET", Prefix + "nodes", route.Leader, route.User, s.nodes},
		{"GET", Prefix + "nodes/{name}", route.Leader, route.User, s.nodeOf},
		{"POST", Prefix + "nodes/{name}", route.Leader, route.Admin, s.updateNode},
		{"DELETE", Prefix + "nodes/{name}", route.Leader, route.Admin, s.removeNode},
		{"GET", Prefix + "controllers", route.Leader, route.User, s.controllers},
		{"DELETE", Prefix + "controllers/{name}", route.Leader, route.Admin, s.removeController},
		{"GET", Prefix + "pools", route.Leader, route.User, s.pools},
		{"POST", Prefix + "pools", route.Leader, route.Admin, s.addPool},
		{"GET", Prefix + "timing", route.Leader, route.User, s.timing},
		{"POST", Prefix + "timing", route.Leader, route.Admin, s.setTiming},
		{"GET", Prefix + "tokens", route.Leader, route.Admin, s.tokens},
		{"POST", Prefix + "tokens", route.Leader, route.Admin, s.newToken},
		{"DELETE", Prefix + "tokens/{id}", route.Leader, route.Admin, s.revokeToken},
		{"GET", Prefix + "tags", route.Leader, route.User | route.Members, s.tag},
		{"POST", trace.Path, route.Here, route.User | route.Members, s.take},
		{"GET", Prefix + "traces", route.Here, route.User, s.list},
		{"GET", Prefix + "traces/last", route.Here, route.User, s.last},
		{"GET", Prefix + "traces/{id}", route.Here, route.User, s.get},
		{"", "/", route.Here, route.User, func(w http.ResponseWriter, r *http.Request) {
			refuse(w, http.StatusNotFound, r.Method+" "+r.URL.Path+" is not known here")
		}},
	}
}

func table(surface []answered) (t route.Table) {
	for _, a := range surface {
		r := route.Route{Method: a.method, Pattern: a.pattern, At: a.at, Who: a.who, Body: maxBody}
		if a.pattern == trace.Path {
			r.Body = maxSpans
		}
		t = append(t, r)
	}
	return t
}

// Routes are what New answers; the last is for what is not there.
var Routes = table((&server{}).surface())

// Serves says whether a path is this API's.
func Serves(path string) bool { return path == trace.Path || strings.HasPrefix(path, Prefix) }

// Match finds a request's route.
func Match(r *http.Request) route.Route {
	i, _ := Routes.Match(r.Method, r.URL.Path)
	return Routes[i]
}

// New answers requests that carry their principal in the context.
func New(o Options) http.Handler {
	s := &server{o, o.Traces}
	surface := s.surface()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i, values := Routes.Match(r.Method, r.URL.Path)
		p, ok := pki.PrincipalFrom(r.Context())
		switch {
		case !ok:
			refuse(w, http.StatusUnauthorized, pki.ErrNoPrincipal.Error())
			return
		case !Routes[i].Who.Has(p):
			refuse(w, http.StatusForbidden, p.URI+" has no role that allows this")
			return
		}
		for k, v := range values {
			r.SetPathValue(k, v)
		}
		r.Body = http.MaxBytesReader(w, r.Body, Routes[i].Body)
		surface[i].do(w, r)
	})
}

func (s *server) take(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "reading spans: "+err.Error())
		return
	}
	req := &collector.ExportTraceServiceRequest{}
	if r.Header.Get("Content-Type") == "application/json" {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, req)
	} else {
		err = proto.Unmarshal(b, req)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "reading spans: "+err.Error())
		return
	}
	_ = s.traces.Add(r.Context(), req.ResourceSpans) // a store in memory takes all
	w.Header().Set("Content-Type", "application/x-protobuf")
	w.WriteHeader(http.StatusOK)
}

func (s *server) list(w http.ResponseWriter, r *http.Request) {
	n := 20
	if v := r.URL.Query().Get("limit"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil || n < 1 {
			refuse(w, http.StatusBadRequest, "limit is not a number above 0: "+v)
			return
		}
	}
	answer(w, http.StatusOK, s.newest(r.Context(), n, r.URL.Query().Get("all") == ""))
}

func (s *server) newest(ctx context.Context, n int, operations bool) []trace.Summary {
	lists := [][]trace.Summary{s.traces.List(n, operations)}
	if s.o.Gather != nil {
		path := "traces?limit=" + strconv.Itoa(n)
		if !operations {
			path += "&all=1"
		}
		for _, b := range s.o.Gather(ctx, path) {
			var l []trace.Summary
			if json.Unmarshal(b, &l) == nil {
				lists = append(lists, l)
			}
		}
	}
	return trace.Newest(n, lists...)
}

func (s *server) last(w http.ResponseWriter, r *http.Request) {
	l := s.newest(r.Context(), 1, true)
	if len(l) == 0 {
		refuse(w, http.StatusNotFound, "no operation was traced yet")
		return
	}
	answer(w, http.StatusOK, s.whole(r.Context(), l[0].ID))
}

// whole joins what all controllers have of a trace, nil if nobody has any.
func (s *server) whole(ctx context.Context, id string) *trace.Trace {
	t := s.traces.Get(id)
	if s.o.Gather == nil {
		return t
	}
	for _, b := range s.o.Gather(ctx, "traces/"+url.PathEscape(id)) {
		o := &trace.Trace{}
		if json.Unmarshal(b, o) != nil {
			continue
		}
		if t == nil {
			t = o
		} else if t.ID == o.ID {
			t.Merge(o)
		}
	}
	return t
}

func (s *server) get(w http.ResponseWriter, r *http.Request) {
	t := s.whole(r.Context(), r.PathValue("id"))
	if t == nil {
		refuse(w, http.StatusNotFound, "no such trace: "+r.PathValue("id")+" (controllers keep the last "+strconv.Itoa(trace.MaxTraces)+")")
		return
	}
	answer(w, http.StatusOK, t)
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // who left needs no answer
}

func refuse(w http.ResponseWriter, code int, msg string) {
	answer(w, code, map[string]string{"message": msg})
}
