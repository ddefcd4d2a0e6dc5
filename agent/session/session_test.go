package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/mux"
	"github.com/drover/drover/pkg/pki"
)

// controller is the other end: each session is handed to the test.
type controller struct {
	sessions chan *peer
	stop     context.CancelFunc // of the agent's Run
	stopped  chan struct{}      // closed when Run has returned
	status   *Status            // of the agent's session
}

type peer struct {
	*connect.BidiStream[dv1.FromAgent, dv1.ToAgent]
	hello *dv1.Hello
	end   chan struct{}
}

func (c *controller) Open(ctx context.Context, s *connect.BidiStream[dv1.FromAgent, dv1.ToAgent]) error {
	m, err := s.Receive()
	if err != nil {
		return err
	}
	if err := s.Send(&dv1.ToAgent{Of: &dv1.ToAgent_Welcome{Welcome: &dv1.Welcome{Subnet: "10.210.0.0/24", Epoch: 1}}}); err != nil {
		return err
	}
	p := &peer{s, m.GetHello(), make(chan struct{})}
	select {
	case c.sessions <- p:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-p.end:
		return errors.New("over")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// next reads until a message that isn't a beat.
func (p *peer) next(t *testing.T) *dv1.FromAgent {
	t.Helper()
	for {
		m, err := p.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetBeat() == nil {
			return m
		}
	}
}

type fakeAgent struct {
	mu      sync.Mutex // guards the fields below
	number  uint64
	index   uint64
	subnet  string
	refused int
	out     *Outbox
	tasks   []*dv1.TaskStatus
	opening chan struct{} // a welcome waits until it is closed; nil: it doesn't
}

func (a *fakeAgent) Hello(context.Context) (*dv1.Hello, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.number++
	return &dv1.Hello{Number: a.number, Index: a.index, Node: &dv1.Node{Id: "n"}, Inventory: &dv1.Observation{Full: true, Tasks: a.tasks}}, nil
}

func (a *fakeAgent) Welcome(_ context.Context, w *dv1.Welcome) error {
	if a.opening != nil {
		<-a.opening
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.subnet = w.GetSubnet()
	return nil
}

func (a *fakeAgent) Changed(*dv1.Welcome) {}

func (a *fakeAgent) Take(_ context.Context, s *dv1.Sync) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.GetIndex() < a.index {
		a.refused++
		return fmt.Errorf("index %d after %d: %w", s.GetIndex(), a.index, ErrStale)
	}
	a.index = s.GetIndex()
	a.out.Ack(a.index)
	return nil
}

func start(t *testing.T) (*controller, *fakeAgent, *Outbox) {
	t.Helper()
	return startAgent(t, &fakeAgent{})
}

func startAgent(t *testing.T, a *fakeAgent) (*controller, *fakeAgent, *Outbox) {
	t.Helper()
	ca, err := pki.NewAuthority("c", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	files := func(kind string) *pki.Files {
		k, err := pki.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		der, err := ca.Issue(pki.URI("c", kind, "n"), k.Public(), nil, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := pki.WriteFiles(dir, [][]byte{ca.Cert.Raw}, der, k, nil); err != nil {
			t.Fatal(err)
		}
		f, err := pki.LoadFiles(dir)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	m := mux.New(l, log)
	sl := m.Handle(pki.PeerServerTLS(files(pki.KindController), pki.Kinds(pki.KindNode)), wire.ALPNSession)
	c := &controller{sessions: make(chan *peer)}
	_, h := dv1connect.NewSessionHandler(c)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	wg.Go(func() {
		for {
			conn, err := sl.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				defer stop()
				(&http2.Server{}).ServeConn(conn, &http2.ServeConnOpts{Context: ctx, Handler: http.Handler(h)})
			})
		}
	})
	out := &Outbox{}
	a.out = out
	agent, stop := context.WithCancel(ctx)
	c.stop, c.stopped, c.status = stop, make(chan struct{}), &Status{}
	wg.Go(func() {
		defer close(c.stopped)
		_ = Run(agent, Options{Controllers: func() []string { return []string{l.Addr().String()} }, TLS: pki.PeerClientTLS(files(pki.KindNode), wire.ALPNSession, pki.Kinds(pki.KindController)), Agent: a, Outbox: out, Status: c.status, Log: log})
	})
	t.Cleanup(func() { stop(); cancel(); wg.Wait(); goleak.VerifyNone(t) })
	return c, a, out
}

func sync_(index uint64) *dv1.ToAgent {
	return &dv1.ToAgent{Of: &dv1.ToAgent_Sync{Sync: &dv1.Sync{Epoch: 1, Term: 1, Index: index}}}
}

func TestASyncIsStoredThenAcknowledgedAndAnOlderOneRefused(t *testing.T) {
	c, a, _ := start(t)
	p := <-c.sessions
	defer close(p.end)
	for _, i := range []uint64{5, 3, 7} {
		if err := p.Send(sync_(i)); err != nil {
			t.Fatal(err)
		}
		if i == 3 {
			continue // refused: no acknowledgement, and the session goes on
		}
		if got := p.next(t).GetAcks().GetIndex(); got != i {
			t.Fatalf("acknowledged %d, want %d", got, i)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refused != 1 || a.index != 7 || a.subnet != "10.210.0.0/24" {
		t.Fatalf("refused %d, index %d, subnet %q", a.refused, a.index, a.subnet)
	}
}

func TestStatusesArriveInOrderAndOnlyTheLastOfEachTask(t *testing.T) {
	c, _, out := start(t)
	for attempt := range int32(3) { // before a controller listens
		for _, id := range []string{"one", "two"} {
			out.Status(&dv1.TaskStatus{Id: []byte(id), Attempt: attempt})
		}
	}
	p := <-c.sessions
	defer close(p.end)
	got := p.next(t).GetObservation().GetTasks()
	if len(got) != 2 || string(got[0].GetId()) != "one" || got[0].GetAttempt() != 2 || got[1].GetAttempt() != 2 {
		t.Fatalf("got %v", got)
	}
}

func TestABrokenSessionIsOpenedAgainWithAHigherNumber(t *testing.T) {
	c, _, out := start(t)
	var last uint64
	for range 4 {
		p := <-c.sessions
		if n := p.hello.GetNumber(); n <= last {
			t.Fatalf("session number %d after %d", n, last)
		} else {
			last = n
		}
		out.Status(&dv1.TaskStatus{Id: []byte("x")})
		if m := p.next(t); len(m.GetObservation().GetTasks()) != 1 {
			t.Fatalf("got %v", m)
		}
		close(p.end)
	}
}

// session waits for one, long enough for one that hangs to be told from it.
func (c *controller) session(t *testing.T) *peer {
	t.Helper()
	select {
	case p := <-c.sessions:
		return p
	case <-time.After(20 * Silence):
		t.Fatal("no session was opened")
		return nil
	}
}

func TestASilentControllerIsLeftForANewSession(t *testing.T) {
	c, _, _ := start(t)
	silent := c.session(t) // holds its stream open, and says nothing
	defer close(silent.end)
	again := c.session(t)
	defer close(again.end)
	if again.hello.GetNumber() <= silent.hello.GetNumber() {
		t.Fatalf("session number %d after %d", again.hello.GetNumber(), silent.hello.GetNumber())
	}
}

func TestASessionEndsWithItsContextThoughTheControllerHoldsItOpen(t *testing.T) {
	c, _, _ := start(t)
	p := c.session(t)
	defer close(p.end)
	if _, err := p.Receive(); err != nil { // a beat: the session is waiting for us
		t.Fatal(err)
	}
	c.stop()
	select {
	case <-c.stopped:
	case <-time.After(Silence / 2): // sooner than silence would end it
		t.Fatal("the session goes on after its context ended")
	}
}

// A node's first welcome opens its network and its engine, which takes a while.
func TestANodeBeatsWhileItTakesItsWelcomeAndIsReadyAfterItsFirstSync(t *testing.T) {
	opening := make(chan struct{})
	c, _, out := startAgent(t, &fakeAgent{opening: opening})
	out.Status(&dv1.TaskStatus{Id: []byte("one")})
	p := c.session(t)
	defer close(p.end)
	if err := p.Send(sync_(5)); err != nil {
		t.Fatal(err)
	}
	for range 2 * Silence / BeatEvery { // longer than a silent node is waited for
		m, err := p.Receive()
		if err != nil || m.GetBeat() == nil {
			t.Fatalf("while its welcome is taken, the node sent %v: %v", m, err)
		}
	}
	if err := c.status.Ready(); err == nil {
		t.Error("ready before its welcome was taken")
	}
	close(opening)
	acked := false
	for !acked {
		acked = p.next(t).GetAcks().GetIndex() == 5
	}
	// The acknowledgement may come before the note of it.
	for deadline := time.Now().Add(20 * Silence); c.status.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not ready after its first sync: %v", c.status.Ready())
		}
	}
	p.end <- struct{}{}
	again := c.session(t)
	defer close(again.end)
	if c.status.Ready() == nil {
		t.Error("ready though its session ended")
	}
}

func TestNothingThatAnAgentSaysIsTooLongForItsSession(t *testing.T) {
	var tasks []*dv1.TaskStatus
	for i := range 3000 {
		tasks = append(tasks, &dv1.TaskStatus{Id: fmt.Appendf(nil, "task-%04d", i), Why: strings.Repeat("w", 200)})
	}
	c, _, out := startAgent(t, &fakeAgent{tasks: tasks})
	out.Status(&dv1.TaskStatus{Id: []byte("task-0000"), Attempt: 1, Why: "runc said \xff" + strings.Repeat("y", 17<<20)})
	out.Event(&dv1.Event{Action: "exec_create: " + strings.Repeat("x", 17<<20), Attributes: map[string]string{"execID": "e"}})
	for range 92 {
		out.Event(&dv1.Event{Action: "die"})
	}
	p := c.session(t)
	defer close(p.end)
	if !p.hello.GetInventory().GetFull() {
		t.Error("the inventory does not replace the one before")
	}
	seen := map[string]*dv1.TaskStatus{}
	var events []string
	take := func(o *dv1.Observation) {
		if n := proto.Size(o); n > 2*maxMessage {
			t.Errorf("a message has %d bytes", n)
		}
		for _, s := range o.GetTasks() {
			seen[string(s.GetId())] = s
		}
		for _, e := range o.GetEvents() {
			events = append(events, e.GetAction())
		}
	}
	take(p.hello.GetInventory())
	for len(events) < 93 {
		m := p.next(t).GetObservation()
		if m.GetFull() {
			t.Error("a part of the inventory replaces the others")
		}
		take(m)
	}
	if len(seen) != len(tasks) || seen["task-0000"].GetAttempt() != 1 || !strings.HasPrefix(seen["task-0000"].GetWhy(), "runc said \uFFFD") {
		t.Errorf("%d of %d tasks came, the one that changed is %.100v", len(seen), len(tasks), seen["task-0000"])
	}
	if !strings.HasPrefix(events[0], "exec_create: xxx") || events[92] != "die" {
		t.Errorf("events came as %.40q … %q", events[0], events[92])
	}
}

func TestWhatWaitsForAControllerIsBoundedInBytes(t *testing.T) {
	var o Outbox
	for i := range 300 {
		o.Event(&dv1.Event{Action: fmt.Sprint(i), Attributes: map[string]string{"of": strings.Repeat("x", 10<<10)}})
	}
	msgs, _ := o.take()
	o.putBack(msgs) // nothing is counted twice
	var kept []string
	for msgs, _ := o.take(); msgs != nil; msgs, _ = o.take() {
		if n := proto.Size(msgs[0]); n > maxMessage+maxEvent {
			t.Errorf("a message has %d bytes", n)
		}
		for _, e := range msgs[0].GetObservation().GetEvents() {
			kept = append(kept, e.GetAction())
		}
	}
	if _, dropped := o.losses(); len(kept) < 90 || len(kept)*(10<<10) > maxEventBytes || dropped != 300-len(kept) || kept[len(kept)-1] != "299" || kept[0] != fmt.Sprint(dropped) {
		t.Errorf("kept %d events, %s to %s, dropped %d", len(kept), kept[0], kept[len(kept)-1], dropped)
	}
	if o.bytes != 0 {
		t.Errorf("%d bytes are counted of nothing", o.bytes)
	}
}

func TestOutboxKeepsWhatCouldNotBeSentUnlessNewerIsThere(t *testing.T) {
	var o Outbox
	o.Status(&dv1.TaskStatus{Id: []byte("a"), Attempt: 1})
	o.Status(&dv1.TaskStatus{Id: []byte("b"), Attempt: 1})
	o.Removed([]byte("c"))
	o.Left([]byte("d"), []byte("n"))
	o.Left([]byte("d"), []byte("n"))
	o.Ack(4)
	msgs, _ := o.take()
	o.Status(&dv1.TaskStatus{Id: []byte("a"), Attempt: 2})
	o.putBack(msgs)
	again, _ := o.take()
	attempts := map[string]int32{}
	for _, s := range again[0].GetObservation().GetTasks() {
		attempts[string(s.GetId())] = s.GetAttempt()
	}
	if attempts["a"] != 2 || attempts["b"] != 1 || again[1].GetAcks().GetIndex() != 4 || len(again[1].GetAcks().GetRemoved()) != 1 ||
		len(again[1].GetAcks().GetLeft()) != 1 || string(again[1].GetAcks().Left[0].NetworkId) != "n" {
		t.Fatalf("got %v", again)
	}
	if more, ready := o.take(); more != nil || ready == nil {
		t.Fatalf("the outbox is not empty: %v", more)
	}
}

func TestAnAcknowledgementGoesInsteadOfABeatAndWakesNobody(t *testing.T) {
	var o Outbox
	_, ready := o.take()
	o.Ack(5)
	o.Ack(4)
	select {
	case <-ready:
		t.Error("it is sent at once")
	default:
	}
	if msgs, _ := o.take(); msgs != nil {
		t.Errorf("it is sent as %v", msgs)
	}
	m := o.beat(1)
	if m.GetAcks().GetIndex() != 5 {
		t.Errorf("the beat is %v, want the acknowledgement of 5", m)
	}
	o.putBack([]*dv1.FromAgent{m}) // it was not sent
	if m := o.beat(2); m.GetAcks().GetIndex() != 5 {
		t.Errorf("the beat after a failed one is %v", m)
	}
	if m := o.beat(3); m.GetBeat().GetSeq() != 3 {
		t.Errorf("the next one is %v, want a beat", m)
	}
	o.Ack(6)
	o.Removed([]byte("a"))
	if msgs, _ := o.take(); len(msgs) != 1 || msgs[0].GetAcks().GetIndex() != 6 || len(msgs[0].GetAcks().GetRemoved()) != 1 {
		t.Errorf("along with a tombstone it is %v", msgs)
	}
	if m := o.beat(4); m.GetBeat() == nil {
		t.Errorf("it is sent twice: %v", m)
	}
}
