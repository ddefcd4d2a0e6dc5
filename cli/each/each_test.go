package each

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/commands"
	cliflags "github.com/docker/cli/cli/flags"
	"github.com/moby/moby/api/types/container"
	docker "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/drover/drover/cli/clitest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
)

// fleet is docker's API and the list of nodes, as a test plays them. Containers are
// called by their node.
type fleet struct {
	dv1connect.UnimplementedNodesHandler
	dv1connect.UnimplementedRunsHandler
	nodes    []*dv1.NodeInfo
	out      map[string]string // of a node's container; "" is "hello\n"
	code     map[string]int
	full     map[string]string // why a node takes no container
	fails    map[string]string // why a node's container does not start
	absent   atomic.Bool       // the image, until it is pulled
	refuses  error             // a run
	warnings []string          // of a run
	ctx      context.Context   // of the command, nil for the test's
	asking   func()            // is called for each run that is asked for
	endless  bool              // containers end when they are killed

	mu    sync.Mutex // guards the fields below
	log   []string
	asked []*dv1.CreateRunRequest
	ended map[string]chan struct{}
}

func (f *fleet) note(format string, a ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, a...))
}

// seen counts what was noted with a prefix.
func (f *fleet) seen(prefix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.log {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

// interruptAfter sends this process an interrupt once some containers were started.
func (f *fleet) interruptAfter(starts int) {
	go func() {
		for f.seen("start ") < starts {
			<-time.After(time.Millisecond)
		}
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGINT)
	}()
}

func (f *fleet) end(node string) chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended[node] == nil {
		f.ended[node] = make(chan struct{})
	}
	return f.ended[node]
}

func (f *fleet) List(_ context.Context, r *connect.Request[dv1.ListNodesRequest]) (*connect.Response[dv1.ListNodesResponse], error) {
	out := &dv1.ListNodesResponse{}
	for _, n := range f.nodes {
		if len(r.Msg.On) == 0 || slices.Contains(r.Msg.On, "node=="+n.Name) {
			out.Nodes = append(out.Nodes, n)
		}
	}
	return connect.NewResponse(out), nil
}

var route = regexp.MustCompile(`^(?:/v[0-9.]+)?/(containers|exec|images)/(?:([^/]+)/)?([a-z]+)$`)

