package streams

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/task/faketask"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/life"
)

// calls remembers calls in memory.
type calls struct {
	mu   sync.Mutex // guards the fields below
	made map[string]bool
	err  error
}

func (c *calls) First(key string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.made[key] {
		return false, c.err
	}
	c.made[key] = true
	return true, nil
}

func (c *calls) Undo(key string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.made, key)
	return nil
}

// node is an agent's port over an engine in memory, as a controller finds it.
type node struct {
	t     *testing.T
	hc    *http.Client
	e     *faketask.Engine
	calls *calls
	told  []bulk.PullRequest
}

const digest = "sha256:busybox"

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, e: faketask.New(), calls: &calls{made: map[string]bool{}}}
	n.e.Images.Add(digest)
	t.Cleanup(n.e.Close)
	n.hc = serve(t, n.e, n.e.Images, Options{Calls: n.calls, Pull: func(r bulk.PullRequest) { n.told = append(n.told, r) },
		Probe: func(_ context.Context, node, addr string) error {
			if addr != "127.0.0.1:7444" {
				return fmt.Errorf("%s does not answer at %s", node, addr)
			}
			return nil
		}})
	return n
}

// prepared makes a task; its id is that letter, 64 times.
func (n *node) prepared(letter string, cmd ...string) (id string) {
	n.t.Helper()
	id = strings.Repeat(letter, 64)
	c := container.CreateRequest{Config: &container.Config{Cmd: cmd, OpenStdin: true}, HostConfig: &container.HostConfig{}}
	if err := n.e.Prepare(n.t.Context(), task.Spec{ID: id, Name: letter, Image: "busybox", Digest: digest, Create: c}); err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) started(letter string, cmd ...string) (id string) {
	n.t.Helper()
	id = n.prepared(letter, cmd...)
	if _, err := n.e.Start(n.t.Context(), id, life.First(1), nil); err != nil {
		n.t.Fatal(err)
	}
	return id
}

