package fleettest

import (
	"context"
	"encoding/hex"
	"iter"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// reports is the scripted reports of agents.
type reports struct {
	mu      sync.Mutex // guards the fields below
	tasks   map[string]*dv1.TaskStatus
	holders map[string][]string
	silent  map[string]int64
}

func newReports() *reports {
	return &reports{tasks: map[string]*dv1.TaskStatus{}, holders: map[string][]string{}, silent: map[string]int64{}}
}

// Observed implements fleet.Reports.
func (r *reports) Observed(taskID string) *dv1.TaskStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tasks[taskID]
}

// Holders implements fleet.Reports.
func (r *reports) Holders(digest string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.holders[digest])
}

// Silent implements fleet.Reports.
func (r *reports) Silent() map[string]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.silent)
}

// Ended implements fleet.Reports.
func (r *reports) Ended() iter.Seq[*dv1.TaskStatus] {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*dv1.TaskStatus
	for _, st := range r.tasks {
		if st.Exit != nil && !life.Of(st.Exit).Before(life.Of(st)) || st.Phase == dv1.Phase_FAILED {
			out = append(out, st)
		}
	}
	return slices.Values(out)
}

// Paused implements fleet.Reports.
func (r *reports) Paused() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, st := range r.tasks {
		if st.Paused {
			n++
		}
	}
	return n
}

// Observed makes a task's agent report a status, without recording it in the log.
func (f *Fleet) Observed(st *dv1.TaskStatus) {
	id := hex.EncodeToString(st.Id)
	f.reports.mu.Lock()
	f.reports.tasks[id] = st
	f.reports.mu.Unlock()
	f.StatusChanged(id)
}

// Report makes a task's agent report what the log records: a start, an exit, a
// failure.
func (f *Fleet) Report(r *dv1.TaskReport) {
	f.t.Helper()
	t := f.Snapshot().Task(r.TaskId)
	if t == nil {
		f.t.Fatalf("a report about no task: %v", r)
	}
	f.Do(&dv1.Command{Of: &dv1.Command_Report{Report: &dv1.Report{NodeId: t.NodeId, Tasks: []*dv1.TaskReport{r}}}})
}

// Run starts a task and makes its agent report that it runs.
func (f *Fleet) Run(id []byte) {
	f.t.Helper()
	f.Do(&dv1.Command{Of: &dv1.Command_Start{Start: &dv1.Start{TaskId: id}}})
	attempt, at := f.Snapshot().Task(id).Attempt, f.now()
	f.Observed(&dv1.TaskStatus{Id: id, Attempt: attempt, Phase: dv1.Phase_ACTIVE, At: at, Started: at, Pid: 42,
		Ip: "10.210.0.2", Gateway: "10.210.0.1", PrefixLen: 24, Mac: "02:00:00:00:00:02"})
	f.Report(&dv1.TaskReport{TaskId: id, Attempt: attempt, Started: at})
}

// Exit makes a task's agent report that its attempt ended.
func (f *Fleet) Exit(id []byte, code int32) {
	f.t.Helper()
	t := f.Snapshot().Task(id)
	x := &dv1.Exit{Attempt: t.GetAttempt(), Code: code, At: f.now(), Started: t.GetStarted()}
	f.Observed(&dv1.TaskStatus{Id: id, Attempt: t.GetAttempt(), Phase: dv1.Phase_EXITED, At: x.At, Started: x.Started, Exit: x})
	f.Report(&dv1.TaskReport{TaskId: id, Attempt: t.GetAttempt(), Exit: x})
}

// Silence makes a node silent since then; the zero time ends that.
func (f *Fleet) Silence(node string, since time.Time) {
	f.reports.mu.Lock()
	defer f.reports.mu.Unlock()
	if delete(f.reports.silent, node); !since.IsZero() {
		f.reports.silent[node] = since.UnixNano()
	}
}

// Hold makes these nodes the holders of an image.
func (f *Fleet) Hold(digest string, nodes ...string) {
	f.reports.mu.Lock()
	defer f.reports.mu.Unlock()
	f.reports.holders[digest] = nodes
}

// Publish makes an agent report an event.
func (f *Fleet) Publish(e *dv1.Event) { f.Reported(e) }

// HandleAgent makes h serve a node's bulk port, including streams (bulk.Hijack). A
// node without a handler refuses connections.
func (f *Fleet) HandleAgent(node string, h http.Handler) {
	f.agents.mu.Lock()
	defer f.agents.mu.Unlock()
	f.agents.handlers[node] = h
}

// agents are the nodes' bulk ports: one in-memory server each.
type agents struct {
	mu       sync.Mutex // guards the fields below
	handlers map[string]http.Handler
	clients  map[string]*http.Client
	t        testing.TB
}

var errRefused = &net.OpError{Op: "dial", Net: "pipe", Err: syscall.ECONNREFUSED}

func newAgents(t testing.TB) *agents {
	return &agents{handlers: map[string]http.Handler{}, clients: map[string]*http.Client{}, t: t}
}

func (a *agents) client(node string) *http.Client {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.clients[node]
	if c == nil {
		l := &pipes{c: make(chan net.Conn), done: make(chan struct{})}
		srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if h := a.handler(node); h != nil {
				h.ServeHTTP(w, r)
			}
		})}
		var serving sync.WaitGroup
		serving.Go(func() { _ = srv.Serve(l) })
		t := &http.Transport{DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if a.handler(node) == nil {
				return nil, errRefused
			}
			return l.dial(ctx)
		}}
		c = &http.Client{Transport: t}
		a.clients[node] = c
		a.t.Cleanup(func() {
			t.CloseIdleConnections()
			_ = srv.Close()
			serving.Wait()
		})
	}
	return c
}

func (a *agents) handler(node string) http.Handler {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.handlers[node]
}

// pipes is a listener for in-memory connections.
type pipes struct {
	c    chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *pipes) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.c <- far:
		return near, nil
	case <-l.done:
		return nil, errRefused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *pipes) Close() error { l.once.Do(func() { close(l.done) }); return nil }

// Addr implements net.Listener.
func (l *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "agent", Net: "pipe"} }
