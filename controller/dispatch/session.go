package dispatch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/pki"
)

const maxMessage = 16 << 20

// session is one agent's stream. Its maps and flags are guarded by Hub.mu.
type session struct {
	node    string
	cancel  context.CancelCauseFunc
	dirty   map[string]bool
	wake    chan struct{}
	pending map[string]*dv1.TaskReport
	removed map[string]bool
	report  chan struct{}
	news    bool            // controllers or keys changed
	members map[string]bool // URIs whose place in the roster changed
	much    bool            // it said more than is kept, which was logged
}

func newSession(node string, cancel context.CancelCauseFunc) *session {
	return &session{node: node, cancel: cancel, dirty: map[string]bool{}, wake: make(chan struct{}, 1),
		pending: map[string]*dv1.TaskReport{}, removed: map[string]bool{}, report: make(chan struct{}, 1), members: map[string]bool{}}
}

type unblockKey struct{}

// Handler serves sessions over HTTP/2 with TLS. The caller is who its
// certificate says, which the listener has verified.
func (h *Hub) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(dv1connect.NewSessionHandler(h, connect.WithReadMaxBytes(maxMessage)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		if _, relayed := pki.PrincipalFrom(ctx); !relayed && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			if p, err := pki.FromCert(r.TLS.PeerCertificates[0]); err == nil {
				ctx = pki.WithPrincipal(ctx, p)
			}
		}
		// A superseded session must leave a Receive or Send that would block.
		rc := http.NewResponseController(w)
		// net/http forbids that once the handler has returned.
		var mu sync.Mutex
		var over bool
		ctx = context.WithValue(ctx, unblockKey{}, func() {
			mu.Lock()
			defer mu.Unlock()
			if !over {
				_ = rc.SetReadDeadline(time.Unix(1, 0))
				_ = rc.SetWriteDeadline(time.Unix(1, 0))
			}
		})
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			over = true
		}()
		mux.ServeHTTP(w, r.WithContext(ctx))
	})
}

// Open is one session, from hello to the end of its stream.
func (h *Hub) Open(ctx context.Context, st *connect.BidiStream[dv1.FromAgent, dv1.ToAgent]) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if unblock, ok := ctx.Value(unblockKey{}).(func()); ok {
		stop := context.AfterFunc(ctx, unblock)
		defer stop()
	}
	hello, err := h.hello(ctx, st, cancel)
	if err != nil {
		return err
	}
	if ours := h.o.Log.Snapshot().Cluster().GetEpoch(); hello.Epoch > ours {
		// Restored from before what this node has seen: it would undo that.
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("node %s has seen epoch %d of this fleet, this controller is of epoch %d", hello.Node.Name, hello.Epoch, ours))
	}
	h.elected(ctx)
	s := newSession(hello.Node.Id, cancel)
	subnet, err := h.register(ctx, hello.Node)
	if err != nil {
		return connect.NewError(connect.CodeUnavailable, err)
	}
	if err := h.enter(s, hello.Number); err != nil {
		return connect.NewError(connect.CodeFailedPrecondition, err)
	}
	defer func() { h.leave(s, context.Cause(ctx)) }()
	if err := st.Send(&dv1.ToAgent{Of: &dv1.ToAgent_Welcome{Welcome: h.welcome(subnet, s.node, h.roster(hello.Roster))}}); err != nil {
		return fmt.Errorf("welcoming node %s: %w", s.node, err)
	}
	quiet := time.AfterFunc(SuspectAfter, func() { cancel(errSilent) })
	defer quiet.Stop()
	var wg sync.WaitGroup
	wg.Go(func() { cancel(h.send(ctx, s, st)) })
	wg.Go(func() { h.reports(ctx, s) })
	if hello.Inventory != nil {
		h.take(s, hello.Inventory)
	}
	err = h.receive(s, st, quiet)
	cancel(err)
	wg.Wait()
	if cause := context.Cause(ctx); errors.Is(cause, errSuperseded) || errors.Is(cause, errSilent) || errors.Is(cause, errDeposed) || errors.Is(cause, errRemoved) {
		return connect.NewError(connect.CodeAborted, fmt.Errorf("session of node %s: %w", s.node, cause))
	}
	return err
}

