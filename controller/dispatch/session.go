package dispatch

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/pki"
)

const (
	maxMessage = 16 << 20
	readBuffer = 2 << 10 // bytes: most messages are shorter
)

// session is the stream of one agent.
type session struct {
	node   string
	of     *node // set when the session enters
	cancel context.CancelCauseFunc
	wake   chan struct{} // signalled when something is dirty
	report chan struct{} // signalled when something is pending

	sent   uint64          // last change of the roster that was sent; used by the sender only
	has    map[string]bool // ids of specs that the agent has until its first sync, by its hello; used by the sender only
	told   map[string]bool // networks that it was told of; used by the sender only
	shut   bool            // the node is no door
	warned bool            // warned that it reports more than the limit; used by the receiver only

	mu      sync.Mutex // guards the fields below
	dirty   map[mark]bool
	index   uint64 // of the entry that made the latest of them dirty
	pending map[string]*dv1.TaskReport
	removed map[string]bool
	left    map[string]bool // endpoints, by task and network
}

// mark names a record of the state that an agent must be sent again.
type mark struct {
	kind int
	key  string
}

// Kinds of marks, in the order in which they are sent. Keys of all that is of a network
// begin with its id.
const (
	markPeer    = iota // of a node
	markNetwork        // of a network
	markSlice          // of a network and a node
	markName           // of a network and a task
	markDoor           // of a published port
	markTask           // of a task, its endpoints and its tombstone
)

// network returns the id of the network that a record is of, "" if it is of none.
func (m mark) network() string {
	if m.kind == markPeer || m.kind == markDoor || m.kind == markTask || len(m.key) < idLength {
		return ""
	}
	return m.key[:idLength]
}

func newSession(node string, cancel context.CancelCauseFunc) *session {
	return &session{node: node, cancel: cancel, wake: make(chan struct{}, 1), report: make(chan struct{}, 1),
		told: map[string]bool{}, dirty: map[mark]bool{}, pending: map[string]*dv1.TaskReport{}, removed: map[string]bool{}, left: map[string]bool{}}
}

// mark records that the agent must be sent a record.
func (s *session) mark(m mark, index uint64) {
	s.mu.Lock()
	s.dirty[m] = true
	s.index = index
	s.mu.Unlock()
	notify(s.wake)
}

// takeDirty returns what was marked, in the order in which it is sent.
func (s *session) takeDirty() (dirty []mark, index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.dirty) > 0 {
		dirty = slices.SortedFunc(maps.Keys(s.dirty), func(a, b mark) int { return cmp.Or(a.kind-b.kind, strings.Compare(a.key, b.key)) })
		s.dirty = map[mark]bool{}
	}
	return dirty, s.index
}

// add queues reports and acknowledgements.
func (s *session) add(reports []*dv1.TaskReport, acks *dv1.Acks) {
	if len(reports)+len(acks.GetRemoved())+len(acks.GetLeft()) == 0 {
		return
	}
	s.mu.Lock()
	for _, r := range reports {
		s.pending[string(r.TaskId)] = r
	}
	for _, id := range acks.GetRemoved() {
		s.removed[string(id)] = true
	}
	for _, e := range acks.GetLeft() {
		s.left[string(e.TaskId)+string(e.NetworkId)] = true
	}
	s.mu.Unlock()
	notify(s.report)
}

func (s *session) takePending() (reports map[string]*dv1.TaskReport, removed, left map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reports, removed, left = s.pending, s.removed, s.left
	s.pending, s.removed, s.left = map[string]*dv1.TaskReport{}, map[string]bool{}, map[string]bool{}
	return reports, removed, left
}

// putBack queues again what of the reports the log did not accept.
func (s *session) putBack(reports map[string]*dv1.TaskReport, tasks, removed, left []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range tasks {
		if s.pending[id] == nil { // otherwise a newer one has arrived
			s.pending[id] = reports[id]
		}
	}
	for _, id := range removed {
		s.removed[id] = true
	}
	for _, id := range left {
		s.left[id] = true
	}
}

// buffered reads a message's prefix and its content at once: HTTP/2 accounts for each
// read of a body.
type buffered struct {
	io.Reader
	io.Closer
}

