package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

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

// answered is a route of the controllers' own and what answers it.
type answered struct {
	method, pattern string
	do              http.HandlerFunc
}

func (f *Fleet) surface(spans *trace.Store) []answered {
	return []answered{
		{"POST", ProposePath, f.decide},
		{"POST", prefix + "observe", f.observe},
		{"GET", prefix + "tasks/{id}", f.view},
		{"GET", StatusPath, func(w http.ResponseWriter, _ *http.Request) {
			if _, id := f.o.Log.Leader(); id != "" {
				w.Header().Set(wire.HeaderLeader, id)
			}
			_, _ = fmt.Fprint(w, f.o.Log.Applied())
		}},
		{"GET", prefix + "traces", func(w http.ResponseWriter, r *http.Request) {
			n, _ := strconv.Atoi(r.URL.Query().Get("limit"))
			_ = json.NewEncoder(w).Encode(spans.List(max(n, 1), r.URL.Query().Get("all") == ""))
		}},
		{"GET", prefix + "traces/{id}", func(w http.ResponseWriter, r *http.Request) {
			t := spans.Get(r.PathValue("id"))
			if t == nil {
				http.Error(w, "no such trace", http.StatusNotFound)
				return
			}
			_ = json.NewEncoder(w).Encode(t)
		}},
	}
}

func table(surface []answered) (t route.Table) {
	for _, a := range surface {
		t = append(t, route.Route{Method: a.method, Pattern: a.pattern, At: route.Here, Who: route.Controller, Body: maxCommand})
	}
	return t
}

// Routes are what other controllers ask, over wire.ALPNPeer.
var Routes = table((&Fleet{}).surface(nil))

// SessionRoute is a node's session, over the sessions' own protocol or passed on
// over wire.ALPNRelay.
var SessionRoute = route.Route{Method: http.MethodPost, Pattern: dv1connect.SessionOpenProcedure, At: route.Leader, Who: route.Node, Body: 16 << 20}

// Peers answers other controllers: their commands and questions. The one that asks
// is in the request's context.
func (f *Fleet) Peers(spans *trace.Store) http.Handler {
	surface := f.surface(spans)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i, values := Routes.Match(r.Method, r.URL.Path)
		switch {
		case len(r.Header[wire.HeaderPrincipal]) > 0:
			http.Error(w, "a controller asks this for itself only", http.StatusForbidden)
			return
		case i < 0:
			http.NotFound(w, r)
			return
		}
		if r = f.admit(w, r, Routes[i], f.Leads()); r == nil {
			return
		}
		for k, v := range values {
			r.SetPathValue(k, v)
		}
		r.Body = http.MaxBytesReader(w, r.Body, Routes[i].Body)
		surface[i].do(w, r)
	})
}

// Callers answers what another controller passes on for somebody who asked it: a
// request of the API, or a session. The controller is in the request's context; for
// whom it asks, it says.
func (f *Fleet) Callers(api, sessions http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		by, _ := pki.PrincipalFrom(r.Context())
		whose := r.Header.Get(wire.HeaderPrincipal)
		r.Header.Del(wire.HeaderPrincipal)
		if err := access.Speaks(by.URI, whose); err != nil {
			refuse(w, http.StatusForbidden, err.Error())
			return
		}
		if !f.Leads() {
			http.Error(w, "not the leader", http.StatusMisdirectedRequest)
			return
		}
		if _, err := access.Known(f.o.Log.Snapshot(), by.URI); errors.Is(err, pki.ErrRevoked) {
			http.Error(w, err.Error(), http.StatusMisdirectedRequest)
			return
		}
		rt, h := f.o.Match(r), api
		if r.Method == SessionRoute.Method && r.URL.Path == SessionRoute.Pattern {
			rt, h = SessionRoute, sessions
		}
		if r = f.admit(w, r.WithContext(pki.WithPrincipal(r.Context(), pki.Principal{URI: whose})), rt, true); r == nil {
			return
		}
		if rt != SessionRoute {
			// Until a body is read, it takes from what its connection may have in flight:
			// a request that doesn't look at its body would hold up the others.
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, rt.Body))
			if err != nil {
				tooLarge(w, rt)
				return
			}
			again(r, body)
		}
		h.ServeHTTP(w, r)
	})
}

// learn has this controller know what the leader does, if what it knows would refuse a
// request: the caller may just have been granted what it asks for. It reports whether
// the state is as new as the request.
func (f *Fleet) learn(r *http.Request, rt route.Route) bool {
	p, _ := pki.PrincipalFrom(r.Context())
	if _, err := access.Allowed(f.o.Log.Snapshot(), p.URI, access.Request(rt)); err == nil || f.Leads() {
		return f.Leads()
	}
	ctx, cancel := context.WithTimeout(r.Context(), askWithin)
	defer cancel()
	d := f.ask(ctx, nil)
	if d == nil {
		return false
	}
	_, err := f.o.Log.WaitIndex(ctx, d.Index)
	return err == nil
}

