package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/consensus"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
)

// heard is what a leader was asked.
type heard struct {
	mu   sync.Mutex // guards the fields below
	all  []string   // method, path, key and body of each request
	from []string   // principals
}

func (h *heard) note(r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get(wire.HeaderKey)+" "+string(b))
	h.from = append(h.from, r.Header.Get(wire.HeaderPrincipal))
}

func (h *heard) get() []string { h.mu.Lock(); defer h.mu.Unlock(); return slices.Clone(h.all) }

// inTurn has m follow the leader one, which answers the first request with first; later
// ones, and all to the leader two, are answered with next. It returns what was asked.
func inTurn(t *testing.T, m *member, first, next http.HandlerFunc) *heard {
	t.Helper()
	h := &heard{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.note(r); len(h.get()) == 1 {
			first(w, r)
			return
		}
		next(w, r)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	m.addrs = map[string]string{"one": srv.Listener.Addr().String(), "two": srv.Listener.Addr().String()}
	m.leads("one")
	return h
}

// breakOff answers with the beginning of what it announces.
func breakOff(w http.ResponseWriter, length string) {
	if length != "" {
		w.Header().Set("Content-Length", length)
	}
	w.Header().Set("From", "one")
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, "half")
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// A leader that dies with a request in any way is followed by the next, which gets the
// same request with the same key; the caller sees nothing of the first.
func TestARequestOutlivesItsLeader(t *testing.T) {
	for name, dies := range map[string]func(w http.ResponseWriter, r *http.Request){
		"before it answers":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"within a short answer": func(w http.ResponseWriter, _ *http.Request) { breakOff(w, "8") },
		"as a leader only": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "not the leader", http.StatusMisdirectedRequest)
		},
		"without anybody seeing": nil,
	} {
		for _, ask := range []struct{ method, url, key, body string }{
			{"POST", "/containers/create?name=web", "", `{"Image":"x"}`},
			{"POST", "/containers/create?name=web", "mine", `{"Image":"x"}`},
			{"GET", "/containers/json?all=1", "", ""},
		} {
			t.Run(name+"/"+ask.method+ask.key, func(t *testing.T) {
				m := newMember()
				asked := inTurn(t, m, func(w http.ResponseWriter, r *http.Request) {
					if dies == nil {
						m.leads("two")
						<-r.Context().Done()
						return
					}
					dies(w, r)
				}, func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set(wire.HeaderIndex, "42")
					w.WriteHeader(http.StatusTeapot)
					_, _ = io.WriteString(w, "two's")
				})
				f := follower(t, m)
				r := httptest.NewRequest(ask.method, ask.url, strings.NewReader(ask.body))
				r.Header.Set(wire.HeaderPrincipal, "spiffe://fleet/user/somebody-else")
				if ask.key != "" {
					r.Header.Set(wire.HeaderKey, ask.key)
				}
				w := httptest.NewRecorder()
				as(caller, f.API(docker{http.NotFoundHandler()})).ServeHTTP(w, r)
				if w.Code != http.StatusTeapot || w.Body.String() != "two's" || w.Header().Get("From") != "" {
					t.Errorf("the caller was answered %d %v %q", w.Code, w.Header(), w.Body)
				}
				if f.Seen() != 42 {
					t.Errorf("the index of the answer is noted as %d", f.Seen())
				}
				all := asked.get()
				if len(all) != 2 || all[0] != all[1] {
					t.Fatalf("leaders were asked %q", all)
				}
				key := strings.Split(all[0], " ")[2]
				if keyed := key != ""; keyed != (ask.method == "POST") || ask.key != "" && key != ask.key || !strings.HasSuffix(all[0], " "+ask.body) {
					t.Errorf("leaders were asked %q", all)
				}
				if !slices.Equal(asked.from, []string{caller, caller}) {
					t.Errorf("they were asked for %q", asked.from)
				}
			})
		}
	}
}

