package fleetapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/route"
	"github.com/drover/drover/pkg/trace"
)

// fake is a fleet of one state, which takes down what is proposed.
type fake struct {
	snap     *state.Snapshot
	least    uint64 // that the last read asked for
	silent   map[string]int64
	holders  []string
	proposed []*dv1.Command
	answers  []*dv1.CommandResult // in turn; then empty ones
	err      error
	agents   map[string]http.HandlerFunc // by node; the others' ports are closed
	states   int                         // how often the state was read
}

func (f *fake) Agent(node string) (*http.Client, error) {
	if f.snap.Node(node) == nil {
		return nil, fmt.Errorf("no node %s", node)
	}
	return &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		h := f.agents[node]
		if h == nil {
			return nil, errors.New("no route to host")
		}
		w := httptest.NewRecorder()
		h(w, r)
		return w.Result(), r.Context().Err()
	})}, nil
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (f *fake) State(_ context.Context, least uint64) (*state.Snapshot, error) {
	f.least = least
	f.states++
	return f.snap, f.err
}
func (f *fake) Observe(_ context.Context, q fleet.Query) *fleet.Observations {
	o := &fleet.Observations{Silence: f.silent, Images: map[string][]string{}}
	for _, i := range q.Images {
		o.Images[i] = f.holders
	}
	return o
}
func (f *fake) last() *dv1.Command { return f.proposed[len(f.proposed)-1] }
func (f *fake) put(t *testing.T, effects ...*dv1.Effect) {
	t.Helper()
	txn := state.NewTxn(f.snap)
	for _, e := range effects {
		if err := txn.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	f.snap = txn.View()
}

func (f *fake) Propose(_ context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	if f.err != nil {
		return nil, f.err
	}
	f.proposed = append(f.proposed, proto.CloneOf(c))
	if n := len(f.proposed); n <= len(f.answers) {
		return f.answers[n-1], nil
	}
	return &dv1.CommandResult{Index: 7, Changed: true}, nil
}

// served is an API, and whose requests come to it.
type served struct {
	*fake
	o   Options
	url string
	who pki.Principal
}

var (
	admin = pki.Principal{Kind: pki.KindUser, URI: "spiffe://c/user/a", ID: "a", Roles: []string{pki.RoleAdmin}}
	user  = pki.Principal{Kind: pki.KindUser, URI: "spiffe://c/user/u", ID: "u", Roles: []string{pki.KindUser}}
	node1 = pki.Principal{Kind: pki.KindNode, URI: "spiffe://c/node/n1", ID: "n1", Roles: []string{pki.KindNode}}
)

func serve(t *testing.T, change ...func(*Options)) *served {
	t.Helper()
	f := &served{fake: &fake{snap: state.NewStore().Snapshot()}, who: admin}
	f.o = Options{
		Fleet: f.fake, Traces: &trace.Store{}, Pin: func() string { return pki.Pin([]byte("authority")) },
		Members: func() []*dv1.ControllerInfo {
			return []*dv1.ControllerInfo{{Id: "n2", Name: "b", Role: dv1.ControllerInfo_VOTER}, {Id: "n1", Name: "a", Role: dv1.ControllerInfo_LEADER}}
		},
		Remove: func(_ context.Context, name string, do func() error) error {
			if name == "needed" {
				return errors.New("the quorum needs it")
			}
			return do()
		},
	}
	for _, c := range change {
		c(&f.o)
	}
	h := New(f.o)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.who.URI != "" {
			r = r.WithContext(pki.WithPrincipal(r.Context(), f.who))
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	f.url = srv.URL
	return f
}

func (f *served) nodes() dv1connect.NodesClient {
	return dv1connect.NewNodesClient(http.DefaultClient, f.url)
}
func (f *served) controllers() dv1connect.ControllersClient {
	return dv1connect.NewControllersClient(http.DefaultClient, f.url)
}
func (f *served) tokens() dv1connect.TokensClient {
	return dv1connect.NewTokensClient(http.DefaultClient, f.url)
}
func (f *served) images() dv1connect.ImagesClient {
	return dv1connect.NewImagesClient(http.DefaultClient, f.url)
}
func (f *served) traces() dv1connect.TracesClient {
	return dv1connect.NewTracesClient(http.DefaultClient, f.url)
}

func req[T any](m *T) *connect.Request[T] { return connect.NewRequest(m) }

func aNode(i int) *dv1.Effect {
	return &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprintf("n%d", i), Name: fmt.Sprintf("h%03d", i), Addr: fmt.Sprintf("10.0.0.%d:7444", i),
		Labels: map[string]string{"odd": fmt.Sprint(i % 2)}, Liveness: dv1.Node_READY, Availability: dv1.Node_ACTIVE}}}
}

