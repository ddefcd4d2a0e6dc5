package engineapi

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/controller/fleet/fleettest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/fields"
	"github.com/drover/drover/pkg/registry"
	"github.com/drover/drover/pkg/route"
)

const busybox = "sha256:b0b0000000000000000000000000000000000000000000000000000000000000"

// api is docker's API of a fleet in memory, whose nodes do what they are told.
type api struct {
	t        *testing.T
	f        *fleettest.Fleet
	url      string
	registry string // host of one in memory

	mu    sync.Mutex // guards the fields below
	asked []string   // of agents: node, method and path
	odd   map[string]http.HandlerFunc
	execs map[string]*execState
}

// newAPI has an image, busybox, on both of two nodes.
func newAPI(t *testing.T) *api {
	t.Helper()
	reg := httptest.NewServer(ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo))))
	t.Cleanup(reg.Close)
	a := &api{t: t, f: fleettest.New(t, "web-1", "web-2"), registry: strings.TrimPrefix(reg.URL, "http://"), odd: map[string]http.HandlerFunc{}, execs: map[string]*execState{}}
	r, err := registry.New([]registry.Mirror{{Name: a.registry, Endpoint: reg.URL}})
	if err != nil {
		t.Fatal(err)
	}
	a.f.AddImage(&dv1.Image{Digest: busybox, Size: 4_000_000, Pulled: fleettest.Start.UnixNano(), Layers: []string{"sha256:" + strings.Repeat("1", 64)},
		RepoDigests: []string{"docker.io/library/busybox@" + busybox},
		Config:      []byte(`{"os":"linux","architecture":"amd64","created":"2025-01-02T03:04:05Z","author":"somebody","config":{"Cmd":["sh"],"Env":["PATH=/bin"],"Labels":{"from":"image"},"ExposedPorts":{"80/tcp":{}}}}`),
	}, "docker.io/library/busybox:latest")
	a.f.Hold(busybox, "n0", "n1")
	for _, n := range []string{"n0", "n1"} {
		a.f.HandleAgent(n, a.agent(n))
	}
	srv := httptest.NewUnstartedServer(a.f.As(fleettest.Admin, New(Options{Fleet: a.f, Registry: r, Version: "test"})))
	srv.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return ServedBy(ctx) }
	srv.Start()
	t.Cleanup(srv.Close)
	a.url = srv.URL
	return a
}