// What was passed on already can't be taken back: a long answer that breaks off breaks
// off for the caller, too, and is not followed by another one's.
func TestAStreamedAnswerThatBreaksOffIsNotGivenAnEnd(t *testing.T) {
	fronts(t, func(t *testing.T, serve func(http.Handler) *httptest.Server) {
		m := newMember()
		asked := inTurn(t, m, func(w http.ResponseWriter, _ *http.Request) { breakOff(w, "") }, func(http.ResponseWriter, *http.Request) {})
		front := serve(as(caller, follower(t, m).API(docker{http.NotFoundHandler()})))
		resp, err := front.Client().Get(front.URL + "/containers/json")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil || !strings.HasPrefix("half", string(b)) || len(asked.get()) != 1 {
			t.Errorf("%q, %v; leaders were asked %q", b, err, asked.get())
		}
	})
}

// A proposal is sent to the next leader only if the first surely didn't decide it, or if
// its key makes that safe. What was refused is not asked again.
func TestAProposalIsSentAgainOnlyWhereThatIsSafe(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "its words", code) }
	}
	never, keyed, always := []bool{false, false}, []bool{false, true}, []bool{true, true}
	for name, c := range map[string]struct {
		first http.HandlerFunc
		again []bool  // whether it is sent again: without a key, with one
		err   []error // what the caller gets where it isn't; nil: the leader's words
	}{
		"not the leader":      {status(421), always, nil},
		"it may be decided":   {status(503), keyed, []error{consensus.ErrRetry}},
		"it died":             {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, keyed, []error{consensus.ErrRetry}},
		"half an answer":      {func(w http.ResponseWriter, _ *http.Request) { breakOff(w, "8") }, keyed, []error{consensus.ErrRetry}},
		"no protobuf":         {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "\xff\xff") }, keyed, []error{consensus.ErrRetry}},
		"a proxy's answer":    {status(502), keyed, []error{consensus.ErrRetry}},
		"the key was another": {status(409), never, []error{consensus.ErrKeyReused, consensus.ErrKeyReused}},
		"it failed":           {status(500), never, nil},
		"it could not read":   {status(400), never, nil},
		"it may not":          {status(403), never, nil},
		"it knows no such":    {status(404), never, nil},
		"it was too long":     {status(413), never, nil},
	} {
		for i, key := range []string{"", "k"} {
			t.Run(name+key, func(t *testing.T) {
				m := newMember()
				asked := inTurn(t, m, c.first, func(w http.ResponseWriter, _ *http.Request) { send(w, &dv1.CommandResult{Index: 7}) })
				f := follower(t, m)
				res, err := f.Propose(t.Context(), &dv1.Command{Key: key, Principal: caller})
				all := asked.get()
				if again := len(all) == 2; again != c.again[i] || len(all) > 2 {
					t.Fatalf("leaders were asked %q", all)
				}
				switch {
				case c.again[i]:
					if err != nil || res.GetIndex() != 7 || f.Seen() != 7 || all[0] != all[1] {
						t.Errorf("%v, %v; %d is noted", res, err, f.Seen())
					}
				case c.err == nil:
					if err == nil || !strings.Contains(err.Error(), "its words") || errors.Is(err, consensus.ErrRetry) {
						t.Errorf("%v, %v", res, err)
					}
				default:
					if !errors.Is(err, c.err[i]) {
						t.Errorf("%v, %v, want %v", res, err, c.err[i])
					}
				}
			})
		}
	}
}

// Wherever it is made, a command that is larger than any entry is refused as the leader
// refuses it: with its size, and not as one that may have been decided.
func TestACommandThatNoLeaderReadsIsRefusedHere(t *testing.T) {
	m := newMember()
	refuse := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }
	asked := inTurn(t, m, refuse, refuse)
	res, err := follower(t, m).Propose(t.Context(), &dv1.Command{Key: "k", Hash: make([]byte, maxCommand)})
	if err != nil || res.GetError().GetKind() != dv1.Error_INVALID || !strings.Contains(res.GetError().GetMessage(), "bytes") || len(asked.get()) > 0 {
		t.Errorf("%v, %v; the leader was asked %d times", res, err, len(asked.get()))
	}
}

