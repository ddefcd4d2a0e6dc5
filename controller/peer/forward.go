package peer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
)

// API answers callers of this controller, who may do what they ask for: api has
// what needs no leader, or is the leader's own.
func (ps *Peers) API(api route.API) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rt, local := api.Match(r)
		if r = ps.admit(w, r, rt, ps.learn(r, rt)); r == nil {
			return
		}
		change := rt.Changes(r.Method)
		if change && r.Header.Get(wire.HeaderKey) == "" {
			r.Header.Set(wire.HeaderKey, newKey()) // what a deposed leader left open can be asked again
		}
		if r.Header.Get(wire.HeaderContact) == "" {
			r.Header.Set(wire.HeaderContact, ps.o.Contact)
		}
		if ps.Leads() || rt.At != route.Leader {
			local.ServeHTTP(w, r)
			return
		}
		ps.forward(w, r, rt, local, change)
	})
}

// maxKept bounds an answer that is read whole, so that one that breaks off is asked
// for again.
const maxKept = 1 << 20

// forward sends a request to the leader, and again to the next one if the first
// dies with it: keys make that safe. A streamed body is sent once.
func (ps *Peers) forward(w http.ResponseWriter, r *http.Request, rt route.Route, local http.Handler, change bool) {
	body, err := newPayload(w, r, rt.Body)
	if err != nil {
		unread(w, err)
		return
	}
	wait := patience
	if !change {
		wait -= ps.Leaderless() // what can be answered without a leader doesn't wait anew each time
	}
	enough := time.NewTimer(wait)
	defer enough.Stop()
	asked := false // a leader, which did not answer
	for {
		changed := ps.o.Log.LeadershipChanged()
		if ps.Leads() {
			r.Body = body.open()
			local.ServeHTTP(w, r)
			return
		}
		if l, id := ps.leader(); l != nil {
			no := ps.to(w, r, l, id, body)
			if no == nil {
				return
			}
			asked = asked || no.mayBeDone
			switch again, err := body.end(); {
			case err != nil:
				unread(w, err)
				return
			case !again: // r's context may be over for want of more of the body: the caller is not
				undecided(w, asked)
				return
			case r.Context().Err() != nil:
				return
			}
		}
		select {
		case <-changed:
		case <-ps.retry():
		case <-enough.C:
			if change || rt.Body.Streamed {
				undecided(w, asked)
				return
			}
			r.Body = body.open()
			w.Header().Set(wire.HeaderStale, "1")
			local.ServeHTTP(w, r)
			return
		case <-r.Context().Done():
			return
		}
	}
}

// undecided answers that no leader did what was asked, or that this isn't known.
func undecided(w http.ResponseWriter, asked bool) {
	msg := fleet.ErrNoLeader.Error()
	if asked {
		w.Header().Set(wire.HeaderUndecided, "1")
		msg += "; " + fleet.ErrUndecided.Error()
	}
	wire.Refuse(w, http.StatusServiceUnavailable, msg)
}

// unread answers who sent a body that could not be read.
func unread(w http.ResponseWriter, err error) {
	if over := (*http.MaxBytesError)(nil); errors.As(err, &over) {
		wire.Refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("request body is larger than %d bytes", over.Limit))
		return
	}
	wire.Refuse(w, http.StatusBadRequest, "reading the request body: "+err.Error())
}

// hop are headers of a connection, not of what goes over it.
var hop = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade", "Te", "Trailer", "Expect"}

// unanswered: a controller said nothing to a request that a caller could be told.
type unanswered struct {
	mayBeDone bool
}

// to answers with what the leader says, or reports that it said nothing: if it is none,
// or if its answer broke off.
func (ps *Peers) to(w http.ResponseWriter, r *http.Request, l *peer, id string, body *payload) *unanswered {
	p, _ := pki.PrincipalFrom(r.Context())
	// A leader that is frozen, or cut off, is not waited for once there is another.
	ctx, cancel := ps.underLeader(r.Context(), id)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.Method, "https://"+l.addr+r.URL.RequestURI(), nil)
	if err != nil {
		wire.Refuse(w, http.StatusBadRequest, err.Error())
		return nil
	}
	lane := body.attach(req, r.ContentLength)
	req.Header = r.Header.Clone()
	for _, h := range hop {
		req.Header.Del(h)
	}
	req.Header.Set(wire.HeaderPrincipal, p.URI)
	if ps.seen.Load() > 0 && req.Header.Get(wire.HeaderIndex) == "" {
		req.Header.Set(wire.HeaderIndex, strconv.FormatUint(ps.seen.Load(), 10))
	}
	resp, err := l.http[lane].Do(req)
	if err != nil {
		var unreached *net.OpError
		return &unanswered{mayBeDone: !errors.As(err, &unreached) || unreached.Op != "dial"}
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusMisdirectedRequest {
		return &unanswered{}
	}
	// While a request has a body to wait for, the HTTP/2 client doesn't look at ctx.
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	// A short answer that breaks off is asked for again; a stream ends as it is.
	short := resp.ContentLength >= 0 && resp.ContentLength < maxKept
	var kept []byte
	if short {
		if kept, err = io.ReadAll(resp.Body); err != nil {
			return &unanswered{mayBeDone: true}
		}
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	for _, h := range hop {
		w.Header().Del(h)
	}
	if i, err := strconv.ParseUint(resp.Header.Get(wire.HeaderIndex), 10, 64); err == nil {
		ps.Saw(i)
	}
	w.WriteHeader(resp.StatusCode)
	if short {
		_, _ = w.Write(kept)
		return nil
	}
	copyFlushing(w, resp.Body)
	return nil
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
func (ps *Peers) Sessions(local http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r = ps.admit(w, r, SessionRoute, ps.Leads()); r == nil {
			return
		}
		enough := time.NewTimer(sessionWait)
		defer enough.Stop()
		for {
			changed := ps.o.Log.LeadershipChanged()
			if ps.Leads() {
				local.ServeHTTP(w, r)
				return
			}
			if l, id := ps.leader(); l != nil {
				ps.session(w, r, l, id)
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

func (ps *Peers) session(w http.ResponseWriter, r *http.Request, l *peer, id string) {
	p, _ := pki.PrincipalFrom(r.Context())
	ctx, cancel := ps.underLeader(r.Context(), id)
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
	client, leave := l.sessions.enter()
	defer leave()
	resp, err := client.Do(req)
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

func newKey() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
