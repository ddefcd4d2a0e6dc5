package peer

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/access"
	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/fleet"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
	"github.com/drover/drover/pkg/trace"
)

// maxCommand bounds a command that a follower sends: more than any entry takes.
const maxCommand = 1 << 20

// View is the fleet as this controller's own log and sessions have it: fleet.Local.
type View interface {
	Observe(ctx context.Context, q fleet.Query) *fleet.Observations
	WaitTask(ctx context.Context, taskID string, done func(*dv1.Task, *dv1.TaskStatus) bool) error
}

// service answers other controllers.
type service struct {
	*Peers
	view  View
	spans *trace.Store
}

func on(method, pattern string, h func(*service, http.ResponseWriter, *http.Request)) route.Handled[func(*service, http.ResponseWriter, *http.Request)] {
	return route.Handled[func(*service, http.ResponseWriter, *http.Request)]{
		Route: route.Route{Method: method, Pattern: pattern, At: route.Here, Who: route.Controller, Body: route.Bounded(maxCommand)}, Handle: h,
	}
}

var table = route.Table[func(*service, http.ResponseWriter, *http.Request)]{
	on("POST", ProposePath, (*service).decide),
	on("POST", prefix+"observe", (*service).observe),
	on("GET", prefix+"tasks/{id}", (*service).follow),
	on("GET", StatusPath, (*service).status),
	on("GET", prefix+"traces", (*service).listTraces),
	on("GET", prefix+"traces/{id}", (*service).getTrace),
}

// Routes are what other controllers ask, over wire.ALPNPeer.
var Routes = table.Routes()

// SessionRoute is a node's session, over the sessions' own protocol or passed on
// over wire.ALPNRelay.
var SessionRoute = route.Route{Method: http.MethodPost, Pattern: dv1connect.SessionOpenProcedure, At: route.Leader, Who: route.Node, Body: route.Streamed(0)}

// Controllers answers other controllers: their commands and questions. The one that asks
// is in the request's context.
func (ps *Peers) Controllers(own View, spans *trace.Store) http.Handler {
	s := &service{ps, own, spans}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, values, ok := table.Match(r.Method, r.URL.Path)
		switch {
		case len(r.Header[wire.HeaderPrincipal]) > 0:
			http.Error(w, "a controller asks this for itself only", http.StatusForbidden)
			return
		case !ok:
			http.NotFound(w, r)
			return
		}
		if r = ps.admit(w, r, h.Route, ps.Leads()); r == nil {
			return
		}
		route.SetValues(r, values)
		r.Body = h.Body.Limit(w, r.Body)
		h.Handle(s, w, r)
	})
}

// Callers answers what another controller passes on for somebody who asked it: a
// request of the API, or a session. The controller is in the request's context; for
// whom it asks, it says.
func (ps *Peers) Callers(api route.API, sessions http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		by, _ := pki.PrincipalFrom(r.Context())
		whose := r.Header.Get(wire.HeaderPrincipal)
		r.Header.Del(wire.HeaderPrincipal)
		if err := access.Speaks(by.URI, whose); err != nil {
			wire.Refuse(w, http.StatusForbidden, err.Error())
			return
		}
		if !ps.Leads() {
			http.Error(w, "not the leader", http.StatusMisdirectedRequest)
			return
		}
		if _, err := access.Known(ps.o.Log.Snapshot(), by.URI); errors.Is(err, pki.ErrRevoked) {
			http.Error(w, err.Error(), http.StatusMisdirectedRequest)
			return
		}
		rt, h := SessionRoute, sessions
		if r.Method != SessionRoute.Method || r.URL.Path != SessionRoute.Pattern {
			rt, h = api.Match(r)
		}
		if r = ps.admit(w, r.WithContext(pki.WithPrincipal(r.Context(), pki.Principal{URI: whose})), rt, true); r == nil {
			return
		}
		if !rt.Body.Streamed {
			// Until a body is read, it takes from what its connection may have in flight:
			// a request that doesn't look at its body would hold up the others.
			body, err := newPayload(w, r, rt.Body)
			if err != nil {
				unread(w, err)
				return
			}
			r.Body = body.open()
		}
		h.ServeHTTP(w, r)
	})
}

// learn has this controller know what the leader does, if what it knows would refuse a
// request: the caller may just have been granted what it asks for. It reports whether
// the state is as new as the request.
func (ps *Peers) learn(r *http.Request, rt route.Route) bool {
	p, _ := pki.PrincipalFrom(r.Context())
	if _, err := access.Allowed(ps.o.Log.Snapshot(), p.URI, access.Request(rt)); err == nil || ps.Leads() {
		return ps.Leads()
	}
	ctx, cancel := context.WithTimeout(r.Context(), askWithin)
	defer cancel()
	d, err := ps.Query(ctx, nil)
	if err != nil {
		return false
	}
	_, err = ps.o.Log.WaitIndex(ctx, d.Index)
	return err == nil
}

