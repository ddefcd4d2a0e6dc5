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

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/engineapi"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/trace"
)

// maxSpans bounds a body of spans.
const maxSpans = 4 << 20

// Prefix of this API's own paths; trace.Path is OTLP's.
const Prefix = "/drover/v1/"

// Options of New; all are needed.
type Options struct {
	Traces  *trace.Store
	Gather  func(ctx context.Context, path string) [][]byte // asks the other controllers for their part; nil: there are none
	Fleet   engineapi.Fleet
	Members func() []Member
	Pin     func() string                                                 // of the fleet's authority
	Grant   func(node, digest string) ([]byte, error)                     // lets a node read an image from others; may be nil
	Remove  func(ctx context.Context, controller string, do func()) error // has do remove one, by name or id; else why the quorum can't do without it
}

type server struct {
	o      Options
	traces *trace.Store
}

// New answers requests that carry their principal in the context.
func New(o Options) http.Handler {
	s := &server{o, o.Traces}
	m := http.NewServeMux()
	m.HandleFunc("GET "+Prefix+"nodes", s.nodes)
	m.HandleFunc("GET "+Prefix+"nodes/{name}", s.nodeOf)
	m.HandleFunc("POST "+Prefix+"nodes/{name}", admin(s.updateNode))
	m.HandleFunc("DELETE "+Prefix+"nodes/{name}", admin(s.removeNode))
	m.HandleFunc("GET "+Prefix+"controllers", s.controllers)
	m.HandleFunc("DELETE "+Prefix+"controllers/{name}", admin(s.removeController))
	m.HandleFunc("GET "+Prefix+"pools", s.pools)
	m.HandleFunc("POST "+Prefix+"pools", admin(s.addPool))
	m.HandleFunc("GET "+Prefix+"timing", s.timing)
	m.HandleFunc("POST "+Prefix+"timing", admin(s.setTiming))
	m.HandleFunc("GET "+Prefix+"tokens", admin(s.tokens))
	m.HandleFunc("POST "+Prefix+"tokens", admin(s.newToken))
	m.HandleFunc("DELETE "+Prefix+"tokens/{id}", admin(s.revokeToken))
	m.HandleFunc("GET "+Prefix+"tags", s.tag)
	m.HandleFunc("POST "+trace.Path, s.take)
	m.HandleFunc("GET "+Prefix+"traces", s.list)
	m.HandleFunc("GET "+Prefix+"traces/last", s.last)
	m.HandleFunc("GET "+Prefix+"traces/{id}", s.get)
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, r.Method+" "+r.URL.Path+" is not known here")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := pki.PrincipalFrom(r.Context())
		switch {
		case !ok:
			refuse(w, http.StatusUnauthorized, pki.ErrNoPrincipal.Error())
		case (r.URL.Path == trace.Path || r.URL.Path == Prefix+"tags") && (p.Has(pki.KindNode) || p.Has(pki.KindController)), p.Has(pki.RoleAdmin), p.Has(pki.KindUser):
			m.ServeHTTP(w, r)
		default:
			refuse(w, http.StatusForbidden, p.URI+" has no role that allows this")
		}
	})
}

// admin lets admins only do what changes who belongs to the fleet.
func admin(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if p, _ := pki.PrincipalFrom(r.Context()); !p.Has(pki.RoleAdmin) {
			refuse(w, http.StatusForbidden, p.URI+" is no admin of this fleet")
			return
		}
		h(w, r)
	}
}

func (s *server) take(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSpans))
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