type unblockKey struct{}

// Handler serves sessions over HTTP/2 with TLS. The listener has verified the
// caller's certificate.
func (h *Hub) Handler() http.Handler {
	mux := http.NewServeMux()
	// Messages are not compressed: agents are near, and after an election that was a
	// sixth of what hellos cost.
	mux.Handle(dv1connect.NewSessionHandler(h, connect.WithReadMaxBytes(maxMessage), connect.WithCompression("gzip", nil, nil)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		if _, relayed := pki.PrincipalFrom(ctx); !relayed && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			if p, err := pki.FromCert(r.TLS.PeerCertificates[0]); err == nil {
				ctx = pki.WithPrincipal(ctx, p)
			}
		}
		// Needed to unblock Receive and Send when the session is superseded.
		rc := http.NewResponseController(w)
		// Not allowed once the handler has returned.
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
		r = r.WithContext(ctx)
		r.Body = buffered{bufio.NewReaderSize(r.Body, readBuffer), r.Body}
		mux.ServeHTTP(w, r)
	})
}

// Open serves one session, from its hello to the end of its stream.
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
		// The state was restored from before what this node has seen, and would undo it.
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("node %s has seen epoch %d of this fleet, this controller is of epoch %d", hello.Node.Name, hello.Epoch, ours))
	}
	t := h.elected(ctx)
	if t == nil {
		return connect.NewError(connect.CodeFailedPrecondition, errDeposed)
	}
	s := newSession(hello.Node.Id, cancel)
	s.shut = hello.Node.NoDoors
	s.has = make(map[string]bool, len(hello.Specs))
	for _, id := range hello.Specs {
		s.has[string(id)] = true
	}
	subnet, err := t.register(ctx, hello.Node)
	if err != nil {
		return connect.NewError(connect.CodeUnavailable, err)
	}
	if err := t.enter(s, hello.Number); err != nil {
		return connect.NewError(connect.CodeFailedPrecondition, err)
	}
	defer func() { t.leave(s, context.Cause(ctx)) }()
	if err := st.Send(&dv1.ToAgent{Of: &dv1.ToAgent_Welcome{Welcome: t.greet(s, subnet, hello.Roster)}}); err != nil {
		return fmt.Errorf("sending the welcome to node %s: %w", s.node, err)
	}
	quiet := time.AfterFunc(SuspectAfter, func() { cancel(errSilent) })
	defer quiet.Stop()
	if hello.Inventory != nil { // before the first sync, which leaves out what the node has
		s.add(t.observe(s, hello.Inventory), nil)
	}
	var wg sync.WaitGroup
	wg.Go(func() { cancel(t.send(ctx, s, st)) })
	wg.Go(func() { t.report(ctx, s) })
	err = t.receive(s, st, quiet)
	cancel(err)
	wg.Wait()
	t.topology.leaveAll(s)
	if cause := context.Cause(ctx); errors.Is(cause, errSuperseded) || errors.Is(cause, errSilent) || errors.Is(cause, errDeposed) || errors.Is(cause, errRemoved) {
		return connect.NewError(connect.CodeAborted, fmt.Errorf("session of node %s: %w", s.node, cause))
	}
	return err
}

// Reasons why the control plane ends a session.
var (
	errDeposed    = errors.New("this controller no longer leads")
	errRemoved    = errors.New("this node was removed from its fleet")
	errSuperseded = errors.New("a newer session of this node took over")
	errSilent     = fmt.Errorf("nothing was heard for %v", SuspectAfter)
)

func (h *Hub) hello(ctx context.Context, st *connect.BidiStream[dv1.FromAgent, dv1.ToAgent], cancel context.CancelCauseFunc) (*dv1.Hello, error) {
	late := time.AfterFunc(5*time.Second, func() { cancel(errors.New("no hello received")) })
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
		return nil, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("the certificate is for %s, but the hello is from node %s", p.URI, hello.Node.Id))
	}
	return hello, nil
}