// Each method of each service has a row in the table of routes, and no row is of none.
func TestEveryProcedureIsARoute(t *testing.T) {
	rows := map[string]bool{}
	for _, r := range Routes[:len(Routes)-1] {
		rows[r.Pattern] = true
	}
	delete(rows, trace.Path)
	services := dv1.File_fleet_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			path := fmt.Sprintf("/%s/%s", services.Get(i).FullName(), methods.Get(j).Name())
			if !rows[path] {
				t.Errorf("%s has no route", path)
			}
			delete(rows, path)
		}
	}
	for path := range rows {
		t.Errorf("%s is a route of no method", path)
	}
}

func TestOnlyWhoMayIsAnswered(t *testing.T) {
	f := serve(t)
	for _, c := range []struct {
		who  pki.Principal
		path string
		want int
	}{
		{pki.Principal{}, dv1connect.NodesListProcedure, 401},
		{node1, dv1connect.NodesListProcedure, 403},
		{user, dv1connect.NodesListProcedure, 200},
		{user, dv1connect.TokensListProcedure, 403},
		{admin, dv1connect.TokensListProcedure, 200},
		{node1, dv1connect.ImagesResolveProcedure, 404},
		{user, "/drover.v1.Nodes/Explode", 404},
		{pki.Principal{}, "/drover.v1.Nodes/Explode", 401},
	} {
		f.who = c.who
		r, err := http.Post(f.url+c.path, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if r.StatusCode != c.want || r.StatusCode >= 400 && !strings.Contains(string(b), `"message":"`) {
			t.Errorf("%s at %s: %s %s", c.who.URI, c.path, r.Status, b)
		}
	}
	api := New(Options{})
	for _, c := range []struct {
		method, path string
		want         route.Route
		changes      bool
	}{
		{"GET", dv1connect.NodesListProcedure, Routes[len(Routes)-1], false},
		{"POST", dv1connect.NodesListProcedure, route.Route{Method: "POST", Pattern: dv1connect.NodesListProcedure, At: route.Leader, Who: route.User, Body: route.Bounded(maxBody), Read: true}, false},
		{"POST", dv1connect.NodesRemoveProcedure, route.Route{Method: "POST", Pattern: dv1connect.NodesRemoveProcedure, At: route.Leader, Who: route.Admin, Body: route.Bounded(maxBody)}, true},
	} {
		if rt, h := api.Match(httptest.NewRequest(c.method, c.path, nil)); h == nil || rt != c.want || rt.Changes(c.method) != c.changes {
			t.Errorf("%s %s: %+v", c.method, c.path, rt)
		}
	}
	for path, ours := range map[string]bool{"/containers/json": false, trace.Path: true, dv1connect.NodesListProcedure: true} {
		if _, h := api.Match(httptest.NewRequest("POST", path, nil)); (h != nil) != ours {
			t.Errorf("%s is this API's: %v", path, h != nil)
		}
	}
}

func TestARequestIsBounded(t *testing.T) {
	f := serve(t)
	_, err := f.nodes().Update(t.Context(), req(&dv1.UpdateNodeRequest{Node: strings.Repeat("x", maxBody)}))
	if connect.CodeOf(err) != connect.CodeResourceExhausted || len(f.proposed) > 0 {
		t.Errorf("a request that is too long: %v", err)
	}
}

func TestNodesComeInPages(t *testing.T) {
	f := serve(t)
	for i := range 250 {
		f.put(t, aNode(i))
	}
	pages := func(size uint32, on ...string) (names []string, sizes []int) {
		t.Helper()
		for token := ""; ; {
			resp, err := f.nodes().List(t.Context(), req(&dv1.ListNodesRequest{On: on, PageSize: size, PageToken: token}))
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range resp.Msg.Nodes {
				names = append(names, n.Name)
			}
			sizes = append(sizes, len(resp.Msg.Nodes))
			if token = resp.Msg.NextPageToken; token == "" {
				return names, sizes
			}
		}
	}
	for _, c := range []struct {
		size uint32
		on   []string
		want string
		all  int
	}{
		{0, nil, "[100 100 50]", 250},
		{125, nil, "[125 125]", 250},
		{5000, nil, "[250]", 250},
		{100, []string{"odd==1"}, "[100 25]", 125},
		{0, []string{"odd==1", "node==h007"}, "[1]", 1},
		{0, []string{"node==nobody"}, "[0]", 0},
	} {
		names, sizes := pages(c.size, c.on...)
		if fmt.Sprint(sizes) != c.want || len(names) != c.all {
			t.Errorf("pages of %d, on %v: %v, %d nodes", c.size, c.on, sizes, len(names))
		}
		for i := 1; i < len(names); i++ {
			if names[i-1] >= names[i] {
				t.Fatalf("%s comes before %s", names[i-1], names[i])
			}
		}
	}
	for token, on := range map[string]string{"%%%": "", "": "neither=nor"} {
		if _, err := f.nodes().List(t.Context(), req(&dv1.ListNodesRequest{PageToken: token, On: append([]string(nil), on)[:min(1, len(on))]})); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("page %q on %q: %v", token, on, err)
		}
	}
}