// gossipPeers is how many agents a welcome names.
const gossipPeers = 5

// welcome says what a node should know of its fleet.
func (h *Hub) welcome(subnet, node string, r *dv1.Roster) *dv1.Welcome {
	snap := h.o.Log.Snapshot()
	w := &dv1.Welcome{Subnet: subnet, Epoch: snap.Cluster().GetEpoch(), ClusterId: snap.Cluster().GetId(), GossipKeys: h.o.Keys(), Roster: r}
	for c := range snap.Controllers() {
		w.Controllers = append(w.Controllers, c.Addr)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, addr := range h.members.addrs { // in no order: not everybody is told the same few
		if len(w.Peers) == gossipPeers {
			break
		}
		if id != node && addr != "" {
			w.Peers = append(w.Peers, addr)
		}
	}
	return w
}

// Why the control plane ends a session.
var (
	errDeposed    = errors.New("another controller leads now")
	errRemoved    = errors.New("this node was removed from its fleet")
	errSuperseded = errors.New("a newer session of this node took over")
	errSilent     = fmt.Errorf("nothing was heard for %v", SuspectAfter)
)

func (h *Hub) hello(ctx context.Context, st *connect.BidiStream[dv1.FromAgent, dv1.ToAgent], cancel context.CancelCauseFunc) (*dv1.Hello, error) {
	late := time.AfterFunc(5*time.Second, func() { cancel(errors.New("no hello came")) })
	m, err := st.Receive()
	if err != nil || !late.Stop() {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("a session begins with a hello: %w", err))
	}
	hello := m.GetHello()
	if hello.GetNode().GetId() == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a session begins with a hello that names its node"))
	}
	p, ok := pki.PrincipalFrom(ctx)
	if !ok {
		return nil, connect.NewError(connect.CodeUnauthenticated, pki.ErrNoPrincipal)
	}
	if p.Kind != pki.KindNode || p.ID != hello.Node.Id {
		return nil, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("certificate is of %s, but the hello of node %s", p.URI, hello.Node.Id))
	}
	return hello, nil
}

// uri is in whose name a session's node reports: its certificate was of that node.
func (h *Hub) uri(node string) string {
	return pki.URI(h.o.Log.Snapshot().Cluster().GetId(), pki.KindNode, node)
}

// register has the log know the node as it is, and gives its subnet.
func (h *Hub) register(ctx context.Context, n *dv1.Node) (string, error) {
	snap := h.o.Log.Snapshot()
	if old := snap.Node(n.Id); old != nil {
		want := proto.CloneOf(n)
		// These are the control plane's to say, not the agent's.
		want.Subnet, want.Availability, want.Liveness, want.Joined, want.Revision = old.Subnet, old.Availability, old.Liveness, old.Joined, old.Revision
		want.Roles, want.SetLabels = old.Roles, old.SetLabels
		if len(old.SetLabels) > 0 && want.Labels == nil {
			want.Labels = map[string]string{}
		}
		maps.Copy(want.Labels, old.SetLabels)
		if proto.Equal(want, old) {
			return old.Subnet, nil
		}
	}
	r, err := h.o.Log.Propose(ctx, &dv1.Command{Principal: h.uri(n.Id), Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: n}}})
	if err != nil {
		return "", fmt.Errorf("registering node %s: %w", n.Id, err)
	}
	if r.GetError() != nil {
		return "", fmt.Errorf("registering node %s: %s", n.Id, r.Error.Message)
	}
	return h.o.Log.Snapshot().Node(n.Id).GetSubnet(), nil
}

// electedWithin bounds how long a hello waits for this controller's term to begin
// here: who sent it may know of the election first.
const electedWithin = 300 * time.Millisecond

func (h *Hub) elected(ctx context.Context) {
	h.mu.Lock()
	led := h.led
	h.mu.Unlock()
	t := time.NewTimer(electedWithin)
	defer t.Stop()
	select {
	case <-led:
	case <-t.C:
	case <-ctx.Done():
	}
}

