package engineapi

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

func TestExec(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	id := a.exec("web", `{"Cmd":["echo","hi"],"AttachStdout":true,"AttachStderr":true,"User":"nobody"}`)
	if !strings.HasSuffix(id, hexID(task)[:32]) || len(id) != 64 {
		t.Errorf("its id %s does not lead to its container", id)
	}
	var seen container.ExecInspectResponse
	if r := a.do("GET", "/exec/"+id+"/json", ""); json.Unmarshal([]byte(r.body), &seen) != nil || r.code != 200 {
		t.Fatalf("%d %s", r.code, r.body)
	}
	if p := seen.ProcessConfig; seen.ContainerID != hexID(task) || seen.Running || seen.ExitCode != nil || p.Entrypoint != "echo" || p.Arguments[0] != "hi" || p.User != "nobody" || !seen.OpenStdout {
		t.Errorf("it is %+v %+v", seen, p)
	}
	status, out := a.hijack("/exec/"+id+"/start", `{}`, "")
	if status != "HTTP/1.1 101 UPGRADED" || out != framed(bulk.FrameStdout, "out\n")+framed(bulk.FrameStderr, "err\n") {
		t.Errorf("%s: %q", status, out)
	}
	a.is(a.do("GET", "/exec/"+id+"/json", ""), "after its end", 200, `"ExitCode":3`)
	a.is(a.do("POST", "/exec/"+id+"/start", `{}`), "once more", 409, "Error: Exec command "+id+" has already run")
	a.is(a.do("GET", "/exec/"+strings.Repeat("0", 32)+id[32:]+"/json", ""), "an exec that its node does not know", 404, "No such exec instance")
	a.is(a.do("GET", "/exec/"+strings.Repeat("0", 64)+"/json", ""), "an exec of no container", 404, "No such exec instance: 000")
}

func TestAnExecPassesOnWhatWasAttached(t *testing.T) {
	for options, want := range map[string]string{
		`{"Cmd":["x"],"AttachStdout":true}`: framed(bulk.FrameStdout, "out\n"),
		`{"Cmd":["x"],"AttachStderr":true}`: framed(bulk.FrameStderr, "err\n"),
		`{"Cmd":["x"]}`:                     "",
		`{"Cmd":["x"],"Tty":true,"AttachStdout":true,"AttachStderr":true}`: "out\nerr\n",
	} {
		a := newAPI(t)
		a.run("web")
		if _, out := a.hijack("/exec/"+a.exec("web", options)+"/start", `{}`, ""); out != want {
			t.Errorf("%s: %q, want %q", options, out, want)
		}
	}
}

