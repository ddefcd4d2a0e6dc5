package dispatch

import (
	"bytes"
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/roster"
)

// fakeLog decides nothing: tests put effects.
type fakeLog struct {
	store *state.Store
	hub   *Hub
	got   chan *dv1.Command

	mu sync.Mutex // one entry after the other
}

// newFakeLog has a hub on it that does not lead.
func newFakeLog() *fakeLog {
	f := &fakeLog{store: state.NewStore(), got: make(chan *dv1.Command, 100)}
	f.hub = New(Options{Log: f, Logger: slog.New(slog.DiscardHandler)})
	return f
}

func (f *fakeLog) Propose(_ context.Context, c *dv1.Command) (*dv1.CommandResult, error) {
	if n := c.GetRegisterNode(); n != nil {
		n := proto.CloneOf(n.Node)
		n.Subnet = "10.210.1.0/24"
		f.put(&dv1.Effect{Of: &dv1.Effect_Node{Node: n}})
	}
	f.got <- c
	return &dv1.CommandResult{}, nil
}
func (f *fakeLog) Snapshot() *state.Snapshot { return f.store.Snapshot() }
func (f *fakeLog) Term() uint64              { return 1 }

// put applies effects as one entry, and has the hub hear of it.
func (f *fakeLog) put(effects ...*dv1.Effect) {
	f.mu.Lock()
	defer f.mu.Unlock()
	base := f.store.Snapshot().Index()
	b, err := proto.Marshal(&dv1.Entry{Format: state.Format, Type: state.EntryEffects, MinVersion: 1, Base: base, Effects: effects})
	if err != nil {
		panic(err)
	}
	e, err := f.store.Apply(base+1, b)
	if err != nil {
		panic(err)
	}
	f.hub.Committed(e.Effects, base+1)
}

func start(t *testing.T, certNode string) (*fakeLog, func() *connect.BidiStreamForClient[dv1.FromAgent, dv1.ToAgent]) {
	t.Helper()
	f := newFakeLog()
	f.hub.begin()
	h := f.hub.Handler()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.TLS = &tls.ConnectionState{}
		h.ServeHTTP(w, r.WithContext(pki.WithPrincipal(r.Context(), pki.Principal{Kind: pki.KindNode, ID: certNode})))
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return f, func() *connect.BidiStreamForClient[dv1.FromAgent, dv1.ToAgent] {
		return dv1connect.NewSessionClient(srv.Client(), srv.URL).Open(ctx)
	}
}

// observe has a session's node report.
func observe(h *Hub, s *session, o *dv1.Observation) { s.add(h.term.Load().observe(s, o), nil) }

func hello(n uint64) *dv1.FromAgent {
	return &dv1.FromAgent{Of: &dv1.FromAgent_Hello{Hello: &dv1.Hello{Number: n, Node: &dv1.Node{Id: "n1", Name: "a"}}}}
}

func sync1(t *testing.T, st *connect.BidiStreamForClient[dv1.FromAgent, dv1.ToAgent]) *dv1.Sync {
	t.Helper()
	for {
		m, err := st.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if s := m.GetSync(); s != nil {
			return s
		}
	}
}

func TestSession(t *testing.T) {
	f, open := start(t, "n1")
	st := open()
	if err := st.Send(hello(5)); err != nil {
		t.Fatal(err)
	}
	m, err := st.Receive()
	if err != nil || m.GetWelcome().GetSubnet() != "10.210.1.0/24" {
		t.Fatal(m, err)
	}
	if s := sync1(t, st); !s.Full {
		t.Fatal("the first sync must be full")
	}
	<-f.got // RegisterNode
	id := bytes.Repeat([]byte{7}, 32)
	f.put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: id, NodeId: "n1", Name: "x", Attempt: 1}}})
	s := sync1(t, st)
	if s.Full || len(s.Tasks) != 1 || s.Index != 2 {
		t.Fatal(s)
	}
	if err := st.Send(&dv1.FromAgent{Of: &dv1.FromAgent_Observation{Observation: &dv1.Observation{
		Tasks: []*dv1.TaskStatus{{Id: id, Attempt: 1, Started: 9, Exit: &dv1.Exit{Attempt: 1, Code: 3}}}}}}); err != nil {
		t.Fatal(err)
	}
	if r := (<-f.got).GetReport(); len(r.GetTasks()) != 1 || r.Tasks[0].Started != 9 || r.Tasks[0].Exit.Code != 3 {
		t.Fatal(r)
	}
	f.put(&dv1.Effect{Of: &dv1.Effect_Tombstone{Tombstone: &dv1.Tombstone{TaskId: id, NodeId: "n1"}}})
	if s := sync1(t, st); len(s.Tombstones) != 1 {
		t.Fatal(s)
	}
	if err := st.Send(&dv1.FromAgent{Of: &dv1.FromAgent_Acks{Acks: &dv1.Acks{Removed: [][]byte{id}}}}); err != nil {
		t.Fatal(err)
	}
	if a := (<-f.got).GetAckTombstones(); len(a.GetTaskIds()) != 1 {
		t.Fatal(a)
	}
	old := open()
	_ = old.Send(hello(5))
	if _, err := old.Receive(); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Fatalf("an old session number: %v", err)
	}
	newer := open()
	_ = newer.Send(hello(6))
	sync1(t, newer)
	for {
		if _, err := st.Receive(); err != nil {
			break
		}
	}
	_ = newer.CloseRequest()
}