// A list goes on where it was, also if what it ended with is gone by then.
func TestAPageFollowsTheOneBefore(t *testing.T) {
	id := func(s string) string { return s }
	first, next, err := page([]string{"d", "b", "a", "c"}, id, 2, "")
	if err != nil || fmt.Sprint(first) != "[a b]" || next == "" {
		t.Fatalf("%v %q %v", first, next, err)
	}
	second, next, err := page([]string{"a", "aa", "c", "d"}, id, 2, next)
	if err != nil || fmt.Sprint(second) != "[c d]" || next != "" {
		t.Errorf("%v %q %v", second, next, err)
	}
}

func TestANodeIsShownAsItIsSeen(t *testing.T) {
	f := serve(t)
	task := func(id byte, set func(*dv1.Task)) *dv1.Effect {
		m := &dv1.Task{Id: []byte(strings.Repeat(string(id), 32)), NodeId: "n1", Name: string(id), Attempt: 1, Started: 5, Desired: dv1.Desired_RUNNING}
		set(m)
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: m}}
	}
	f.put(t, aNode(1), task('a', func(*dv1.Task) {}), task('b', func(m *dv1.Task) { m.Exit = &dv1.Exit{Attempt: 1} }),
		task('c', func(m *dv1.Task) { m.Started = 0 }), task('d', func(m *dv1.Task) { m.NodeId = "n9" }))
	f.silent = map[string]int64{"n1": 99}
	for _, name := range []string{"h001", "n1"} {
		r := req(&dv1.GetNodeRequest{Node: name})
		r.Header().Set(wire.HeaderIndex, "42")
		resp, err := f.nodes().Get(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		n := resp.Msg.Node
		if n.Containers != 3 || n.Running != 1 || n.Liveness != dv1.Node_SUSPECT || n.SilentSince != 99 || n.Controller != dv1.ControllerInfo_LEADER || n.Addr != "10.0.0.1:7444" {
			t.Errorf("it is shown as %v", n)
		}
		if f.least != 42 || resp.Header().Get(wire.HeaderIndex) == "" {
			t.Errorf("it was read at %d or later; the answer's index is %q", f.least, resp.Header().Get(wire.HeaderIndex))
		}
	}
	if _, err := f.nodes().Get(t.Context(), req(&dv1.GetNodeRequest{Node: "x"})); connect.CodeOf(err) != connect.CodeNotFound || wire.KindOf(err) != dv1.Error_NOT_FOUND {
		t.Errorf("one that is not there: %v", err)
	}
	r := req(&dv1.GetNodeRequest{Node: "n1"})
	r.Header().Set(wire.HeaderIndex, "soon")
	if _, err := f.nodes().Get(t.Context(), r); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("an index that is none: %v", err)
	}
}