// A stream of views is as good as its whole messages.
func TestViews(t *testing.T) {
	view := func(n uint64, name ...string) []byte {
		b, err := proto.Marshal(&dv1.TaskView{Index: n, Task: &dv1.Task{Name: strings.Join(name, "")}})
		if err != nil {
			t.Fatal(err)
		}
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
	}
	for name, c := range map[string]struct {
		b    []byte
		seen int
		good bool // it ends because the third view is what was waited for
	}{
		"whole":           {slices.Concat(view(1), view(2), view(3), view(4)), 3, true},
		"an empty one":    {slices.Concat(view(0), view(1), view(3)), 3, true},
		"nothing":         {nil, 0, false},
		"an early end":    {slices.Concat(view(1), view(2)), 2, false},
		"half a length":   {append(view(1), 0, 0), 1, false},
		"half a view":     {slices.Concat(view(1), view(3)[:5]), 1, false},
		"too long a view": {slices.Concat(view(1), view(3, strings.Repeat("x", 1<<20))), 1, false},
		"a lie":           {binary.BigEndian.AppendUint32(nil, 1<<32-1), 0, false},
		"garbage":         {slices.Concat(view(1), []byte{0, 0, 0, 2, 0xff, 0xff}, view(3)), 1, false},
	} {
		seen := 0
		err := views(bytes.NewReader(c.b), func(v *dv1.TaskView) bool { seen++; return v.Index == 3 })
		if seen != c.seen || (err == nil) != c.good {
			t.Errorf("%s: %d views, %v", name, seen, err)
		}
	}
}