// admit gives a request whose caller has the roles of now, if they allow the route.
// Else it is answered, and there is none. Only a state that is sure to be new refuses
// for good: one of before may lack the caller, or a role that it was given since. Who
// was revoked stays so.
func (f *Fleet) admit(w http.ResponseWriter, r *http.Request, rt route.Route, sure bool) *http.Request {
	p, ok := pki.PrincipalFrom(r.Context())
	if !ok {
		refuse(w, http.StatusUnauthorized, pki.ErrNoPrincipal.Error())
		return nil
	}
	p, err := access.Allowed(f.o.Log.Snapshot(), p.URI, access.Request(rt))
	switch {
	case err == nil:
		return r.WithContext(pki.WithPrincipal(r.Context(), p))
	case !sure && !errors.Is(err, pki.ErrRevoked):
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusServiceUnavailable, "this controller can't ask the leader now; as far as it knows, "+err.Error())
	default:
		refuse(w, http.StatusForbidden, err.Error())
	}
	return nil
}

func (f *Fleet) decide(w http.ResponseWriter, r *http.Request) {
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
	res, err := f.o.Log.Propose(r.Context(), c)
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

func (f *Fleet) observe(w http.ResponseWriter, r *http.Request) {
	q := &dv1.Query{}
	b, err := io.ReadAll(r.Body)
	if err == nil {
		err = proto.Unmarshal(b, q)
	}
	if err != nil {
		http.Error(w, "reading a query: "+err.Error(), http.StatusBadRequest)
		return
	}
	i, err := f.o.Log.Verify()
	if err != nil {
		http.Error(w, err.Error(), http.StatusMisdirectedRequest)
		return
	}
	o := f.Local.Observe(r.Context(), fleet.Query{Tasks: q.Tasks, Images: q.Images})
	d := &dv1.Digest{Index: i, Silent: o.Silence, Tasks: o.Tasks, Images: map[string]*dv1.Holders{}}
	for digest, nodes := range o.Images {
		d.Images[digest] = &dv1.Holders{Nodes: nodes}
	}
	send(w, d)
}

// gatherWithin bounds what other controllers are waited for.
const gatherWithin = time.Second

// Gather asks every other controller for path, and gives what answers.
func (r *Relay) Gather(ctx context.Context, path string) (out [][]byte) {
	ctx, cancel := context.WithTimeout(ctx, gatherWithin)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for c := range r.o.Log.Snapshot().Controllers() {
		if c.Id == r.o.Self.ID {
			continue
		}
		all.Go(func() {
			resp, err := r.peer(c.Id, c.Addr).do(ctx, laneTrace, http.MethodGet, prefix+path, nil)
			if err != nil {
				return
			}
			defer func() { _ = resp.Body.Close() }()
			if b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20)); err == nil {
				mu.Lock()
				defer mu.Unlock()
				out = append(out, b)
			}
		})
	}
	all.Wait()
	return out
}

// Status asks a controller how far it is, in raft's index.
func (r *Relay) Status(ctx context.Context, id, addr string) (uint64, error) {
	resp, err := r.peer(id, addr).do(ctx, laneLog, http.MethodGet, StatusPath, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 32))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(b), 10, 64)
}

// API answers callers of this controller, who may do what they ask for: local has
// what needs no leader, or is the leader's own.
func (f *Fleet) API(local http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rt := f.o.Match(r)
		if r = f.admit(w, r, rt, f.learn(r, rt)); r == nil {
			return
		}
		change := rt.Changes(r.Method)
		if change && r.Header.Get(wire.HeaderKey) == "" {
			r.Header.Set(wire.HeaderKey, newKey()) // what a deposed leader left open can be asked again
		}
		if r.Header.Get(wire.HeaderContact) == "" {
			r.Header.Set(wire.HeaderContact, f.Contact())
		}
		if f.Leads() || rt.At != route.Leader {
			local.ServeHTTP(w, r)
			return
		}
		f.forward(w, r, rt, local, change)
	})
}

// maxKept bounds an answer that is read whole, so that one that breaks off is asked
// for again.
const maxKept = 1 << 20