func TestOtherNodesCertificate(t *testing.T) {
	_, open := start(t, "n2")
	st := open()
	_ = st.Send(hello(1))
	if _, err := st.Receive(); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Fatal(err)
	}
}

// A hub that does not lead takes no session, and one that is deposed ends those
// that it has; a node that has seen a later epoch is not led back.
func TestOnlyALeaderHasSessions(t *testing.T) {
	f, open := start(t, "n1")
	st := open()
	if err := st.Send(hello(1)); err != nil {
		t.Fatal(err)
	}
	if m, err := st.Receive(); err != nil || m.GetWelcome() == nil {
		t.Fatalf("%v %v", m, err)
	}
	f.hub.end(f.hub.term.Load())
	for {
		if _, err := st.Receive(); err != nil {
			break
		}
	}
	again := open()
	_ = again.Send(hello(2))
	if _, err := again.Receive(); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Fatalf("who does not lead answered %v", err)
	}
	if s := f.hub.Silent(); len(s) != 0 {
		t.Fatalf("before it leads it calls nodes silent: %v", s)
	}
	f.hub.begin()
	late := hello(3)
	late.GetHello().Epoch = 99
	ahead := open()
	_ = ahead.Send(late)
	if _, err := ahead.Receive(); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Fatalf("a node of a later epoch got %v", err)
	}
	if s := f.hub.Silent(); len(s) != 0 {
		t.Fatalf("right after its election a leader calls nodes silent: %v", s)
	}
}

// welcome1 gives the next welcome or news of a session.
func welcome1(t *testing.T, st *connect.BidiStreamForClient[dv1.FromAgent, dv1.ToAgent]) *dv1.Welcome {
	t.Helper()
	for {
		m, err := st.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if w := m.GetWelcome(); w != nil {
			return w
		}
		if w := m.GetChanged(); w != nil {
			return w
		}
	}
}

// An agent is told who belongs to the fleet: all of it unless it has that, then
// each change at once; a node's liveness is none.
func TestAgentsAreToldWhoBelongsToTheFleet(t *testing.T) {
	f, open := start(t, "n1")
	identity := func(kind, id string, revoked bool) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: pki.URI("c", kind, id), Revoked: revoked}}}
	}
	node := func(id, addr string, liveness dv1.Node_Liveness) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: id, Addr: addr, Liveness: liveness}}}
	}
	f.put(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: &dv1.Cluster{Id: "c", Epoch: 3}}},
		identity(pki.KindController, "a", false), identity(pki.KindController, "old", true), identity(pki.KindUser, "u", false),
		identity(pki.KindNode, "n2", false), node("n2", "10.0.0.2:7444", dv1.Node_READY))
	st := open()
	if err := st.Send(hello(5)); err != nil {
		t.Fatal(err)
	}
	w := welcome1(t, st)
	r, ok := (*roster.Roster)(nil).Apply(w.Roster)
	n2 := pki.Principal{URI: pki.URI("c", pki.KindNode, "n2")}
	if !ok || len(w.Roster.Members) != 2 || len(w.Roster.Revoked) != 1 || r.Addr(n2.URI) != "10.0.0.2:7444" {
		t.Fatalf("the welcome says %v", w.Roster)
	}
	f.put(node("n2", "10.0.0.2:7444", dv1.Node_SUSPECT))
	f.put(identity(pki.KindController, "a", true))
	w = welcome1(t, st)
	if r, ok = r.Apply(w.Roster); !ok || w.Roster.Full || len(w.Roster.Members) != 0 || len(w.Roster.Revoked) != 1 {
		t.Fatalf("after a removal: %v", w.Roster)
	}
	f.put(node("n2", "10.0.0.9:7444", dv1.Node_READY))
	if r, ok = r.Apply(welcome1(t, st).Roster); !ok || r.Addr(n2.URI) != "10.0.0.9:7444" {
		t.Fatalf("n2 is at %s", r.Addr(n2.URI))
	}
	again := open()
	h := hello(6)
	h.GetHello().Roster = r.Sum()
	if err := again.Send(h); err != nil {
		t.Fatal(err)
	}
	if w := welcome1(t, again); w.Roster != nil {
		t.Fatalf("an agent that has the roster is told %v", w.Roster)
	}
}