// A change is proposed in its caller's name, under its key and for its request only.
func TestChangesAreProposedForTheirCaller(t *testing.T) {
	f := serve(t)
	key := func(h http.Header) { h.Set(wire.HeaderKey, "k") }
	hash := map[string]bool{}
	for _, c := range []struct {
		name string
		do   func() error
		want *dv1.Command
	}{
		{"a label", func() error {
			r := req(&dv1.UpdateNodeRequest{Node: "a", SetLabels: map[string]string{"x": "1", "y": "2"}, DropLabels: []string{"z"}})
			key(r.Header())
			_, err := f.nodes().Update(t.Context(), r)
			return err
		}, &dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "a", SetLabels: map[string]string{"x": "1", "y": "2"}, DropLabels: []string{"z"}}}}},
		{"a drain", func() error {
			r := req(&dv1.UpdateNodeRequest{Node: "a", Availability: dv1.Node_DRAIN})
			key(r.Header())
			_, err := f.nodes().Update(t.Context(), r)
			return err
		}, &dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "a", Availability: dv1.Node_DRAIN}}}},
		{"a grant", func() error {
			r := req(&dv1.GrantRequest{Node: "a", Uid: 1000, Role: "user"})
			key(r.Header())
			_, err := f.nodes().Grant(t.Context(), r)
			return err
		}, &dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "a", Roles: map[string]string{"1000": "user"}}}}},
		{"a pool", func() error {
			r := req(&dv1.AddPoolRequest{Pool: "10.9.0.0/16", NetworkPool: "base=10.64.0.0/12,size=20"})
			key(r.Header())
			_, err := f.nodes().AddPool(t.Context(), r)
			return err
		}, &dv1.Command{Of: &dv1.Command_AddPool{AddPool: &dv1.AddPool{Pool: "10.9.0.0/16", NetworkPool: "base=10.64.0.0/12,size=20"}}}},
		{"a controller's removal", func() error {
			r := req(&dv1.RemoveControllerRequest{Controller: "b"})
			key(r.Header())
			_, err := f.controllers().Remove(t.Context(), r)
			return err
		}, &dv1.Command{Of: &dv1.Command_RemoveController{RemoveController: &dv1.RemoveController{Id: "b"}}}},
		{"a timing", func() error {
			r := req(&dv1.SetTimingRequest{Timing: "wan"})
			key(r.Header())
			_, err := f.controllers().SetTiming(t.Context(), r)
			return err
		}, &dv1.Command{Of: &dv1.Command_SetTiming{SetTiming: &dv1.SetTiming{Timing: &dv1.Timing{Heartbeat: 2e9, Election: 2e9, Lease: 15e8}}}}},
		{"a token's end", func() error {
			r := req(&dv1.RevokeTokenRequest{Id: "t"})
			key(r.Header())
			_, err := f.tokens().Revoke(t.Context(), r)
			return err
		}, &dv1.Command{Of: &dv1.Command_RevokeToken{RevokeToken: &dv1.RevokeToken{Id: "t"}}}},
	} {
		if err := c.do(); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := f.last()
		if got.Key != "fleet-k" || got.Principal != admin.URI || len(got.Hash) == 0 || hash[string(got.Hash)] {
			t.Errorf("%s is proposed under %q by %s, hash %x", c.name, got.Key, got.Principal, got.Hash)
		}
		hash[string(got.Hash)] = true
		first := got
		if err := c.do(); err != nil || string(f.last().Hash) != string(first.Hash) {
			t.Errorf("%s, asked again, is another request: %v", c.name, err)
		}
		got.Key, got.Principal, got.Hash = "", "", nil
		if !proto.Equal(got, c.want) {
			t.Errorf("%s is proposed as %v", c.name, got)
		}
	}
}