// agent serves a node's port as agents do.
func (a *api) agent(node string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/tasks/{id}/kill", func(w http.ResponseWriter, r *http.Request) {
		id, _ := hex.DecodeString(r.PathValue("id"))
		if sig := r.URL.Query().Get("signal"); sig == "SIGNONSENSE" {
			_ = answer(w, http.StatusBadRequest, map[string]string{"message": "Invalid signal: " + sig})
		} else if sig == "SIGKILL" || sig == "9" || sig == "KILL" {
			a.f.Exit(id, 137)
		}
	})
	serveFiles(mux)
	mux.HandleFunc("POST /v1/tasks/{id}/exec", func(_ http.ResponseWriter, r *http.Request) {
		st := &execState{ID: r.URL.Query().Get("id"), TaskID: r.PathValue("id"), Pid: 7}
		if err := json.NewDecoder(r.Body).Decode(&st.Options); err != nil {
			a.t.Error(err)
		}
		a.mu.Lock()
		a.execs[st.ID] = st
		a.mu.Unlock()
	})
	mux.HandleFunc("GET /v1/exec/{id}", func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if st := a.execs[r.PathValue("id")]; st != nil {
			_ = answer(w, http.StatusOK, st)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	})
	said := func(w http.ResponseWriter) {
		_ = bulk.WriteFrame(w, bulk.FrameStdout, []byte("out\n"))
		_ = bulk.WriteFrame(w, bulk.FrameStderr, []byte("err\n"))
		_ = bulk.WriteFrame(w, bulk.FrameExit, []byte("{}"))
	}
	mux.HandleFunc("POST /v1/exec/{id}/start", func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		st, code := a.execs[r.PathValue("id")], 3
		st.ExitCode = &code
		a.mu.Unlock()
		if r.URL.Query().Get("attach") != "" {
			streamed(a.t, w, r)
		}
	})
	mux.HandleFunc("POST /v1/tasks/{id}/attach", func(w http.ResponseWriter, r *http.Request) { streamed(a.t, w, r) })
	mux.HandleFunc("POST /v1/exec/{id}/resize", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /v1/tasks/{id}/resize", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v1/tasks/{id}/top", func(w http.ResponseWriter, r *http.Request) {
		_ = answer(w, http.StatusOK, container.TopResponse{Titles: []string{"PID", "CMD"}, Processes: [][]string{{"7", "sleep " + r.URL.Query().Get("ps_args")}}})
	})
	mux.HandleFunc("GET /v1/tasks/{id}/stats", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		_ = answer(w, http.StatusOK, container.StatsResponse{ID: r.PathValue("id"), Name: q.Get("name"), NumProcs: uint32(len(q.Get("previous")) + 2*len(q.Get("stream")))})
	})
	mux.HandleFunc("GET /v1/tasks/{id}/logs", func(w http.ResponseWriter, _ *http.Request) { said(w) })
	mux.HandleFunc("GET /v1/tasks/{id}/wait", func(w http.ResponseWriter, r *http.Request) {
		x := &dv1.Exit{Code: 9}
		for name, to := range map[string]*int32{"attempt": &x.Attempt, "restarts": &x.Restarts} {
			n, err := strconv.ParseInt(r.URL.Query().Get(name), 10, 32)
			if err != nil {
				a.t.Errorf("%s of a wait: %v", name, err)
			}
			*to = int32(n)
		}
		b, _ := protojson.Marshal(x)
		_, _ = w.Write(b)
	})
	mux.HandleFunc("DELETE /v1/images/{digest}", func(http.ResponseWriter, *http.Request) {})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.asked = append(a.asked, node+" "+r.Method+" "+r.URL.RequestURI())
		odd := a.odd[node]
		a.mu.Unlock()
		if odd != nil {
			odd(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// streamed writes a process's output on both streams, after the stdin that it read.
func streamed(t *testing.T, w http.ResponseWriter, r *http.Request) {
	c, err := bulk.Hijack(w, r)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	if r.URL.Query().Get("stdin") != "" {
		b, _ := io.ReadAll(c)
		_ = c.WriteFrame(bulk.FrameStdout, append([]byte("read "), b...))
	}
	_ = c.WriteFrame(bulk.FrameStdout, []byte("out\n"))
	_ = c.WriteFrame(bulk.FrameStderr, []byte("err\n"))
	_ = c.WriteFrame(bulk.FrameExit, []byte("{}"))
	select {
	case <-c.Acknowledged():
	case <-c.Context().Done():
	}
}

// reply is a response that was read.
type reply struct {
	code   int
	header http.Header
	body   string
}

// message is an error's text.
func (r reply) message() string {
	var m struct{ Message string }
	_ = json.Unmarshal([]byte(r.body), &m)
	return m.Message
}

// do sends a request; header is pairs of names and values.
func (a *api) do(method, path, body string, header ...string) reply {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.url+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, path, err)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

// is checks an answer's status, and that it says words somewhere.
func (a *api) is(r reply, what string, code int, words string) {
	a.t.Helper()
	if r.code != code || !strings.Contains(r.body, words) {
		a.t.Errorf("%s: %d %s; want %d %q", what, r.code, r.body, code, words)
	}
}

// run is a container that runs, on the contact's node.
func (a *api) run(name string) *dv1.Task {
	t := a.f.Create(name, "docker.io/library/busybox:latest", `{"Image":"busybox","Cmd":["sleep","9"],"Labels":{"name":"`+name+`"}}`)
	a.f.Run(t.Id)
	return a.f.Snapshot().Task(t.Id)
}

// exec makes an exec in a container and returns its id.
func (a *api) exec(name, options string) string {
	a.t.Helper()
	r := a.do("POST", "/containers/"+name+"/exec", options)
	var id struct{ Id string }
	if err := json.Unmarshal([]byte(r.body), &id); err != nil || r.code != http.StatusCreated {
		a.t.Fatalf("an exec: %d %s", r.code, r.body)
	}
	return id.Id
}

// hijack asks for a stream as docker's client does, says input, and returns the
// answer's status line and all that comes, without its head.
func (a *api) hijack(path, body, input string) (status, output string) {
	a.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: drover\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	r := bufio.NewReader(c)
	status, _ = r.ReadString('\n')
	for line := ""; line != "\r\n"; {
		if line, err = r.ReadString('\n'); err != nil {
			a.t.Fatalf("%s: %s: %v", path, status, err)
		}
	}
	if input != "" {
		_, _ = io.WriteString(c, input)
		_ = c.(*net.TCPConn).CloseWrite()
	}
	b, _ := io.ReadAll(r)
	return strings.TrimSpace(status), string(b)
}

func framed(kind byte, text string) string {
	var b strings.Builder
	_ = bulk.WriteFrame(&b, kind, []byte(text))
	return b.String()
}

// call is a request to a route that there is.
type call struct {
	path, body string
	code       int
	agent      bool // a node has to answer
	leader     bool // somebody has to decide
}

// calls are good requests, one for each route. $ID is a running container's id, $EXEC
// an exec's in it, $HOST a registry's.
var calls = map[string]call{
	"GET /_ping":                     {"/_ping", "", 200, false, false},
	"GET /version":                   {"/version", "", 200, false, false},
	"GET /info":                      {"/info", "", 200, false, false},
	"GET /events":                    {"/events?since=1&until=2", "", 200, false, false},
	"POST /auth":                     {"/auth", `{"ServerAddress":"$HOST","Username":"u","Password":"p"}`, 200, false, false},
	"GET /plugins":                   {"/plugins", "", 200, false, false},
	"POST /build/prune":              {"/build/prune", "", 200, false, false},
	"POST /build/cancel":             {"/build/cancel", "", 200, false, false},
	"GET /containers/json":           {"/containers/json?all=1", "", 200, false, false},
	"POST /containers/create":        {"/containers/create?name=other", `{"Image":"busybox"}`, 201, false, true},
	"GET /containers/{id}/json":      {"/containers/$ID/json", "", 200, false, false},
	"POST /containers/{id}/start":    {"/containers/$ID/start", "", 304, false, true},
	"POST /containers/{id}/stop":     {"/containers/$ID/stop", "", 204, true, true},
	"POST /containers/{id}/restart":  {"/containers/$ID/restart", "", 204, true, true},
	"POST /containers/{id}/rename":   {"/containers/$ID/rename?name=new", "", 204, false, true},
	"DELETE /containers/{id}":        {"/containers/$ID?force=1", "", 204, false, true},
	"POST /containers/{id}/attach":   {"/containers/$ID/attach?stdout=1&stderr=1&stream=1", "", 200, true, false},
	"GET /containers/{id}/logs":      {"/containers/$ID/logs?stdout=1", "", 200, true, false},
	"POST /containers/{id}/wait":     {"/containers/$ID/wait", "", 200, false, false},
	"POST /containers/{id}/kill":     {"/containers/$ID/kill?signal=USR1", "", 204, true, false},
	"POST /containers/{id}/resize":   {"/containers/$ID/resize?h=1&w=2", "", 200, true, false},
	"GET /containers/{id}/top":       {"/containers/$ID/top", "", 200, true, false},
	"GET /containers/{id}/stats":     {"/containers/$ID/stats?stream=0", "", 200, true, false},
	"GET /containers/{id}/archive":   {"/containers/$ID/archive?path=/etc", "", 200, true, false},
	"PUT /containers/{id}/archive":   {"/containers/$ID/archive?path=/etc", "tar", 200, true, false},
	"GET /containers/{id}/export":    {"/containers/$ID/export", "", 200, true, false},
	"GET /containers/{id}/changes":   {"/containers/$ID/changes", "", 200, true, false},
	"POST /containers/{id}/exec":     {"/containers/$ID/exec", `{"Cmd":["true"]}`, 201, true, false},
	"POST /exec/{id}/start":          {"/exec/$EXEC/start", `{"Detach":true}`, 200, true, false},
	"POST /exec/{id}/resize":         {"/exec/$EXEC/resize?h=1&w=2", "", 200, true, false},
	"GET /exec/{id}/json":            {"/exec/$EXEC/json", "", 200, true, false},
	"GET /images/json":               {"/images/json", "", 200, false, false},
	"POST /images/create":            {"/images/create?fromImage=$HOST/nothing&tag=1", "", 404, false, false},
	"GET /images/{name...}/json":     {"/images/busybox/json", "", 200, false, false},
	"POST /images/{name...}/tag":     {"/images/busybox/tag?repo=mine", "", 201, false, true},
	"DELETE /images/{name...}":       {"/images/busybox?force=1", "", 409, false, false},
	"GET /volumes":                   {"/volumes", "", 200, false, false},
	"POST /volumes/create":           {"/volumes/create", `{"Name":"new"}`, 201, false, true},
	"POST /volumes/prune":            {"/volumes/prune?filters=%7B%22all%22:%5B%22true%22%5D%7D", "", 200, false, true},
	"GET /volumes/{name}":            {"/volumes/data", "", 200, false, false},
	"PUT /volumes/{name}":            {"/volumes/data", "{}", 503, false, false},
	"DELETE /volumes/{name}":         {"/volumes/data", "", 204, false, true},
	"GET /system/df":                 {"/system/df", "", 200, false, false},
	"GET /networks":                  {"/networks", "", 200, false, false},
	"GET /networks/{id}":             {"/networks/bridge", "", 200, false, false},
	"POST /networks/create":          {"/networks/create", `{"Name":"web"}`, 201, false, true},
	"POST /networks/prune":           {"/networks/prune", "", 200, false, false},
	"POST /networks/{id}/connect":    {"/networks/nope/connect", `{"Container":"web"}`, 404, false, false},
	"POST /networks/{id}/disconnect": {"/networks/nope/disconnect", `{"Container":"web"}`, 404, false, false},
	"DELETE /networks/{id}":          {"/networks/bridge", "", 403, false, false},
	"/":                              {"/containers/prune", "", 501, false, false},
}

// ask makes a route's good call against a container that runs.
func (a *api) ask(route string, c call) reply {
	a.t.Helper()
	method, _, is := strings.Cut(route, " ")
	if !is {
		method = "POST"
	}
	fill := strings.NewReplacer("$ID", "web", "$HOST", a.registry)
	if strings.Contains(c.path, "$EXEC") {
		fill = strings.NewReplacer("$EXEC", a.exec("web", `{"Cmd":["true"],"Tty":true}`))
	}
	return a.do(method, fill.Replace(c.path), fill.Replace(c.body))
}

func TestEveryRoute(t *testing.T) {
	for _, r := range Routes {
		c, ok := calls[r.String()]
		if !ok {
			t.Errorf("nothing here asks for %s", r)
			continue
		}
		t.Run(r.String(), func(t *testing.T) {
			a := upgraded(t)
			task := a.run("web")
			if strings.Contains(r.Pattern, "/volumes") {
				a.is(a.do("POST", "/volumes/create", `{"Name":"data"}`), "a volume", 201, "data")
			}
			var node sync.WaitGroup
			switch { // some wait for the node's report
			case strings.Contains(c.path, "/stop"):
				node.Go(func() {
					a.await(task, func(t *dv1.Task) bool { return t.Desired == dv1.Desired_STOPPED })
					a.f.Exit(task.Id, 0)
				})
			case strings.Contains(c.path, "/wait"):
				node.Go(func() { a.f.Exit(task.Id, 0) })
			case strings.Contains(c.path, "/restart"):
				node.Go(func() {
					a.await(task, func(t *dv1.Task) bool { return t.Attempt == 2 })
					a.f.Report(&dv1.TaskReport{TaskId: task.Id, Attempt: 2, Started: 5})
				})
			}
			got := a.ask(r.String(), c)
			node.Wait()
			if got.code != c.code {
				t.Errorf("%s: %d %s, want %d", c.path, got.code, got.body, c.code)
			}
			if v := got.header.Get("Api-Version"); v != MaxVersion {
				t.Errorf("its Api-Version is %q", v)
			}
			if got.header.Get(wire.HeaderStale) != "" {
				t.Error("a response with a leader is marked as stale")
			}
		})
	}
}

// await blocks until so holds for a task.
func (a *api) await(t *dv1.Task, so func(*dv1.Task) bool) {
	err := a.f.WaitTask(a.t.Context(), hexID(t), func(t *dv1.Task, _ *dv1.TaskStatus) bool { return t == nil || so(t) })
	if err != nil {
		a.t.Error(err)
	}
}

func TestWhatIsNotThere(t *testing.T) {
	a := newAPI(t)
	for _, r := range Routes {
		path := calls[r.String()].path
		for was, words := range map[string]string{"/containers/$ID": "No such container: nothing", "/exec/$EXEC": "No such exec instance: nothing", "/images/busybox": "No such image: nothing:latest"} {
			thing, is := strings.CutPrefix(path, was)
			if !is {
				continue
			}
			body := calls[r.String()].body
			got := a.do(r.Method, was[:strings.LastIndex(was, "/")+1]+"nothing"+thing, body)
			if got.code != http.StatusNotFound || got.message() != words {
				t.Errorf("%s: %d %q, want 404 %q", r, got.code, got.message(), words)
			}
		}
	}
}

// A request to a silent node is refused at once, with the node's name; so is one to a node
// that refuses connections, once its agent had the time to restart.
func TestNodesThatDoNotAnswer(t *testing.T) {
	silent := func() (a *api, exec string) {
		a = newAPI(t)
		a.run("web")
		exec = a.exec("web", `{"Cmd":["true"]}`)
		a.f.Silence("n0", time.Now().Add(-time.Minute))
		return a, exec
	}
	for route, c := range calls {
		if !c.agent {
			continue
		}
		a, exec := silent() // one each: a stop is recorded, and would change later ones
		method, _, _ := strings.Cut(route, " ")
		got := a.do(method, strings.NewReplacer("$ID", "web", "$EXEC", exec).Replace(c.path), c.body)
		if got.code != http.StatusServiceUnavailable || !strings.Contains(got.message(), "1m") || !strings.Contains(got.message(), "n0") && !strings.Contains(got.message(), "web-1") {
			t.Errorf("%s: %d %q", route, got.code, got.message())
		}
	}
	a, _ := silent()
	if got := a.do("GET", "/containers/json", ""); got.code != 200 || got.header.Get(wire.HeaderMissing) != "n0" || !strings.Contains(got.body, "(node silent 1m") {
		t.Errorf("a list with a silent node: %d %s %v", got.code, got.body, got.header)
	}
	if got := a.do("GET", "/info", ""); got.header.Get(wire.HeaderMissing) != "n0" || !strings.Contains(got.body, "WARNING: node web-1 has not answered for 1m") {
		t.Errorf("info with a silent node: %s", got.body)
	}
	a = newAPI(t)
	a.run("web")
	a.f.HandleAgent("n0", nil) // before anybody has a connection
	a.is(a.do("POST", "/containers/web/kill", ""), "a kill of a node that is gone", http.StatusServiceUnavailable, "node web-1 does not answer")
}

// Without a leader, reads return what is known, marked as stale; writes are refused for
// now.
func TestWithoutALeader(t *testing.T) {
	a := newAPI(t)
	a.run("web")
	exec := a.exec("web", `{"Cmd":["true"]}`)
	a.is(a.do("POST", "/volumes/create", `{"Name":"data"}`), "a volume", 201, "data")
	a.f.SetLeader(false)
	for route, c := range calls {
		if c.leader {
			method, _, _ := strings.Cut(route, " ")
			got := a.do(method, strings.NewReplacer("$ID", "web", "$EXEC", exec).Replace(c.path), c.body)
			if got.code != http.StatusServiceUnavailable || !strings.Contains(got.message(), "the controllers have no leader") || got.header.Get("Retry-After") == "" {
				t.Errorf("%s: %d %q", route, got.code, got.message())
			}
		}
	}
	for _, path := range []string{"/containers/json", "/containers/web/json", "/images/json", "/images/busybox/json", "/info", "/exec/" + exec + "/json"} {
		if got := a.do("GET", path, ""); got.code != 200 || got.header.Get(wire.HeaderStale) != "1" {
			t.Errorf("%s: %d, stale %q", path, got.code, got.header.Get(wire.HeaderStale))
		}
	}
	a.is(a.do("POST", "/containers/web/kill", ""), "a signal needs no leader", http.StatusNoContent, "")
}

func TestBadRequests(t *testing.T) {
	a := newAPI(t)
	a.run("web")
	exec := a.exec("web", `{"Cmd":["true"]}`)
	for _, c := range []struct {
		request, body string
		code          int
		words         string
	}{
		{"GET /v1.23/containers/json", "", 400, "client version 1.23 is too old. Minimum supported API version is 1.24"},
		{"GET /v1.999/containers/json", "", 400, "client version 1.999 is too new. Maximum supported API version is"},
		{"GET /v2.0/containers/json", "", 400, "is too new"},
		{"GET /containers/json?limit=x", "", 400, `invalid limit \"x\"`},
		{"GET /containers/json?filters=x", "", 400, "invalid filters"},
		{"GET /containers/json?filters={\"nonsense\":[\"x\"]}", "", 400, "invalid filter 'nonsense'"},
		{"GET /containers/json?filters={\"status\":[\"x\"]}", "", 400, "invalid value for state"},
		{"GET /containers/json?filters={\"name\":[\"[\"]}", "", 400, "invalid filter 'name=['"},
		{"GET /containers/json?filters={\"exited\":[\"x\"]}", "", 400, "invalid filter 'exited=x'"},
		{"GET /containers/json?filters={\"before\":[\"x\"]}", "", 404, "No such container: x"},
		{"POST /containers/create", "", 400, "invalid JSON"},
		{"POST /containers/create", "{}", 400, "config cannot be empty in order to create a container"},
		{"POST /containers/create", "{", 400, "invalid JSON"},
		{"POST /containers/create", `{"Image":"busybox"} {}`, 400, "unexpected content after JSON"},
		{"POST /containers/create", `{"Cmd":["x"]}`, 400, "no image specified"},
		{"POST /containers/create", `{"Image":"nothing"}`, 404, "No such image: nothing:latest"},
		{"POST /containers/create?name=-x", `{"Image":"busybox"}`, 400, "Invalid container name (-x), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"},
		{"POST /containers/create?name=web", `{"Image":"busybox"}`, 409, `Conflict. The container name \"/web\" is already in use by container`},
		{"POST /containers/create?platform=linux/arm64", `{"Image":"busybox"}`, 404, "does not match the specified platform (linux/arm64)"},
		{"POST /containers/create", `{"Image":"busybox","HostConfig":{"NetworkMode":"mine"}}`, 400, "network mine not found"},
		{"POST /containers/create", `{"Image":"busybox","Labels":{"io.drover.on":"zone==x"}}`, 503, "zone==x"},
		{"POST /containers/web/stop?t=x", "", 400, `invalid timeout \"x\"`},
		{"POST /containers/web/stop?t=-2", "", 400, `invalid timeout \"-2\"`},
		{"POST /containers/web/restart?t=x", "", 400, "invalid timeout"},
		{"POST /containers/web/rename?name=-", "", 400, "Error when allocating new name: Invalid container name (/-), only"},
		{"POST /containers/web/rename?name=", "", 400, "Neither old nor new names may be empty"},
		{"POST /containers/web/rename?name=web", "", 400, "Renaming a container with the same name as its current name"},
		{"DELETE /containers/web", "", 409, "container is running: stop the container before removing or force remove"},
		{"DELETE /containers/web?link=1", "", 501, "link: links are not available"},
		{"POST /containers/web/wait?condition=x", "", 400, `invalid condition: \"x\"`},
		{"POST /containers/web/kill?signal=SIGNONSENSE", "", 400, "Invalid signal: SIGNONSENSE"},
		{"GET /containers/web/logs", "", 400, "Bad parameters: you must choose at least one stream"},
		{"GET /containers/web/logs?stdout=1&since=x", "", 400, `invalid time \"x\"`},
		{"POST /containers/web/resize?h=1", "", 400, `invalid width: \"\"`},
		{"POST /containers/web/resize?h=x&w=1", "", 400, `invalid height: \"x\"`},
		{"POST /containers/web/start?checkpoint=c", "", 501, "checkpoint: checkpoints are not available"},
		{"POST /containers/web/exec", `{}`, 400, "No exec command specified"},
		{"POST /containers/web/exec", `x`, 400, "invalid JSON"},
		{"POST /exec/" + exec + "/resize?h=1", "", 400, "invalid width"},
		{"GET /events?since=x", "", 400, `invalid time \"x\"`},
		{"GET /events?until=1.x", "", 400, `invalid time \"1.x\"`},
		{"GET /events?filters={\"x\":[\"y\"]}", "", 400, "invalid filter 'x'"},
		{"GET /images/json?filters={\"x\":[\"y\"]}", "", 400, "invalid filter 'x'"},
		{"GET /images/json?filters={\"until\":[\"x\"]}", "", 400, `invalid time \"x\"`},
		{"GET /images/json?filters={\"before\":[\"x\"]}", "", 404, "No such image: x:latest"},
		{"POST /images/create?fromImage=X", "", 400, "invalid reference format: X"},
		{"POST /images/create?fromSrc=-", "", 501, "fromSrc: importing images is not available"},
		{"POST /images/create?fromImage=$HOST/x&platform=windows/amd64", "", 400, "platform windows/amd64 does not run on any node"},
		{"POST /images/create?fromImage=$HOST/x&tag=sha256:" + strings.Repeat("1", 64), "", 404, "manifest unknown"},
		{"POST /images/busybox/tag?repo=X", "", 400, "invalid reference format: X"},
		{"DELETE /images/busybox?platforms=[1]", "", 501, "platforms: removing a platform of an image is not available"},
		{"POST /auth", `{"ServerAddress":"127.0.0.1:1","Username":"u"}`, 500, "127.0.0.1:1"},
		{"GET /networks/x", "", 404, "network x not found"},
		{"GET /volumes/x", "", 404, "get x: no such volume"},
		{"DELETE /volumes/x", "", 404, "get x: no such volume"},
		{"POST /volumes/create", `{"Name":"a/b"}`, 400, `create a/b: \"a/b\" includes invalid characters for a local volume name`},
		{"POST /volumes/create", `{"Name":"x"}`, 400, "create x: volume name is too short"},
		{"POST /volumes/create", `{"Name":"vol","Driver":"rexray"}`, 404, `error looking up volume plugin rexray: plugin \"rexray\" not found`},
		{"POST /volumes/create", `{"Name":"vol","DriverOpts":{"x":"y"}}`, 400, `create vol: invalid option: \"x\"`},
		{"POST /volumes/create", `{"Name":"vol","ClusterVolumeSpec":{}}`, 503, "This node is not a swarm manager"},
		{"PUT /volumes/x", "{}", 503, "volume update only valid for cluster volumes, but swarm is unavailable"},
		{"GET /volumes?filters={\"x\":[\"y\"]}", "", 400, "invalid filter 'x'"},
		{"GET /volumes?filters={\"dangling\":[\"y\"]}", "", 400, "invalid filter 'dangling"},
		{"POST /volumes/prune?filters={\"name\":[\"y\"]}", "", 400, "invalid filter 'name'"},
		{"GET /system/df?type=x", "", 400, "unknown object type: x"},
		{"GET /services", "", 503, "This node is not a swarm manager"},
		{"POST /build", "", 501, "this fleet has no built-in builder"},
		{"POST /plugins/pull", "", 501, "plugins are not available on a fleet"},
		{"GET /plugins/x/json", "", 404, `plugin \"x\" not found`},
		{"GET /containers/web/checkpoints", "", 501, "checkpoints are not available on a fleet"},
		{"PUT /nothing", "", 501, "PUT /nothing is not available on this fleet yet"},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		path = strings.NewReplacer("$HOST", a.registry, "{", "%7B", "}", "%7D", `"`, "%22", "[", "%5B", "]", "%5D").Replace(path)
		a.is(a.do(method, path, c.body), c.request+" "+c.body, c.code, c.words)
	}
	r := a.do("POST", "/containers/create", `{"Image":"busybox"}`, "Content-Type", "text/plain")
	a.is(r, "a body that is not JSON", 400, "unsupported Content-Type header (text/plain): must be 'application/json'")
	r = a.do("POST", "/containers/create", `{"Image":"`+strings.Repeat("x", maxBody)+`"}`)
	a.is(r, "a body without an end", http.StatusRequestEntityTooLarge, "request body is larger than")
	a.is(a.do("GET", "/containers/json", "", wire.HeaderIndex, "x"), "an index that is none", 400, "is not a raft index")
	if n := len(a.f.Snapshot().TasksByPrefix("")); n > 1 {
		t.Errorf("what was refused made %d containers", n-1)
	}
}

// Every field that the table refuses is refused by the API, and nothing is created.
func TestRefusedFieldsOfACreate(t *testing.T) {
	a := newAPI(t)
	for _, c := range []struct{ body, words string }{
		{`"HostConfig":{"CgroupParent":"/x"}`, "HostConfig.CgroupParent"}, {`"HostConfig":{"StorageOpt":{"size":"1g"}}`, "HostConfig.StorageOpt"},
		{`"HostConfig":{"LogConfig":{"Config":{"max-size":"1m"}}}`, "HostConfig.LogConfig.Config"},
		{`"HostConfig":{"RestartPolicy":{"Name":"always"}}`, "HostConfig.RestartPolicy.Name"}, {`"HostConfig":{"BlkioWeight":100}`, "HostConfig.BlkioWeight"},
		{`"NetworkingConfig":{"EndpointsConfig":{"bridge":{"MacAddress":"02:42:ac:11:00:02"}}}`, "NetworkingConfig.EndpointsConfig.bridge.MacAddress"},
	} {
		a.is(a.do("POST", "/containers/create", `{"Image":"busybox",`+c.body+`}`), c.body, http.StatusNotImplemented, `"message":"`+c.words+": ")
	}
	if n := len(a.f.Snapshot().TasksByPrefix("")); n > 0 {
		t.Errorf("what was refused made %d containers", n)
	}
}

// The treatment of query parameters is listed for existing routes only.
func TestQueriesAreOfRoutes(t *testing.T) {
	for listed := range fields.Queries {
		if !slices.ContainsFunc(Routes, func(r route.Route) bool { return strings.Replace(r.String(), "...}", "}", 1) == listed }) {
			t.Errorf("%s is no route", listed)
		}
	}
}

func TestACreateSaysWhatItLeavesOut(t *testing.T) {
	a := newAPI(t)
	r := a.do("POST", "/containers/create?name=new", `{"Image":"busybox","Healthcheck":{"Test":["CMD","true"]},"HostConfig":{"NetworkMode":"host","PortBindings":{"80/tcp":[{"HostPort":"80"}]}}}`)
	var made container.CreateResponse
	if err := json.Unmarshal([]byte(r.body), &made); err != nil || r.code != 201 || len(made.Warnings) != 2 {
		t.Fatalf("%d %s", r.code, r.body)
	}
	if r := a.do("POST", "/containers/create?name=plain", `{"Image":"busybox"}`); !strings.Contains(r.body, `"Warnings":[]`) {
		t.Errorf("without a warning: %s", r.body)
	}
}