// ServeHTTP is docker's API.
func (f *fleet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.44")
	w.Header().Set("Ostype", "linux")
	m := route.FindStringSubmatch(r.URL.Path)
	if r.Method == http.MethodDelete {
		f.note("remove %s", r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
	}
	if m == nil {
		return // a ping
	}
	node := strings.TrimPrefix(m[2], "on-")
	switch m[1] + " " + m[3] {
	case "containers attach", "exec start":
		f.stream(w, r, node)
	case "containers wait":
		_ = http.NewResponseController(w).Flush()
		<-f.end(node)
		_, _ = fmt.Fprintf(w, `{"StatusCode":%d}`, f.code[node])
	case "containers start":
		f.note("start %s", node)
		if why := f.fails[node]; why != "" {
			refuse(w, 400, why)
			return
		}
		if !f.endless {
			close(f.end(node))
		}
		w.WriteHeader(204)
	case "containers kill":
		if f.seen("start "+node) == 0 {
			refuse(w, 409, "container "+node+" is not running")
			return
		}
		f.note("kill %s with %s", node, r.URL.Query().Get("signal"))
		close(f.end(node))
	case "containers json":
		if m[2] != "" {
			_, _ = io.WriteString(w, `{"Id":"`+m[2]+`"}`)
			return
		}
		var all []container.Summary
		for _, n := range f.nodes {
			all = append(all, container.Summary{ID: "on-" + n.Name, Labels: map[string]string{labelNode: n.Name}})
		}
		if !strings.Contains(r.URL.Query().Get("filters"), labelRun+"=s") {
			all = nil
		}
		_ = json.NewEncoder(w).Encode(all)
	case "containers exec":
		var o struct{ Cmd []string }
		_ = json.NewDecoder(r.Body).Decode(&o)
		f.note("exec %s %s", node, strings.Join(o.Cmd, " "))
		w.WriteHeader(201)
		_, _ = fmt.Fprintf(w, `{"Id":"on-%s"}`, node)
	case "exec json":
		_, _ = fmt.Fprintf(w, `{"ID":"x","ExitCode":%d}`, f.code[node])
	case "images create":
		on := strings.TrimPrefix(r.Header.Get(wire.HeaderOn), "node==")
		f.note("pull %s", on)
		if why := f.full[on]; why != "" {
			refuse(w, 500, why)
			return
		}
		f.absent.Store(false)
		_, _ = io.WriteString(w, "{\"status\":\"Pulling from library/alpine\"}\n{\"status\":\"Digest: sha256:1\"}\n")
	default:
		refuse(w, 501, r.URL.Path)
	}
}

func refuse(w http.ResponseWriter, code int, msg string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": msg})
}

// Create makes a run on the nodes that are not full.
func (f *fleet) Create(_ context.Context, r *connect.Request[dv1.CreateRunRequest]) (*connect.Response[dv1.CreateRunResponse], error) {
	if f.asking != nil {
		f.asking()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.Msg)
	switch {
	case f.absent.Load():
		return nil, refusal(dv1.Error_NO_IMAGE, "No such image: alpine:latest")
	case f.refuses != nil:
		return nil, f.refuses
	}
	out := &dv1.CreateRunResponse{Warnings: f.warnings}
	why := map[string]uint32{}
	for _, n := range f.nodes {
		switch {
		case len(r.Msg.On) > 0 && !slices.Contains(r.Msg.On, "node=="+n.Name):
			why["don't match "+strings.Join(r.Msg.On, ", ")]++
		case n.Liveness != dv1.Node_READY || n.Availability != dv1.Node_ACTIVE:
			why["are not ready"]++
		case f.full[n.Name] != "":
			why[f.full[n.Name]]++
		default:
			out.Tasks = append(out.Tasks, &dv1.RunTask{Id: "on-" + n.Name, Name: fmt.Sprintf("%s-%d", r.Msg.Name, len(out.Tasks)+1), NodeId: n.Id, NodeName: n.Name})
		}
	}
	for _, w := range slices.Sorted(maps.Keys(why)) {
		out.PassedOver = append(out.PassedOver, &dv1.PassedOver{Nodes: why[w], Why: w})
	}
	return connect.NewResponse(out), nil
}

func refusal(kind dv1.Error_Kind, msg string) error {
	err := connect.NewError(wire.Code(kind), errors.New(msg))
	if d, e := connect.NewErrorDetail(&dv1.Error{Kind: kind, Message: msg}); e == nil {
		err.AddDetail(d)
	}
	return err
}

func (f *fleet) stream(w http.ResponseWriter, r *http.Request, node string) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	_ = bulk.WriteFrame(conn, bulk.FrameBegin, []byte{0})
	if strings.HasSuffix(r.URL.Path, "/attach") {
		<-f.end(node)
	}
	out := f.out[node]
	if out == "" {
		out = "hello\n"
	}
	_ = bulk.WriteFrame(conn, bulk.FrameStdout, []byte(out))
	_ = bulk.WriteFrame(conn, bulk.FrameExit, nil)
	_, _ = io.Copy(io.Discard, conn) // until it is read
}

func newFleet(nodes ...string) *fleet {
	f := &fleet{out: map[string]string{}, code: map[string]int{}, full: map[string]string{}, fails: map[string]string{}, ended: map[string]chan struct{}{}}
	for _, n := range nodes {
		f.nodes = append(f.nodes, &dv1.NodeInfo{Id: n, Name: n, Liveness: dv1.Node_READY, Availability: dv1.Node_ACTIVE})
	}
	return f
}

// drover runs docker's commands on the fleet, with --each.
func (f *fleet) drover(t *testing.T, line string) (stdout, stderr string, code int) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle(dv1connect.NewNodesHandler(f))
	mux.Handle(dv1connect.NewRunsHandler(f))
	mux.Handle("/", f)
	s := clitest.Serve(t, mux)
	var out, errs bytes.Buffer
	dc, err := command.NewDockerCli(command.WithInputStream(io.NopCloser(strings.NewReader(""))), command.WithOutputStream(&out), command.WithErrorStream(&errs))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if err := dc.Initialize(cliflags.NewClientOptions(), command.WithInitializeClient(func(*command.DockerCli) (docker.APIClient, error) { return s.Docker(noop.NewTracerProvider()) })); err != nil {
		t.Fatal(err)
	}
	root := &cobra.Command{Use: "drover", SilenceUsage: true, SilenceErrors: true, TraverseChildren: true}
	commands.AddCommands(root, dc)
	Add(root, s, dc)
	root.SetArgs(strings.Fields(line))
	root.SetOut(&out)
	root.SetErr(&errs)
	ctx := f.ctx
	if ctx == nil {
		ctx = t.Context()
	}
	err = root.ExecuteContext(ctx)
	if err != nil {
		code = 1
		if st, ok := err.(cli.StatusError); ok {
			code = st.StatusCode
		}
		_, _ = fmt.Fprintln(&errs, s.Explain(err))
	}
	return out.String(), errs.String(), code
}