func TestRefusalsSayTheirKind(t *testing.T) {
	f := serve(t)
	f.answers = []*dv1.CommandResult{{Error: &dv1.Error{Kind: dv1.Error_CONFLICT, Message: "pools overlap"}}}
	_, err := f.nodes().AddPool(t.Context(), req(&dv1.AddPoolRequest{Pool: "10.0.0.0/8"}))
	if connect.CodeOf(err) != connect.CodeFailedPrecondition || wire.KindOf(err) != dv1.Error_CONFLICT || words(err) != "pools overlap" {
		t.Errorf("a decided refusal: %v", err)
	}
	for _, c := range []struct {
		err              error
		code             connect.Code
		retry, undecided string
	}{
		{fmt.Errorf("asking: %w", fleet.ErrNoLeader), connect.CodeUnavailable, "1", ""},
		{fmt.Errorf("%w; %w", fleet.ErrNoLeader, fleet.ErrUndecided), connect.CodeUnavailable, "1", "1"},
		{consensus.ErrKeyReused, connect.CodeFailedPrecondition, "", ""},
		{errors.New("broken"), connect.CodeUnavailable, "", ""},
	} {
		f.err = c.err
		_, err := f.nodes().AddPool(t.Context(), req(&dv1.AddPoolRequest{Pool: "10.0.0.0/8"}))
		var e *connect.Error
		if !errors.As(err, &e) || e.Code() != c.code || e.Meta().Get("Retry-After") != c.retry || e.Meta().Get(wire.HeaderUndecided) != c.undecided {
			t.Errorf("%v is answered as %v with %v", c.err, err, e.Meta())
		}
	}
	f.err = nil
	for name, err := range map[string]error{
		"the quorum needs it": second(f.controllers().Remove(t.Context(), req(&dv1.RemoveControllerRequest{Controller: "needed"}))),
		"timing is missing":   second(f.controllers().SetTiming(t.Context(), req(&dv1.SetTimingRequest{}))),
		"is none of lan, wan": second(f.controllers().SetTiming(t.Context(), req(&dv1.SetTimingRequest{Timing: "soon"}))),
		"active or drain":     second(f.nodes().Update(t.Context(), req(&dv1.UpdateNodeRequest{Node: "a", Availability: dv1.Node_REMOVING}))),
		"a year (8760h)":      second(f.tokens().Create(t.Context(), req(&dv1.CreateTokenRequest{Ttl: int64(maxTTL) + 1}))),
		"not -1h":             second(f.tokens().Create(t.Context(), req(&dv1.CreateTokenRequest{Ttl: -int64(time.Hour)}))),
	} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not say %q", err, name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A removal of several entries is answered after the last, each under a key of its
// own that a repeated request has too; the leader may have made the last one.
func TestARemovalIsAnsweredWhenAllOfItIsDone(t *testing.T) {
	gone := &dv1.CommandResult{Error: &dv1.Error{Kind: dv1.Error_NOT_FOUND, Message: "No such node: n1"}}
	left := func(n uint32) *dv1.CommandResult { return &dv1.CommandResult{NodeId: "n1", Name: "a", Left: n} }
	for _, c := range []struct {
		answers []*dv1.CommandResult
		keys    string
		err     string
	}{
		{[]*dv1.CommandResult{left(0)}, "[fleet-k]", ""},
		{[]*dv1.CommandResult{left(9), left(5), left(0)}, "[fleet-k fleet-k/1 fleet-k/2]", ""},
		{[]*dv1.CommandResult{left(9), left(5), gone}, "[fleet-k fleet-k/1 fleet-k/2]", ""},
		{[]*dv1.CommandResult{gone}, "[fleet-k]", "No such node"},
		{[]*dv1.CommandResult{left(9), {Error: &dv1.Error{Kind: dv1.Error_UNAVAILABLE, Message: "not now"}}}, "[fleet-k fleet-k/1]", "node a is being removed, which continues: not now"},
	} {
		f := serve(t)
		f.answers = c.answers
		r := req(&dv1.RemoveNodeRequest{Node: "a", Force: true})
		r.Header().Set(wire.HeaderKey, "k")
		_, err := f.nodes().Remove(t.Context(), r)
		var keys []string
		for _, p := range f.proposed {
			keys = append(keys, p.Key)
		}
		if fmt.Sprint(keys) != c.keys || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("keys %v: %v, want %q", keys, err, c.err)
		}
	}
}

func TestATokensTextIsSaidOnce(t *testing.T) {
	f := serve(t)
	r := req(&dv1.CreateTokenRequest{Role: "agent", SocketRole: "user"})
	r.Header().Set(wire.HeaderKey, "k")
	resp, err := f.tokens().Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	p := f.last()
	made := p.GetPutToken().GetToken()
	text, err := pki.ParseToken(resp.Msg.Text)
	if err != nil || p.Key != "" || made.Role != "agent" || made.SocketRole != "user" || made.Expires-made.Created != int64(defaultTTL) || string(made.Hash) != string(text.Hash()) {
		t.Fatalf("%v under key %q: %v, %v", made, p.Key, resp.Msg, err)
	}
	f.put(t, &dv1.Effect{Of: &dv1.Effect_Token{Token: made}}, &dv1.Effect{Of: &dv1.Effect_Token{Token: &dv1.Token{Id: "older", Created: 1, Expires: 2, Used: 3, Revoked: true, Revision: 9}}})
	l, err := f.tokens().List(t.Context(), req(&dv1.ListTokensRequest{PageSize: 1}))
	if err != nil || len(l.Msg.Tokens) != 1 || l.Msg.Tokens[0].Id != "older" || !l.Msg.Tokens[0].Revoked || l.Msg.Tokens[0].Used != 3 || l.Msg.Tokens[0].Revision != 9 {
		t.Fatalf("the first page: %v, %v", l, err)
	}
	l, err = f.tokens().List(t.Context(), req(&dv1.ListTokensRequest{PageToken: l.Msg.NextPageToken}))
	if err != nil || len(l.Msg.Tokens) != 1 || l.Msg.Tokens[0].Id != made.Id || l.Msg.NextPageToken != "" {
		t.Errorf("the second page: %v, %v", l, err)
	}
}