// ask returns an answer's status and body.
func (n *node) ask(method, path, body string) (int, string) {
	n.t.Helper()
	r, err := http.NewRequestWithContext(n.t.Context(), method, "http://agent"+path, strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	resp, err := n.hc.Do(r)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// output returns the stdout of a stream of frames, and its last frame of another kind.
func output(t *testing.T, next func() (byte, []byte, error)) (out string, last byte, body string) {
	t.Helper()
	for {
		kind, b, err := next()
		switch {
		case errors.Is(err, io.EOF):
			return out, last, body
		case err != nil:
			t.Fatal(err)
		case kind == bulk.FrameStdout:
			out += string(b)
		case kind != bulk.FramePos:
			if last, body = kind, string(b); kind == bulk.FrameExit {
				return out, last, body
			}
		}
	}
}

// The response says what is wrong with a request, and nothing is done.
func TestBadRequestsAreRefused(t *testing.T) {
	n := newNode(t)
	runs, ready, none := n.started("a", "sleep", "1000"), n.prepared("b", "true"), strings.Repeat("0", 64)
	for _, c := range []struct {
		method, path, body string
		code               int
		words              string
	}{
		{"GET", "/v1/tasks/" + none + "/logs?stdout=1", "", 404, "not found"},
		{"GET", "/v1/tasks/" + runs + "/logs?since=yesterday", "", 400, "time:"},
		{"GET", "/v1/tasks/" + runs + "/logs?until=1e9", "", 400, "time:"},
		{"GET", "/v1/tasks/" + runs + "/logs?from=zz", "", 400, "from:"},
		{"GET", "/v1/tasks/" + runs + "/logs?from=00", "", 400, "from:"},
		{"POST", "/v1/tasks/" + none + "/attach?stdout=1", "", 404, "not found"},
		{"POST", "/v1/tasks/" + runs + "/attach?from=zz", "", 400, "from:"},
		{"POST", "/v1/tasks/" + runs + "/attach?stdout=1", "", 426, "Upgrade"},
		{"GET", "/v1/tasks/" + runs + "/wait", "", 400, "attempt:"},
		{"GET", "/v1/tasks/" + runs + "/wait?attempt=9999999999", "", 400, "attempt:"},
		{"GET", "/v1/tasks/" + runs + "/wait?attempt=0", "", 404, "not found"},
		{"GET", "/v1/tasks/" + runs + "/wait?attempt=1&restarts=x", "", 400, "restarts:"},
		{"POST", "/v1/tasks/" + none + "/kill?signal=TERM", "", 404, "not found"},
		{"POST", "/v1/tasks/" + ready + "/kill?signal=TERM", "", 409, "not running"},
		{"POST", "/v1/tasks/" + runs + "/resize?w=x&h=1", "", 400, "w:"},
		{"POST", "/v1/tasks/" + runs + "/resize?w=1&h=70000", "", 400, "h:"},
		{"POST", "/v1/tasks/" + ready + "/resize?w=1&h=1", "", 409, "not running"},
		{"GET", "/v1/tasks/" + none + "/top", "", 404, "not found"},
		{"GET", "/v1/tasks/" + ready + "/top", "", 409, "not running"},
		{"GET", "/v1/tasks/" + none + "/stats", "", 404, "not found"},
		{"POST", "/v1/tasks/" + runs + "/exec?id=e", "{", 400, "reading the request"},
		{"POST", "/v1/tasks/" + runs + "/exec", "{}", 400, "id of the exec is missing"},
		{"POST", "/v1/tasks/" + ready + "/exec?id=e", "{}", 409, "not running"},
		{"GET", "/v1/exec/none", "", 404, "exec none"},
		{"POST", "/v1/exec/none/start", "", 404, "exec none"},
		{"POST", "/v1/exec/none/start?w=-1", "", 400, "w:"},
		{"POST", "/v1/exec/none/resize?h=x", "", 400, "h:"},
		{"POST", "/v1/images/pull", "[]", 400, "reading the request"},
		{"POST", "/v1/images/pull", strings.Repeat(" ", maxBody+1), 413, "over 1048576 bytes"},
		{"GET", "/v1/probe?node=x&addr=10.0.0.1:7444", "", 502, "x does not answer at 10.0.0.1:7444"},
	} {
		code, body := n.ask(c.method, c.path, c.body)
		var said struct{ Message string }
		if err := json.Unmarshal([]byte(body), &said); code != c.code || err != nil || !strings.Contains(said.Message, c.words) || said.Message == "" {
			t.Errorf("%s %s: %d %q (%v), want %d with %q", c.method, c.path, code, body, err, c.code, c.words)
		}
	}
	if c := n.e.Calls(); slices.Contains(c, "signal TERM aa") {
		t.Errorf("the steps were %v", c)
	}
	if len(n.told) > 0 {
		t.Errorf("a pull was passed on: %v", n.told)
	}
}

func TestErrorsHaveTheirStatus(t *testing.T) {
	for err, want := range map[error]int{
		badRequest("x"): 400,
		&bulk.StatusError{Code: 418, Message: "x"}:          418,
		&task.StartError{Code: 127, Message: "x"}:           400,
		fmt.Errorf("x: %w", task.ErrNotFound):               404,
		fmt.Errorf("x: %w", task.ErrNoImage):                404,
		fmt.Errorf("x: %w", task.ErrNotRunning):             409,
		errors.New("containerd is away"):                    500,
		fmt.Errorf("x: %w", context.DeadlineExceeded):       500,
		errors.Join(errors.New("also"), task.ErrNotRunning): 409,
	} {
		w := httptest.NewRecorder()
		if refuse(w, err); w.Code != want || !strings.Contains(w.Body.String(), `"message":`) {
			t.Errorf("%v: %d %s, want %d", err, w.Code, w.Body, want)
		}
	}
}

func TestAWaitReportsTheExit(t *testing.T) {
	n := newNode(t)
	id := n.started("a", "sh", "-c", "exit 3")
	code, body := n.ask("GET", "/v1/tasks/"+id+"/wait?attempt=1", "")
	var x dv1.Exit
	if err := protojson.Unmarshal([]byte(body), &x); code != 200 || err != nil || x.Code != 3 || x.Attempt != 1 {
		t.Fatalf("%d %s (%v)", code, body, err)
	}
	again := life.First(1).Anew()
	if _, err := n.e.Start(t.Context(), id, again, nil); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]life.Life{"attempt=1": life.First(1), "attempt=1&restarts=0": life.First(1), "attempt=1&restarts=1": again} {
		code, body := n.ask("GET", "/v1/tasks/"+id+"/wait?"+query, "")
		var x dv1.Exit
		if err := protojson.Unmarshal([]byte(body), &x); code != 200 || err != nil || life.Of(&x) != want {
			t.Errorf("%s: %d %s (%v), want attempt %s", query, code, body, err, want)
		}
	}
}

// A retried signal, whose first response was lost, is sent once; one that failed may be
// retried.
func TestASignalIsSentOnce(t *testing.T) {
	n := newNode(t)
	id := n.started("a", "sleep", "1000")
	sent := func() (k int) {
		for _, c := range n.e.Calls() {
			if strings.HasPrefix(c, "signal") {
				k++
			}
		}
		return k
	}
	kill := func(query string, code, want int) {
		t.Helper()
		if got, body := n.ask("POST", "/v1/tasks/"+id+"/kill?"+query, ""); got != code || sent() != want {
			t.Errorf("%s: %d %s, %d signals so far; want %d, %d", query, got, body, sent(), code, want)
		}
	}
	kill("signal=TERM&attempt=1&key=k", 204, 1)
	kill("signal=TERM&attempt=1&key=k", 204, 1)
	kill("signal=TERM&attempt=1&key=other", 204, 2)
	kill("signal=TERM&attempt=2&key=k", 204, 3)
	kill("signal=TERM", 204, 4)
	kill("signal=TERM", 204, 5)
	n.e.Hook(func(_ context.Context, call, _ string) error {
		if strings.HasPrefix(call, "signal") {
			return task.ErrNotRunning
		}
		return nil
	})
	kill("signal=TERM&attempt=1&key=fails", 409, 6)
	kill("signal=TERM&attempt=1&key=fails", 409, 7)
	n.e.Hook(nil)
	kill("signal=TERM&attempt=1&key=fails", 204, 8)
	n.calls.mu.Lock()
	n.calls.err = errors.New("disk full")
	n.calls.mu.Unlock()
	kill("signal=TERM&attempt=1&key=lost", 500, 8)
}

func TestLogsAsTheyAreAskedFor(t *testing.T) {
	n := newNode(t)
	id := n.started("a", "echo", "one")
	if _, err := n.e.Wait(t.Context(), id, life.First(1)); err != nil {
		t.Fatal(err)
	}
	later := fmt.Sprint(time.Now().Add(time.Hour).UnixNano())
	for query, want := range map[string]string{
		"stdout=1": "one\n", "stdout=true&tail=all": "one\n", "stdout=1&tail=1&follow=1": "one\n", "stdout=1&tail=0": "", "stderr=1": "",
		"stdout=1&tail=many": "one\n", "stdout=1&since=0": "one\n", "stdout=1&since=" + later: "", "stdout=1&until=1": "", "stdout=1&until=" + later: "one\n",
	} {
		code, body := n.ask("GET", "/v1/tasks/"+id+"/logs?"+query, "")
		out, _, _ := output(t, bulk.NewFrameReader(strings.NewReader(body)).Next)
		if code != 200 || out != want {
			t.Errorf("%s: %d %q, want %q", query, code, out, want)
		}
	}
	_, body := n.ask("GET", "/v1/tasks/"+id+"/logs?stdout=1&timestamps=1", "")
	out, _, _ := output(t, bulk.NewFrameReader(strings.NewReader(body)).Next)
	at, text, _ := strings.Cut(out, " ")
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil || text != "one\n" {
		t.Errorf("with timestamps: %q", out)
	}
}

// broken is a log whose disk fails.
type broken struct{ task.Streams }

func (broken) Logs(context.Context, string, task.LogOptions) (task.LogReader, error) {
	return io.NopCloser(io.MultiReader(strings.NewReader(frame(bulk.FrameStdout, "some")), failing{})), nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("input/output error") }

func frame(kind byte, text string) string {
	var b strings.Builder
	_ = bulk.WriteFrame(&b, kind, []byte(text))
	return b.String()
}

// Output that is lost ends with an error, not like a complete stream.
func TestALogThatBreaksOffSaysSo(t *testing.T) {
	n := &node{t: t, hc: serve(t, broken{}, nil, Options{})}
	_, body := n.ask("GET", "/v1/tasks/x/logs?stdout=1", "")
	if out, last, why := output(t, bulk.NewFrameReader(strings.NewReader(body)).Next); out != "some" || last != bulk.FrameError || why != "input/output error" {
		t.Errorf("output %q, then frame %d: %s", out, last, why)
	}
}

func TestAnAttachIsStdinOutputAndExit(t *testing.T) {
	n := newNode(t)
	id := n.started("a", "cat")
	c, err := bulk.Upgrade(t.Context(), n.hc, "/v1/tasks/"+id+"/attach?stdin=1&stdout=1&stream=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "to and fro"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	out, last, body := output(t, c.Next)
	var x dv1.Exit
	if err := protojson.Unmarshal([]byte(body), &x); out != "to and fro" || last != bulk.FrameExit || err != nil || x.Code != 0 {
		t.Errorf("output %q, then frame %d: %s (%v)", out, last, body, err)
	}
}

func TestAnExec(t *testing.T) {
	n := newNode(t)
	id := n.started("a", "sleep", "1000")
	for exec, attach := range map[string]bool{"attached": true, "detached": false} {
		if code, body := n.ask("POST", "/v1/tasks/"+id+"/exec?id="+exec, `{"Cmd":["echo","beside"],"AttachStdout":true}`); code != 201 && code != 204 && code != 200 {
			t.Fatalf("create: %d %s", code, body)
		}
		if code, body := n.ask("GET", "/v1/exec/"+exec+"?task="+strings.Repeat("b", 64), ""); code != 404 {
			t.Errorf("as another task's: %d %s", code, body)
		}
		if !attach {
			if code, body := n.ask("POST", "/v1/exec/"+exec+"/start?task="+id, ""); code != 204 || body != "" {
				t.Errorf("start: %d %s", code, body)
			}
		} else {
			c, err := bulk.Upgrade(t.Context(), n.hc, "/v1/exec/"+exec+"/start?attach=1&w=80&h=24", nil)
			if err != nil {
				t.Fatal(err)
			}
			if out, last, body := output(t, c.Next); out != "beside\n" || last != bulk.FrameExit {
				t.Errorf("output %q, then frame %d: %s", out, last, body)
			}
			_ = c.Close()
			if code, body := n.ask("POST", "/v1/exec/"+exec+"/start", ""); code < 400 {
				t.Errorf("a second start: %d %s", code, body)
			}
			var x task.ExecState
			code, body := n.ask("GET", "/v1/exec/"+exec, "")
			if err := json.Unmarshal([]byte(body), &x); code != 200 || err != nil || x.Running || x.ExitCode == nil || *x.ExitCode != 0 || x.TaskID != id {
				t.Errorf("inspect: %d %s (%v)", code, body, err)
			}
		}
		if code, body := n.ask("POST", "/v1/exec/"+exec+"/resize?w=80&h=24", ""); code != 204 {
			t.Errorf("resize: %d %s", code, body)
		}
	}
	if code, body := n.ask("POST", "/v1/tasks/"+id+"/resize?w=80&h=24", ""); code != 204 {
		t.Errorf("resize of the task: %d %s", code, body)
	}
}

// talkative reports a layer's progress: new, old, and new but too soon.
type talkative struct{ *faketask.Images }

func (i talkative) Pull(ctx context.Context, ref, digest string, auth *task.Credentials, progress func(task.Progress)) (*dv1.Image, error) {
	for _, p := range []task.Progress{{Status: "Downloading", Current: 1, Total: 9}, {Status: "Downloading", Current: 1, Total: 9},
		{Status: "Downloading", Current: 2, Total: 9}, {Status: "Download complete"}} {
		p.ID = "abc"
		progress(p)
	}
	if auth == nil || auth.Username != "me" || auth.ServerAddress != "reg.lan" {
		return nil, fmt.Errorf("no credentials: %v", auth)
	}
	return i.Images.Pull(ctx, ref, digest, auth, progress)
}

func TestAPullSaysHowItGoes(t *testing.T) {
	e := faketask.New()
	e.Images.AddRemote(digest)
	var told []bulk.PullRequest
	n := &node{t: t, e: e, hc: serve(t, e, talkative{e.Images}, Options{Pull: func(r bulk.PullRequest) { told = append(told, r) }})}
	lines := func(r bulk.PullRequest) (out []bulk.PullLine) {
		t.Helper()
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		code, body := n.ask("POST", "/v1/images/pull", string(b))
		if code != 200 {
			t.Fatalf("%d %s", code, body)
		}
		for d := json.NewDecoder(strings.NewReader(body)); d.More(); {
			var l bulk.PullLine
			if err := d.Decode(&l); err != nil {
				t.Fatal(err)
			}
			out = append(out, l)
		}
		return out
	}
	r := bulk.PullRequest{Ref: "reg.lan/box:1", Digest: digest, Username: "me", Password: "secret", AuthServer: "reg.lan"}
	got := lines(r)
	var statuses []string
	for _, l := range got {
		statuses = append(statuses, l.Status)
	}
	if want := "Downloading,Download complete,Pull complete,"; strings.Join(statuses, ",") != want {
		t.Errorf("lines say %q, want %s", statuses, want)
	}
	last := got[len(got)-1]
	var img dv1.Image
	if err := protojson.Unmarshal(last.Image, &img); err != nil || img.Digest != digest || len(last.Manifests) != 1 {
		t.Errorf("the last line is %+v (%v)", last, err)
	}
	if len(told) != 1 || told[0].Digest != digest {
		t.Errorf("passed on were %v", told)
	}
	r.Username = ""
	if got = lines(r); !strings.Contains(got[len(got)-1].Error, "no credentials") {
		t.Errorf("a pull that fails ends with %+v", got[len(got)-1])
	}
	if code, body := n.ask("DELETE", "/v1/images/"+digest, ""); code != 204 {
		t.Errorf("removing: %d %s", code, body)
	}
	if all, err := e.Images.List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("images are %v (%v)", all, err)
	}
}

func TestAProbeAsksTheNodeThatIsNamed(t *testing.T) {
	n := newNode(t)
	for _, path := range []string{"/v1/probe", "/v1/probe?node=x&addr=127.0.0.1:7444"} {
		if code, body := n.ask("GET", path, ""); code != 204 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

func TestTop(t *testing.T) {
	n := newNode(t)
	id := n.started("a", "sleep", "1000")
	code, body := n.ask("GET", "/v1/tasks/"+id+"/top?ps_args=-ef", "")
	var list container.TopResponse
	if err := json.Unmarshal([]byte(body), &list); code != 200 || err != nil || len(list.Processes) != 1 || list.Processes[0][1] != "sleep 1000" {
		t.Errorf("%d %s (%v)", code, body, err)
	}
}

// A stream of samples, and an answer that is none, have each sample with the one before.
func TestStats(t *testing.T) {
	n := newNode(t)
	id := n.started("a", "sleep", "1000")
	read := func(query string) (s container.StatsResponse) {
		t.Helper()
		code, body := n.ask("GET", "/v1/tasks/"+id+"/stats?name=/a"+query, "")
		if err := json.Unmarshal([]byte(body), &s); code != 200 || err != nil || strings.Count(body, "\n") != 1 || s.ID != id || s.Name != "/a" || s.OSType != "linux" {
			t.Errorf("%s: %d %s (%v)", query, code, body, err)
		}
		return s
	}
	if s := read(""); s.Read.IsZero() || !s.PreRead.IsZero() || s.PreCPUStats.SystemUsage != 0 {
		t.Errorf("one sample is %+v", s)
	}
	s := read("&previous=1")
	used, all := s.CPUStats.CPUUsage.TotalUsage-s.PreCPUStats.CPUUsage.TotalUsage, s.CPUStats.SystemUsage-s.PreCPUStats.SystemUsage
	if s.Read.Sub(s.PreRead) < sampleApart || used == 0 || all == 0 || 100*used/all < 48 || 100*used/all > 52 {
		t.Errorf("two samples are %+v", s)
	}

	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://agent/v1/tasks/"+id+"/stats?stream=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := n.hc.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(resp.Body)
	next := func() (s container.StatsResponse) {
		t.Helper()
		if err := lines.Decode(&s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	first, second := next(), next()
	if !first.PreRead.IsZero() || !second.PreRead.Equal(first.Read) || second.PreCPUStats.SystemUsage != first.CPUStats.SystemUsage {
		t.Errorf("%+v, then %+v", first, second)
	}
	if err := n.e.Signal(t.Context(), id, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.e.Wait(t.Context(), id, life.First(1)); err != nil {
		t.Fatal(err)
	}
	for s = next(); !s.Read.IsZero(); s = next() { // one may have been on its way
	}
	if s.ID != id || s.PidsStats.Current != 0 {
		t.Errorf("of what ended: %+v", s)
	}
	if err := n.e.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; err = lines.Decode(&s) {
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("once it is removed: %v", err)
	}
}