// Who asks a controller over the controllers' own protocol, for what, as what.
func TestControllersAnswerControllersForThemselves(t *testing.T) {
	const other, gone = "spiffe://fleet/controller/c2", "spiffe://fleet/controller/gone"
	m := newMember()
	m.apply(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: other, Roles: []string{pki.KindController}}}},
		&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: gone, Roles: []string{pki.KindController}, Revoked: true}}})
	f := follower(t, m)
	h := f.Controllers(f.fleet.Local, nil)
	command := func(principal string) string {
		b, err := proto.Marshal(&dv1.Command{Principal: principal})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const task = prefix + "tasks/"
	for _, c := range []struct {
		who, leader, method, path, body, principal string
		code                                       int
		words                                      string
	}{
		{other, "me", "GET", StatusPath, "", "", 200, "0"},
		{other, "", "GET", StatusPath, "", "", 200, "0"},
		{other, "me", "GET", StatusPath, "", other, 403, "for itself only"},
		{other, "me", "POST", ProposePath, command(other), caller, 403, "for itself only"},
		{other, "me", "POST", StatusPath, "", "", 404, ""},
		{other, "me", "GET", "/peer/v1/nothing", "", "", 404, ""},
		{other, "me", "GET", "/containers/json", "", "", 404, ""},
		{caller, "me", "GET", StatusPath, "", "", 403, "lacks the required role"},
		{agent, "me", "POST", ProposePath, command(agent), "", 403, "lacks the required role"},
		{agent + "/uid/0", "me", "GET", StatusPath, "", "", 403, ""},
		{gone, "me", "GET", StatusPath, "", "", 403, "revoked"},
		{gone, "", "GET", StatusPath, "", "", 403, "revoked"},
		{"spiffe://fleet/controller/new", "me", "GET", StatusPath, "", "", 403, "not known"},
		{"spiffe://fleet/controller/new", "", "GET", StatusPath, "", "", 503, "can't ask the leader"},

		{other, "me", "POST", ProposePath, "\xff", "", 400, "reading a command"},
		{other, "me", "POST", ProposePath, strings.Repeat("x", maxCommand+1), "", 400, "too large"},
		{other, "me", "POST", ProposePath, command(gone), "", 403, "may not speak for"},
		{other, "me", "POST", ProposePath, command("spiffe://fleet/controller/me"), "", 403, "may not speak for"},
		{other, "", "POST", ProposePath, command(other), "", 421, ""},
		{other, "me", "POST", prefix + "observe", "\xff", "", 400, "reading a query"},
		{other, "", "POST", prefix + "observe", "", "", 421, ""},
		{other, "me", "GET", task + "xyz", "", "", 400, "no task id"},
		{other, "me", "GET", task + strings.Repeat("07", 31), "", "", 400, "no task id"},
		{other, "", "GET", task + strings.Repeat("07", 32), "", "", 421, "not the leader"},
	} {
		m.leads(c.leader)
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		if c.principal != "" {
			r.Header.Set(wire.HeaderPrincipal, c.principal)
		}
		w := httptest.NewRecorder()
		as(c.who, h).ServeHTTP(w, r)
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.words) {
			t.Errorf("%s %s by %s (leader %q, for %q): %d %s, want %d %q", c.method, c.path, c.who, c.leader, c.principal, w.Code, w.Body, c.code, c.words)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", StatusPath, nil))
	if w.Code != http.StatusUnauthorized {
		t.Errorf("without an identity: %d %s", w.Code, w.Body)
	}
}

// For whom a controller passes on a request decides what it may do, not that it is a
// controller; the next leader is asked instead of one that knows itself deposed.
func TestARelayedRequestIsItsCallers(t *testing.T) {
	const by, gone, user = "spiffe://fleet/controller/c2", "spiffe://fleet/controller/gone", "spiffe://fleet/user/u"
	m := newMember()
	for uri, i := range map[string]*dv1.Identity{by: {Roles: []string{pki.KindController}}, gone: {Roles: []string{pki.KindController}, Revoked: true}, user: {Roles: []string{pki.KindUser}}} {
		i.Uri = uri
		m.apply(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: i}})
	}
	f := follower(t, m)
	var asked string
	note := func(what string) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			p, _ := pki.PrincipalFrom(r.Context())
			asked = what + " by " + p.URI + " " + strings.Join(p.Roles, ",") + r.Header.Get(wire.HeaderPrincipal)
		})
	}
	h := f.Callers(docker{note("api")}, note("session"))
	for _, c := range []struct {
		by, whose, leader, method, path string
		code                            int
		asked                           string
	}{
		{by, user, "me", "GET", "/containers/json", 200, "api by " + user + " user"},
		{by, caller, "me", "GET", "/containers/json", 200, "api by " + caller + " admin"},
		{by, by + "/uid/5", "me", "GET", "/containers/json", 200, "api by " + by + "/uid/5 admin"},
		{by, agent, "me", "POST", SessionRoute.Pattern, 200, "session by " + agent + " node"},
		{by, agent, "me", "GET", SessionRoute.Pattern, 403, ""},
		{by, agent, "me", "GET", "/containers/json", 403, ""},
		{by, user, "me", "POST", SessionRoute.Pattern, 403, ""},
		{by, by, "me", "POST", SessionRoute.Pattern, 403, ""},
		{by, by, "me", "GET", "/containers/json", 403, ""},
		{by, gone, "me", "GET", "/containers/json", 403, ""},
		{by, gone + "/uid/0", "me", "GET", "/containers/json", 403, ""},
		{by, "", "me", "GET", "/containers/json", 403, ""},
		{by, "unix:0", "me", "GET", "/containers/json", 403, ""},
		{by, "token:1", "me", "GET", "/containers/json", 403, ""},
		{user, user, "me", "GET", "/containers/json", 403, ""},
		{agent, user, "me", "GET", "/containers/json", 403, ""},
		{"", user, "me", "GET", "/containers/json", 403, ""},
		{gone, user, "me", "GET", "/containers/json", 421, ""},
		{by, user, "c2", "GET", "/containers/json", 421, ""},
		{by, user, "", "GET", "/containers/json", 421, ""},
	} {
		m.leads(c.leader)
		asked = ""
		r := httptest.NewRequest(c.method, c.path, nil)
		if c.whose != "" {
			r.Header.Set(wire.HeaderPrincipal, c.whose)
		}
		w := httptest.NewRecorder()
		as(c.by, h).ServeHTTP(w, r)
		if w.Code != c.code || asked != c.asked {
			t.Errorf("%s %s for %q by %q (leader %q): %d %s, asked %q", c.method, c.path, c.whose, c.by, c.leader, w.Code, w.Body, asked)
		}
	}
}