// sorted are lines of several nodes, which come in any order.
func sorted(s string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func TestWhatPeopleRead(t *testing.T) {
	for _, c := range []struct {
		name, line string
		set        func(f *fleet)
		code       int
	}{
		{"alike", "run --each --rm alpine uname -r", func(*fleet) {}, 0},
		{"two-kinds", "run --each --rm alpine uname -r", func(f *fleet) { f.out["b"] = "6.1\n"; f.out["d"] = "6.1\n" }, 0},
		{"no-newline", "run --each alpine cat", func(f *fleet) { f.out["c"] = "no end" }, 0},
		{"one-fails", "run --each --rm alpine false", func(f *fleet) { f.code["b"] = 4 }, 1},
		{"all-fail", "run --each --rm alpine false", func(f *fleet) { f.code = map[string]int{"a": 7, "b": 7, "c": 7, "d": 7} }, 7},
		{"one-is-full", "run --each alpine true", func(f *fleet) { f.full["c"] = "lack 2 GiB memory" }, 1},
		{"some-are-full", "run --each --on node==a,node==b,node==c alpine true", func(f *fleet) { f.full["b"], f.full["c"] = "lack 2 GiB memory", "have port 80 taken" }, 1},
		{"none-fits", "run --each alpine true", func(f *fleet) {
			f.refuses = refusal(dv1.Error_UNAVAILABLE, "0 of 4 nodes fit: 4 lack 2 GiB memory")
		}, 125},
		{"name-taken", "run --each --name s alpine true", func(f *fleet) {
			f.refuses = refusal(dv1.Error_NAME_TAKEN, `Conflict. The container name "/s" is already in use by run s.`)
		}, 125},
		{"never-pulled", "run --each --pull never alpine true", func(f *fleet) { f.absent.Store(true) }, 125},
		{"warned", "run --each alpine true", func(f *fleet) { f.warnings = []string{"health checks are not available on this fleet yet"} }, 0},
		{"not-found", "run --each alpine nothing", func(f *fleet) {
			for _, n := range f.nodes {
				f.fails[n.Name] = "exec: \"nothing\": executable file not found in $PATH"
			}
		}, 127},
		{"left-out", "run --each alpine true", func(f *fleet) {
			f.nodes[0].Liveness, f.nodes[1].Availability = dv1.Node_DOWN, dv1.Node_DRAIN
		}, 0},
		{"nobody", "run --each --on node==z alpine true", func(*fleet) {}, 125},
		{"chosen", "run --each --on node==b,node==c alpine true", func(*fleet) {}, 0},
		{"detached", "run -d --each --name s alpine sleep 9", func(*fleet) {}, 0},
		{"pulled-first", "run --each alpine true", func(f *fleet) { f.absent.Store(true) }, 0},
		{"terminal", "run --each -it alpine sh", func(*fleet) {}, 1},
		{"cidfile", "run --each --cidfile x alpine sh", func(*fleet) {}, 1},
		{"exec", "exec --each s cat /etc/hostname", func(f *fleet) { f.out["a"] = "other\n" }, 0},
		{"exec-fails", "exec --each s false", func(f *fleet) { f.code["c"] = 3 }, 1},
		{"exec-some", "exec --each --on node==b s true", func(*fleet) {}, 0},
		{"exec-nobody", "exec --each t true", func(*fleet) {}, 1},
		{"exec-on", "exec --on node==b s true", func(*fleet) {}, 1},
		{"pull", "pull --each alpine", func(*fleet) {}, 0},
		{"pull-quiet", "pull -q --each alpine", func(*fleet) {}, 0},
		{"pull-fails", "pull --each alpine", func(f *fleet) { f.full["b"] = "registry answered 429" }, 1},
		{"pull-first-fails", "pull --each alpine", func(f *fleet) { f.full["a"] = "registry answered 429" }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFleet("a", "b", "c", "d")
			c.set(f)
			out, errs, code := f.drover(t, c.line)
			if code != c.code {
				t.Errorf("exit code %d, not %d", code, c.code)
			}
			clitest.Golden(t, c.name+".txt", "$ drover "+c.line+"\n"+sorted(out)+"--- stderr\n"+sorted(errs))
		})
	}
}