func (h *Hub) enter(s *session, number uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.leads {
		return errDeposed
	}
	if h.o.Log.Snapshot().Node(s.node) == nil {
		return errRemoved
	}
	n := h.nodes[s.node]
	if n == nil {
		n = &node{}
		h.nodes[s.node] = n
	}
	if number <= n.highest {
		return fmt.Errorf("session %d of node %s is old: %d was seen", number, s.node, n.highest)
	}
	if n.session != nil {
		n.session.cancel(errSuperseded)
	}
	n.highest, n.session, n.heard = number, s, h.o.Now()
	return nil
}

// grace is what a node gets to come back after its session broke: whoever relayed
// it may be what died.
const grace = 1500 * time.Millisecond

func (h *Hub) leave(s *session, why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := h.nodes[s.node]; n != nil && n.session == s {
		n.session = nil
		if !errors.Is(why, errSilent) {
			n.spared = h.o.Now().Add(grace - SuspectAfter)
		}
	}
}

// receive takes what the agent says until it ends; quiet ends a silent one.
func (h *Hub) receive(s *session, st *connect.BidiStream[dv1.FromAgent, dv1.ToAgent], quiet *time.Timer) error {
	for {
		m, err := st.Receive()
		if err != nil {
			return fmt.Errorf("session of node %s: %w", s.node, err)
		}
		quiet.Reset(SuspectAfter)
		h.mu.Lock()
		if n := h.nodes[s.node]; n != nil && n.session == s {
			n.heard = h.o.Now()
		}
		h.mu.Unlock()
		switch of := m.Of.(type) {
		case *dv1.FromAgent_Observation:
			h.take(s, of.Observation)
		case *dv1.FromAgent_Acks:
			h.acked(s, of.Acks)
		case *dv1.FromAgent_Beat:
		default:
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("node %s sent a %T within a session", s.node, m.Of))
		}
	}
}

func (h *Hub) take(s *session, o *dv1.Observation) {
	reports := h.observe(s, o)
	h.mu.Lock()
	for _, r := range reports {
		s.pending[string(r.TaskId)] = r
	}
	h.mu.Unlock()
	if len(reports) > 0 {
		poke(s.report)
	}
}

// acked takes that tombstones are done: of those that there are.
func (h *Hub) acked(s *session, a *dv1.Acks) {
	snap := h.o.Log.Snapshot()
	h.mu.Lock()
	for _, id := range a.Removed {
		if snap.Tombstone(id).GetNodeId() == s.node {
			s.removed[string(id)] = true
		}
	}
	h.mu.Unlock()
	poke(s.report)
}

// send is the only writer after the welcome: syncs in order, and beats.
func (h *Hub) send(ctx context.Context, s *session, st *connect.BidiStream[dv1.FromAgent, dv1.ToAgent]) error {
	beat := time.NewTicker(BeatEvery)
	defer beat.Stop()
	var seq int64
	sent := uint64(0)
	full := true
	var parts []*dv1.Sync // of a sync that is under way
	for {
		m := &dv1.ToAgent{}
		if len(parts) == 0 {
			if parts = h.next(s, full, sent); len(parts) > 0 {
				full, sent = false, parts[0].Index
			}
		}
		if len(parts) > 0 {
			sync := parts[0]
			parts = parts[1:]
			sync.Sources = h.sources(s.node, sync)
			m.Of = &dv1.ToAgent_Sync{Sync: sync}
		} else if r, news := h.changed(s), h.news(s); news || r != nil {
			m.Of = &dv1.ToAgent_Changed{Changed: h.welcome("", s.node, r)}
		} else {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-s.wake:
				continue
			case <-beat.C:
				seq++
				m.Of = &dv1.ToAgent_Beat{Beat: &dv1.Beat{Seq: seq}}
			}
		}
		if err := st.Send(m); err != nil {
			return fmt.Errorf("telling node %s: %w", s.node, err)
		}
	}
}

func (h *Hub) news(s *session) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := s.news
	s.news = false
	return n
}