// forward sends a request to the leader, and again to the next one if the first
// dies with it: keys make that safe.
func (f *Fleet) forward(w http.ResponseWriter, r *http.Request, rt route.Route, local http.Handler, change bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, rt.Body))
	if err != nil {
		tooLarge(w, rt)
		return
	}
	p, _ := pki.PrincipalFrom(r.Context())
	wait := patience
	if !change {
		wait -= f.leaderless() // what can be answered without a leader doesn't wait anew each time
	}
	enough := time.NewTimer(wait)
	defer enough.Stop()
	asked := false // a leader, which did not answer
	for {
		changed := f.o.Log.LeadershipChanged()
		if f.Leads() {
			again(r, body)
			local.ServeHTTP(w, r)
			return
		}
		if l, id := f.leader(); l != nil {
			if f.to(w, r, l, id, body, p, &asked) {
				return
			}
		}
		select {
		case <-changed:
		case <-time.After(pause):
		case <-enough.C:
			if change {
				w.Header().Set("Retry-After", "1")
				msg := fleet.ErrNoLeader.Error()
				if asked {
					w.Header().Set(wire.HeaderUndecided, "1")
					msg += "; " + fleet.ErrUndecided.Error()
				}
				refuse(w, http.StatusServiceUnavailable, msg)
				return
			}
			again(r, body)
			w.Header().Set(wire.HeaderStale, "1")
			local.ServeHTTP(w, r)
			return
		case <-r.Context().Done():
			return
		}
	}
}

func tooLarge(w http.ResponseWriter, rt route.Route) {
	refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("request body is larger than %d bytes", rt.Body))
}

func again(r *http.Request, body []byte) { r.Body = io.NopCloser(bytes.NewReader(body)) }

// hop are headers of a connection, not of what goes over it.
var hop = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade", "Te", "Trailer"}

// to answers with what the leader says; false, with nothing said, if it is none, or
// if its answer broke off: then it was asked.
func (f *Fleet) to(w http.ResponseWriter, r *http.Request, l *peer, id string, body []byte, p pki.Principal, asked *bool) bool {
	// A leader that is frozen, or cut off, is not waited for once there is another.
	ctx, cancel := f.underLeader(r.Context(), id)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.Method, "https://"+l.addr+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return true
	}
	req.Header = r.Header.Clone()
	for _, h := range hop {
		req.Header.Del(h)
	}
	req.Header.Set(wire.HeaderPrincipal, p.URI)
	if f.seen.Load() > 0 && req.Header.Get(wire.HeaderIndex) == "" {
		req.Header.Set(wire.HeaderIndex, strconv.FormatUint(f.seen.Load(), 10))
	}
	resp, err := l.http[laneForward].Do(req)
	if err != nil {
		var unreached *net.OpError
		*asked = *asked || !errors.As(err, &unreached) || unreached.Op != "dial"
		return r.Context().Err() != nil
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusMisdirectedRequest {
		return false
	}
	// A short answer that breaks off is asked for again; a stream ends as it is.
	short := resp.ContentLength >= 0 && resp.ContentLength < maxKept
	var kept []byte
	if short {
		if kept, err = io.ReadAll(resp.Body); err != nil {
			*asked = true
			return r.Context().Err() != nil
		}
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	for _, h := range hop {
		w.Header().Del(h)
	}
	if i, err := strconv.ParseUint(resp.Header.Get(wire.HeaderIndex), 10, 64); err == nil {
		f.Saw(i)
	}
	w.WriteHeader(resp.StatusCode)
	if short {
		_, _ = w.Write(kept)
		return true
	}
	copyFlushing(w, resp.Body)
	return true
}

func copyFlushing(w http.ResponseWriter, r io.Reader) {
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil || rc.Flush() != nil {
				return
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				panic(http.ErrAbortHandler) // the caller must see that it broke off
			}
			return
		}
	}
}

// Sessions passes a node's session through to the leader, or has local take it.
// It ends when another controller leads: the agent then says hello again.
func (f *Fleet) Sessions(local http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r = f.admit(w, r, SessionRoute, f.Leads()); r == nil {
			return
		}
		enough := time.NewTimer(sessionWait)
		defer enough.Stop()
		for {
			changed := f.o.Log.LeadershipChanged()
			if f.Leads() {
				local.ServeHTTP(w, r)
				return
			}
			if l, id := f.leader(); l != nil {
				f.session(w, r, l, id)
				return
			}
			select {
			case <-changed:
			case <-enough.C:
				http.Error(w, fleet.ErrNoLeader.Error(), http.StatusServiceUnavailable)
				return
			case <-r.Context().Done():
				return
			}
		}
	})
}

func (f *Fleet) session(w http.ResponseWriter, r *http.Request, l *peer, id string) {
	p, _ := pki.PrincipalFrom(r.Context())
	ctx, cancel := f.underLeader(r.Context(), id)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.Method, "https://"+l.addr+r.URL.RequestURI(), r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	req.ContentLength = -1
	req.Header = r.Header.Clone()
	req.Header.Set(wire.HeaderPrincipal, p.URI)
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex() // HTTP/2 is so anyway
	resp, err := l.http[laneSession].Do(req)
	if err != nil {
		http.Error(w, "the leader does not answer: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	// While a request has a body to wait for, the HTTP/2 client doesn't look at ctx.
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	copyFlushing(w, resp.Body)
}

func refuse(w http.ResponseWriter, code int, msg string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, "{\"message\":%q}\n", msg)
}