// Whoever asks which digest a name has learns what it needs.
func TestANameIsResolvedForWhoNeedsIt(t *testing.T) {
	f := serve(t, func(o *Options) {
		o.Grant = func(node, digest string) ([]byte, error) { return []byte(node + " " + digest), nil }
	})
	f.put(t, aNode(1), aNode(2),
		&dv1.Effect{Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: "sha256:open", Public: true}}}, &dv1.Effect{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: "open", Digest: "sha256:open"}}},
		&dv1.Effect{Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: "sha256:mine"}}}, &dv1.Effect{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: "mine", Digest: "sha256:mine"}}},
		&dv1.Effect{Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: "sha256:other"}}}, &dv1.Effect{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: "other", Digest: "sha256:other"}}},
		&dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: []byte("s"), Digest: "sha256:mine"}}},
		&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: []byte(strings.Repeat("t", 32)), SpecId: []byte("s"), NodeId: "n1", Name: "t"}}},
	)
	f.holders = []string{"n2", "left-long-ago"}
	for _, c := range []struct {
		who   pki.Principal
		ref   string
		code  connect.Code // 0: answered
		grant string
	}{
		{node1, "open", 0, "n1 sha256:open"}, {node1, "mine", 0, "n1 sha256:mine"}, {node1, "other", connect.CodePermissionDenied, ""},
		{user, "other", 0, ""}, {user, "unknown", connect.CodeNotFound, ""},
	} {
		f.who = c.who
		resp, err := f.images().Resolve(t.Context(), req(&dv1.ResolveImageRequest{Reference: c.ref}))
		switch {
		case c.code != 0:
			if connect.CodeOf(err) != c.code {
				t.Errorf("%s for %s: %v", c.ref, c.who.ID, err)
			}
		case err != nil:
			t.Errorf("%s for %s: %v", c.ref, c.who.ID, err)
		case resp.Msg.Digest != "sha256:"+c.ref || string(resp.Msg.Grant) != c.grant || fmt.Sprint(resp.Msg.Holders) != "[10.0.0.2:7444]" || resp.Msg.Public != (c.ref == "open"):
			t.Errorf("%s for %s: %v", c.ref, c.who.ID, resp.Msg)
		}
	}
}

func TestPoolsAndTimingAreShown(t *testing.T) {
	f := serve(t)
	f.put(t, &dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: &dv1.Cluster{Id: "c", Pool: "10.210.0.0/16", MorePools: []string{"10.224.0.0/12"}}}})
	p, err := f.nodes().ListPools(t.Context(), req(&dv1.ListPoolsRequest{}))
	if err != nil || len(p.Msg.Pools) != 2 || p.Msg.Pools[0].Nodes != 256 || p.Msg.Pools[1].Pool != "10.224.0.0/12" {
		t.Errorf("the pools: %v, %v", p, err)
	}
	if n := p.Msg.GetNetworkPools(); len(n) != 1 || n[0].Base != "10.220.0.0/14" || n[0].Size != 20 || n[0].Subnets != 64 || n[0].Used != 0 {
		t.Errorf("the pools of networks: %v", n)
	}
	g, err := f.controllers().GetTiming(t.Context(), req(&dv1.GetTimingRequest{}))
	if err != nil || g.Msg.Profile != "lan" || g.Msg.Timing != "150ms/150ms/140ms" {
		t.Errorf("the timing: %v, %v", g, err)
	}
	l, err := f.controllers().List(t.Context(), req(&dv1.ListControllersRequest{}))
	if err != nil || len(l.Msg.Controllers) != 2 || l.Msg.Controllers[0].Name != "a" || l.Msg.Controllers[0].Role != dv1.ControllerInfo_LEADER {
		t.Errorf("the controllers: %v, %v", l, err)
	}
}