// register records the node in the log and returns its subnet.
func (t *term) register(ctx context.Context, n *dv1.Node) (string, error) {
	snap := t.o.Log.Snapshot()
	if old := snap.Node(n.Id); old != nil {
		want := proto.CloneOf(n)
		// These fields are decided by the control plane, not by the agent.
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
	r, err := t.o.Log.Propose(ctx, &dv1.Command{Principal: nodeURI(t.o.Log, n.Id), Of: &dv1.Command_RegisterNode{RegisterNode: &dv1.RegisterNode{Node: n}}})
	if err != nil {
		return "", fmt.Errorf("registering node %s: %w", n.Id, err)
	}
	if r.GetError() != nil {
		return "", fmt.Errorf("registering node %s: %s", n.Id, r.Error.Message)
	}
	return t.o.Log.Snapshot().Node(n.Id).GetSubnet(), nil
}

// electedWithin bounds how long a hello waits for this controller's term to begin:
// its sender may learn of the election first.
const electedWithin = 300 * time.Millisecond

// elected waits for a term and returns it, or nil if none begins in time.
func (h *Hub) elected(ctx context.Context) *term {
	h.mu.Lock()
	led := h.led
	h.mu.Unlock()
	late := time.NewTimer(electedWithin)
	defer late.Stop()
	select {
	case <-led:
	case <-late.C:
	case <-ctx.Done():
	}
	return h.term.Load()
}

// receive handles what the agent sends until the stream ends; quiet ends a silent
// session.
func (t *term) receive(s *session, st *connect.BidiStream[dv1.FromAgent, dv1.ToAgent], quiet *time.Timer) error {
	for {
		m, err := st.Receive()
		if err != nil {
			return fmt.Errorf("session of node %s: %w", s.node, err)
		}
		quiet.Reset(SuspectAfter)
		if s.of.session.Load() == s {
			t.hear(s.of)
		}
		switch of := m.Of.(type) {
		case *dv1.FromAgent_Observation:
			s.add(t.observe(s, of.Observation), nil)
		case *dv1.FromAgent_Acks:
			s.add(nil, t.acked(s, of.Acks))
		case *dv1.FromAgent_Beat:
		default:
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("node %s sent a %T within a session", s.node, m.Of))
		}
	}
}

// acked returns what of the acknowledgements the log still has of this node: tombstones,
// and endpoints that had to go.
func (t *term) acked(s *session, a *dv1.Acks) *dv1.Acks {
	snap := t.o.Log.Snapshot()
	out := &dv1.Acks{}
	for _, id := range a.Removed {
		if snap.Tombstone(id).GetNodeId() == s.node {
			out.Removed = append(out.Removed, id)
		}
	}
	for _, k := range a.Left {
		if e := snap.Endpoint(k.TaskId, k.NetworkId); e.GetLeaving() && e.NodeId == s.node {
			out.Left = append(out.Left, k)
		}
	}
	return out
}

// sender is this side's half of a stream.
type sender interface {
	Send(*dv1.ToAgent) error
}

// send is the only writer after the welcome: syncs in order, changes of the fleet, and
// a beat where nothing else was sent for BeatEvery.
func (t *term) send(ctx context.Context, s *session, to sender) error {
	beat := time.NewTimer(BeatEvery)
	defer beat.Stop()
	var seq int64
	sent := uint64(0)
	full := true
	var parts []*dv1.Sync // remaining parts of the current sync
	for {
		m := &dv1.ToAgent{}
		_, changed := t.roster.current()
		if len(parts) == 0 {
			if parts = t.next(s, full, sent); len(parts) > 0 {
				full, sent = false, parts[0].Index
			}
		}
		if len(parts) > 0 {
			part := parts[0]
			parts = parts[1:]
			part.Sources = t.sources(s.node, part)
			m.Of = &dv1.ToAgent_Sync{Sync: part}
		} else if news := t.news(s); news != nil {
			m.Of = &dv1.ToAgent_Changed{Changed: news}
		} else {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-s.wake:
				continue
			case <-changed:
				continue
			case <-beat.C:
				seq++
				m.Of = &dv1.ToAgent_Beat{Beat: &dv1.Beat{Seq: seq}}
			}
		}
		if err := to.Send(m); err != nil {
			return fmt.Errorf("sending to node %s: %w", s.node, err)
		}
		beat.Reset(BeatEvery)
	}
}