func TestAnExecsNodeRefuses(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	a.odd["n0"] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusConflict) }
	a.is(a.do("POST", "/containers/web/exec", `{"Cmd":["x"]}`), "in what does not run", 409, "container "+hexID(task)+" is not running")
	a.odd["n0"] = func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"message":"no room"}`, http.StatusInsufficientStorage)
	}
	a.is(a.do("POST", "/containers/web/exec", `{"Cmd":["x"]}`), "for its own reasons", 507, "no room")
	a.odd["n0"] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }
	a.is(a.do("POST", "/containers/web/exec", `{"Cmd":["x"]}`), "for no reason", 418, "node n0 answered 418")
}

// The fault of a command is its output, where its client reads it; its code is in the
// inspect.
func TestTheUsersFaultIsAnExecsOutput(t *testing.T) {
	a := newAPI(t)
	a.run("web")
	id := a.exec("web", `{"Cmd":["x"],"AttachStdout":true,"AttachStderr":true}`)
	plain := a.agent("n0")
	a.odd["n0"] = nil
	a.f.HandleAgent("n0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/start") {
			_ = answer(w, http.StatusBadRequest, map[string]string{"message": `exec: "x": executable file not found in $PATH`})
			return
		}
		plain.ServeHTTP(w, r)
	}))
	status, out := a.hijack("/exec/"+id+"/start", `{}`, "")
	if status != "HTTP/1.1 101 UPGRADED" || out != framed(bulk.FrameStderr, `exec: "x": executable file not found in $PATH`+"\n") {
		t.Errorf("%s: %q", status, out)
	}
	a.is(a.do("POST", "/exec/"+id+"/start", `{"Detach":true}`), "detached", 400, "executable file not found")
}

func TestAttach(t *testing.T) {
	a := newAPI(t)
	a.run("web")
	status, out := a.hijack("/containers/web/attach?stdin=1&stdout=1&stderr=1&stream=1", "", "typed")
	if status != "HTTP/1.1 101 UPGRADED" || out != framed(bulk.FrameStdout, "read typed")+framed(bulk.FrameStdout, "out\n")+framed(bulk.FrameStderr, "err\n") {
		t.Errorf("%s: %q", status, out)
	}
	tty := a.created("tty", `{"Image":"busybox","Tty":true}`)
	a.f.Run(tty.Id)
	if _, out := a.hijack("/containers/tty/attach?stdout=1&stream=1", "", ""); out != "out\nerr\n" {
		t.Errorf("of a terminal: %q", out)
	}
	a.mu.Lock()
	asked := strings.Join(a.asked, "\n")
	a.mu.Unlock()
	if !strings.Contains(asked, "/attach?stderr=1&stdin=1&stdout=1&stream=1") || !strings.Contains(asked, "/attach?stdout=1&stream=1") {
		t.Errorf("the node was asked\n%s", asked)
	}
}

func TestLogs(t *testing.T) {
	a := newAPI(t)
	a.run("web")
	r := a.do("GET", "/containers/web/logs?stdout=1&stderr=true&since=1.5&until=2026-01-02T03:04:05Z&tail=7&timestamps=1&details=1", "")
	if r.code != 200 || r.body != framed(bulk.FrameStdout, "out\n")+framed(bulk.FrameStderr, "err\n") || r.header.Get("Content-Type") != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("%d %v %q", r.code, r.header, r.body)
	}
	if r := a.do("GET", "/v1.41/containers/web/logs?stdout=1", ""); r.header.Get("Content-Type") != "application/vnd.docker.raw-stream" {
		t.Errorf("of version 1.41: %v", r.header)
	}
	if asked := a.asked[0]; !strings.HasSuffix(asked, "/logs?since=1500000000&stderr=1&stdout=1&tail=7&timestamps=1&until=1767323045000000000") {
		t.Errorf("the node was asked %s", asked)
	}
	a.odd["n0"] = func(w http.ResponseWriter, _ *http.Request) {
		_ = answer(w, 404, map[string]string{"message": "no log of it"})
	}
	a.is(a.do("GET", "/containers/web/logs?stdout=1", ""), "a log that is gone", 404, "no log of it")
}

func TestResizes(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	a.is(a.do("POST", "/containers/web/resize?h=24&w=80", ""), "a resize", 200, "")
	if got := a.asked[0]; got != "n0 POST /v1/tasks/"+hexID(task)+"/resize?h=24&w=80" {
		t.Errorf("the node was asked %s", got)
	}
	a.created("new", `{"Image":"busybox"}`)
	a.is(a.do("POST", "/containers/new/resize?h=24&w=80", ""), "of what does not run", 409, "is not running")
}

func TestEvents(t *testing.T) {
	a := shop(t)
	a.f.Publish(&dv1.Event{TaskId: a.f.Snapshot().TaskByName("db").Id, Action: "exec_create: sh", TimeNano: 1767323046e9, Attributes: map[string]string{"execID": "x"}})
	for filter, want := range map[string][]string{
		`{"container":["old"]}`:                   {"create", "start", "die"},
		`{"container":["db"],"event":["start"]}`:  {"start"},
		`{"event":["exec_create"]}`:               {"exec_create: sh"},
		`{"type":["image"]}`:                      {"pull", "tag", "pull", "tag"},
		`{"label":["tier=back"],"event":["die"]}`: nil,
		`{"type":["network"]}`:                    nil,
		`{"network":["bridge"]}`:                  nil,
		`{"volume":["data"],"event":["start"]}`:   nil,
	} {
		r := a.do("GET", "/events?since=1&until=1767323047&filters="+strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22").Replace(filter), "")
		var got []string
		for d := json.NewDecoder(strings.NewReader(r.body)); d.More(); {
			var m struct{ Action, Status string }
			if err := d.Decode(&m); err != nil || m.Status != m.Action {
				t.Fatalf("%s: %v", r.body, err)
			}
			got = append(got, m.Action)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: %q, want %q", filter, got, want)
		}
	}
}

// A pull as docker's client reads it: refused with a status before it begins, in its
// stream afterwards.
func TestAPullsAnswer(t *testing.T) {
	a := newAPI(t)
	w := pushed(t, a.registry+"/shop/web:1")
	path := "/images/create?fromImage=" + a.registry + "/shop/web&tag=1"
	a.odd["n0"] = func(rw http.ResponseWriter, r *http.Request) { w.pulled(t, rw, r) }
	lines := func(r reply) string { return strings.ReplaceAll(r.body, "\r\n", "\n") }
	r := a.do("POST", path, "")
	want := `{"status":"Pulling from shop/web","id":"1"}
{"status":"Downloading","progressDetail":{"current":1,"total":2},"id":"layer"}
{"status":"Digest: ` + w.digest + `"}
{"status":"Status: Downloaded newer image for ` + a.registry + `/shop/web:1"}
`
	if r.code != 200 || lines(r) != want || r.header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %v\n%s\nwant\n%s", r.code, r.header, lines(r), want)
	}
	a.f.Hold(w.digest, "n0")
	if r := a.do("POST", path, ""); !strings.Contains(r.body, "Status: Image is up to date for "+a.registry+"/shop/web:1") {
		t.Errorf("once more: %s", r.body)
	}
	if r := a.do("POST", "/images/create?fromImage="+a.registry+"/shop/web&tag="+w.digest, ""); !strings.Contains(r.body, `{"status":"Pulling from shop/web","id":"`+w.digest+`"}`) {
		t.Errorf("by digest: %s", r.body)
	}
	a.odd["n0"] = func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = rw.Write([]byte(`{"Error":"disk full"}` + "\n"))
	}
	if r := a.do("POST", path, ""); r.code != 200 || !strings.HasSuffix(lines(r), `{"error":"disk full","errorDetail":{"message":"disk full"}}`+"\n") {
		t.Errorf("a node that fails: %d %s", r.code, r.body)
	}
	a.is(a.do("POST", path, "", "X-Registry-Auth", "%"), "bad credentials", 400, "invalid X-Registry-Auth header")
	a.odd["n0"] = func(rw http.ResponseWriter, _ *http.Request) {
		_ = answer(rw, 503, map[string]string{"message": "stopping"})
	}
	a.is(a.do("POST", path, ""), "a node that refuses", 503, "stopping")
}

func TestCredentials(t *testing.T) {
	for header, want := range map[string]string{
		"": "", "e30=": "", "e30": "", // {}
		"eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InAiLCJzZXJ2ZXJhZGRyZXNzIjoicyJ9": "u p s",
		"eyJpZGVudGl0eXRva2VuIjoidCJ9":                                         "t",
	} {
		r, _ := http.NewRequest("POST", "/", nil)
		r.Header.Set("X-Registry-Auth", header)
		c, err := credentials(r)
		got := ""
		if c != nil {
			got = strings.TrimSpace(strings.Join([]string{c.Username, c.Password, c.ServerAddress + c.IdentityToken}, " "))
		}
		if err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", header, got, err, want)
		}
	}
	for _, bad := range []string{"%", "eHg="} {
		r, _ := http.NewRequest("POST", "/", nil)
		r.Header.Set("X-Registry-Auth", bad)
		if c, err := credentials(r); err == nil {
			t.Errorf("%q: %+v", bad, c)
		}
	}
}