// The fleet gets the request that docker's own command makes, once.
func TestTheFleetGetsDockersRequest(t *testing.T) {
	f := newFleet("a", "b")
	if _, errs, code := f.drover(t, "run -d --each --on node==b,node==a --rm --name web --platform linux/amd64 -e X=1 -p 80:80 -l k=v -m 64m alpine sleep 9"); code != 0 {
		t.Fatal(errs)
	}
	if len(f.asked) != 1 {
		t.Fatalf("%d runs", len(f.asked))
	}
	r := f.asked[0]
	if r.Name != "web" || r.Platform != "linux/amd64" || r.Mode != dv1.Run_EACH || strings.Join(r.On, " ") != "node==b node==a" {
		t.Errorf("the run is %v", r)
	}
	var b container.CreateRequest
	if err := json.Unmarshal(r.Body, &b); err != nil {
		t.Fatal(err)
	}
	if b.Image != "alpine" || strings.Join(b.Cmd, " ") != "sleep 9" || !b.HostConfig.AutoRemove || b.HostConfig.Memory != 64<<20 || b.Labels["k"] != "v" || b.Labels[labelRun] != "web" || !slices.Contains(b.Env, "X=1") {
		t.Errorf("its request is %+v", b)
	}
}

// Runs without a name are told apart by their label.
func TestARunWithoutANameHasALabel(t *testing.T) {
	f := newFleet("a")
	var labels []string
	for range 2 {
		f.ended = map[string]chan struct{}{}
		if _, errs, code := f.drover(t, "run -d --each alpine true"); code != 0 {
			t.Fatal(errs)
		}
		var b container.CreateRequest
		if err := json.Unmarshal(f.asked[len(f.asked)-1].Body, &b); err != nil {
			t.Fatal(err)
		}
		labels = append(labels, b.Labels[labelRun])
	}
	if len(labels[0]) != 12 || labels[0] == labels[1] || f.asked[0].Name != "" {
		t.Errorf("%q", labels)
	}
}

// What was made while somebody interrupted the command is removed, and not started.
func TestAnInterruptedCreateIsUndone(t *testing.T) {
	f := newFleet("a", "b")
	ctx, interrupt := context.WithCancel(t.Context())
	f.ctx, f.asking = ctx, func() {
		interrupt()
		<-time.After(50 * time.Millisecond) // for a client that does not wait for the answer
	}
	if _, _, code := f.drover(t, "run --each alpine true"); code == 0 {
		t.Error("it went well")
	}
	slices.Sort(f.log)
	if got := strings.Join(f.log, ", "); got != "remove on-a, remove on-b" {
		t.Errorf("the fleet saw %s", got)
	}
}

// What an interrupt finds unstarted, because only so many are worked on at once, is
// removed: nobody would stop it.
func TestAnInterruptedRunStartsNothingMore(t *testing.T) {
	var nodes []string
	for i := range atOnce + 3 {
		nodes = append(nodes, fmt.Sprintf("n%03d", i))
	}
	f := newFleet(nodes...)
	f.endless = true
	f.interruptAfter(atOnce)
	if _, errs, code := f.drover(t, "run --each --rm alpine sleep 1000"); code == 0 || !strings.Contains(errs, "failed on 3 of 67 nodes: n064, n065, n066") {
		t.Errorf("it ended with %d: %s", code, errs)
	}
	if n := f.seen("start "); n != atOnce {
		t.Errorf("%d were started, not %d", n, atOnce)
	}
	for _, node := range nodes[atOnce:] {
		if !slices.Contains(f.log, "remove on-"+node) {
			t.Errorf("%s's was not removed", node)
		}
	}
}

type kept struct{}

// Whoever interrupts a run that was asked for waits for its answer, not for ever.
func TestACreateOutlastsAnInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		short, interrupt := context.WithCancel(context.WithValue(t.Context(), kept{}, true))
		long, cancel := outlast(short, time.Minute)
		defer cancel()
		interrupt()
		time.Sleep(time.Minute - 1)
		if synctest.Wait(); long.Err() != nil || long.Value(kept{}) == nil {
			t.Errorf("it ended early: %v", long.Err())
		}
		time.Sleep(time.Nanosecond)
		if synctest.Wait(); long.Err() == nil {
			t.Error("it goes on")
		}
	})
	long, cancel := outlast(t.Context(), time.Minute)
	if cancel(); long.Err() == nil {
		t.Error("it was not cancelled")
	}
}

// An interrupt goes to every container; the command ends when they have.
func TestAnInterruptGoesToAll(t *testing.T) {
	f := newFleet("a", "b", "c")
	f.endless = true
	f.code = map[string]int{"a": 130, "b": 130, "c": 130}
	f.interruptAfter(3)
	if _, errs, code := f.drover(t, "run --each --rm alpine sleep 1000"); code != 130 || !strings.Contains(errs, "failed on 3 of 3") {
		t.Errorf("it ended with %d: %s", code, errs)
	}
	for _, n := range []string{"a", "b", "c"} {
		if !slices.Contains(f.log, "kill "+n+" with 2") {
			t.Errorf("%s got no interrupt: %q", n, f.log)
		}
	}
}