// admit gives a request whose caller has the roles of now, if they allow the route.
// Else it is answered, and there is none. Only a state that is sure to be new refuses
// for good: one of before may lack the caller, or a role that it was given since. Who
// was revoked stays so.
func (ps *Peers) admit(w http.ResponseWriter, r *http.Request, rt route.Route, sure bool) *http.Request {
	p, ok := pki.PrincipalFrom(r.Context())
	if !ok {
		wire.Refuse(w, http.StatusUnauthorized, pki.ErrNoPrincipal.Error())
		return nil
	}
	p, err := access.Allowed(ps.o.Log.Snapshot(), p.URI, access.Request(rt))
	switch {
	case err == nil:
		return r.WithContext(pki.WithPrincipal(r.Context(), p))
	case !sure && !errors.Is(err, pki.ErrRevoked):
		wire.Refuse(w, http.StatusServiceUnavailable, "this controller can't ask the leader now; as far as it knows, "+err.Error())
	default:
		wire.Refuse(w, http.StatusForbidden, err.Error())
	}
	return nil
}

func (s *service) decide(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	c := &dv1.Command{}
	if err == nil {
		err = proto.Unmarshal(b, c)
	}
	if err != nil {
		http.Error(w, "reading a command: "+err.Error(), http.StatusBadRequest)
		return
	}
	by, _ := pki.PrincipalFrom(r.Context())
	if err := access.Speaks(by.URI, c.Principal); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	res, err := s.o.Log.Propose(r.Context(), c)
	switch {
	case errors.Is(err, consensus.ErrNotLeader):
		http.Error(w, err.Error(), http.StatusMisdirectedRequest)
		return
	case errors.Is(err, consensus.ErrRetry):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	case errors.Is(err, consensus.ErrKeyReused):
		http.Error(w, err.Error(), http.StatusConflict)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	send(w, res)
}

func send(w http.ResponseWriter, m proto.Message) {
	b, err := proto.Marshal(m)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(b)
}

func (s *service) observe(w http.ResponseWriter, r *http.Request) {
	q := &dv1.Query{}
	b, err := io.ReadAll(r.Body)
	if err == nil {
		err = proto.Unmarshal(b, q)
	}
	if err != nil {
		http.Error(w, "reading a query: "+err.Error(), http.StatusBadRequest)
		return
	}
	i, err := s.o.Log.Verify()
	if err != nil {
		http.Error(w, err.Error(), http.StatusMisdirectedRequest)
		return
	}
	o := s.view.Observe(r.Context(), fleet.Query{Tasks: q.Tasks, Images: q.Images, Ended: q.Ended})
	d := &dv1.Digest{Index: i, Silent: o.Silence, Tasks: o.Tasks, Images: map[string]*dv1.Holders{}}
	for digest, nodes := range o.Images {
		d.Images[digest] = &dv1.Holders{Nodes: nodes}
	}
	send(w, d)
}

func (s *service) status(w http.ResponseWriter, _ *http.Request) {
	if _, id := s.o.Log.Leader(); id != "" {
		w.Header().Set(wire.HeaderLeader, id)
	}
	_, _ = fmt.Fprint(w, s.o.Log.Applied())
}

func (s *service) listTraces(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	_ = json.NewEncoder(w).Encode(s.spans.List(max(n, 1), r.URL.Query().Get("all") == ""))
}

func (s *service) getTrace(w http.ResponseWriter, r *http.Request) {
	t := s.spans.Get(r.PathValue("id"))
	if t == nil {
		http.Error(w, "no such trace", http.StatusNotFound)
		return
	}
	_ = json.NewEncoder(w).Encode(t)
}

// follow answers a follower's Watch: at once, and at each change.
func (s *service) follow(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 32 {
		http.Error(w, "no task id: "+id, http.StatusBadRequest)
		return
	}
	if !s.Leads() {
		http.Error(w, "not the leader", http.StatusMisdirectedRequest)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	rc := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	var last []byte
	say := func(t *dv1.Task, st *dv1.TaskStatus) bool {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&dv1.TaskView{Task: t, Status: st, Index: s.o.Log.Snapshot().Index()})
		if err != nil || slices.Equal(b, last) {
			return err != nil
		}
		last = b
		if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil || rc.Flush() != nil {
			return true
		}
		return false
	}
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	watching.Go(func() { // a deposed leader's view is no good
		defer cancel()
		for ch := s.o.Log.LeadershipChanged(); s.Leads(); {
			select {
			case <-ch:
				ch = s.o.Log.LeadershipChanged()
			case <-ctx.Done():
				return
			}
		}
	})
	_ = s.view.WaitTask(ctx, id, say)
}
