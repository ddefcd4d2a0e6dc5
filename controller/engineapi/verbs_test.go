package engineapi

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
)

// created creates a container without starting it.
func (a *api) created(name, body string) *dv1.Task {
	return a.f.Create(name, "docker.io/library/busybox:latest", body)
}

func TestAStartEndsWithWhatItsNodeReports(t *testing.T) {
	for what, c := range map[string]struct {
		report *dv1.TaskReport
		status *dv1.TaskStatus
		code   int
		words  string
	}{
		"it runs":          {report: &dv1.TaskReport{Attempt: 1, Started: 5}, code: 204},
		"it ran":           {report: &dv1.TaskReport{Attempt: 1, Exit: &dv1.Exit{Attempt: 1, Code: 3}}, code: 204},
		"no such program":  {report: &dv1.TaskReport{Attempt: 1, Failed: `exec: "x": executable file not found in $PATH`}, code: 400, words: "executable file not found"},
		"no such folder":   {report: &dv1.TaskReport{Attempt: 1, Failed: "chdir: no such file or directory"}, code: 400, words: "no such file"},
		"not a program":    {report: &dv1.TaskReport{Attempt: 1, Failed: "exec: permission denied"}, code: 400, words: "permission denied"},
		"the node's fault": {report: &dv1.TaskReport{Attempt: 1, Failed: "no space left on device"}, code: 500, words: "no space left on device"},
		"it ran, and its agent can't begin it anew": {report: &dv1.TaskReport{Attempt: 1, Restarts: 1, Exit: &dv1.Exit{Attempt: 1, Code: 3}, Failed: "no such file or directory"}, code: 204},
		"its agent has begun it anew":               {report: &dv1.TaskReport{Attempt: 1, Restarts: 2}, code: 204},

		"seen failed": {status: &dv1.TaskStatus{Attempt: 1, Phase: dv1.Phase_FAILED, Why: "no room"}, code: 500, words: "no room"},
	} {
		t.Run(what, func(t *testing.T) {
			a := newAPI(t)
			task := a.created("web", `{"Image":"busybox"}`)
			var node sync.WaitGroup
			node.Go(func() {
				a.await(task, func(t *dv1.Task) bool { return t.Attempt == 1 })
				if c.status != nil {
					c.status.Id = task.Id
					a.f.Observed(c.status)
					return
				}
				c.report.TaskId = task.Id
				a.f.Report(c.report)
			})
			a.is(a.do("POST", "/containers/web/start", ""), what, c.code, c.words)
			node.Wait()
		})
	}
}

func TestAStartOnAPortThatIsTaken(t *testing.T) {
	a := newAPI(t)
	const ports = `{"Image":"busybox","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}}`
	for _, name := range []string{"one", "two"} {
		a.f.Run(a.created(name, ports).Id)
	}
	a.created("three", ports)
	a.is(a.do("POST", "/containers/three/start", ""), "the third of two", 500, "Bind for 0.0.0.0:8080 failed: port is already allocated")
}

func TestAStopBlocksUntilTheEnd(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	var node sync.WaitGroup
	node.Go(func() {
		a.await(task, func(t *dv1.Task) bool { return t.Desired == dv1.Desired_STOPPED })
		if got := a.f.Snapshot().Task(task.Id); got.StopTimeout != 3 || got.StopSignal != "SIGINT" {
			t.Errorf("the node is to stop it within %d s by %s", got.StopTimeout, got.StopSignal)
		}
		a.f.Exit(task.Id, 0)
	})
	a.is(a.do("POST", "/containers/web/stop?t=3&signal=SIGINT", ""), "a stop", 204, "")
	node.Wait()
	a.is(a.do("POST", "/containers/web/stop", ""), "once more", 304, "")
	a.is(a.do("POST", "/containers/web/kill", ""), "a kill of what ended", 409, "cannot kill container: web: container "+hexID(task)+" is not running")
}

// A stop blocks until the last life of the attempt ended, whichever was known when it
// came; a kill blocks until the life that it killed did.
func TestWhatAStopAndAKillOfAnAttemptBegunAnewWaitFor(t *testing.T) {
	exit := func(restarts int32) *dv1.Exit { return &dv1.Exit{Attempt: 1, Restarts: restarts, Code: 137} }
	for what, c := range map[string]struct {
		path    string
		earlier *dv1.TaskReport // does not end it
		last    *dv1.TaskReport // does
	}{
		"stop": {"/stop", &dv1.TaskReport{Restarts: 3, Started: 9, Exit: exit(2)}, &dv1.TaskReport{Restarts: 3, Exit: exit(3)}},
		"kill": {"/kill", &dv1.TaskReport{Restarts: 2, Exit: exit(1)}, &dv1.TaskReport{Restarts: 3, Exit: exit(2)}},
	} {
		t.Run(what, func(t *testing.T) {
			a := newAPI(t)
			task := a.run("web")
			report := func(r *dv1.TaskReport) {
				r.TaskId, r.Attempt = task.Id, 1
				a.f.Report(r)
			}
			report(&dv1.TaskReport{Restarts: 2, Started: 7})
			answered := make(chan reply, 1)
			go func() { answered <- a.do("POST", "/containers/web"+c.path, "") }()
			a.await(task, func(t *dv1.Task) bool { return t.StoppedByHand })
			report(c.earlier)
			select {
			case got := <-answered:
				t.Fatalf("an earlier life's end answered it: %d %s", got.code, got.body)
			case <-time.After(50 * time.Millisecond):
			}
			report(c.last)
			a.is(<-answered, what, 204, "")
		})
	}
}

// A request that is retried with its key is done once, also if its object is gone by
// then.
func TestKeysAreAnsweredOnce(t *testing.T) {
	a := newAPI(t)
	const body = `{"Image":"busybox"}`
	first := a.do("POST", "/containers/create?name=new", body, wire.HeaderKey, "k1")
	again := a.do("POST", "/containers/create?name=new", body, wire.HeaderKey, "k1")
	if first.code != 201 || again.code != 201 || first.body != again.body {
		t.Errorf("a create twice: %s and %d %s", first.body, again.code, again.body)
	}
	a.is(a.do("POST", "/containers/create?name=newer", body, wire.HeaderKey, "k1"), "its key for another request", 409, "key was used before for a different request")
	a.is(a.do("POST", "/containers/create?name=new", body, wire.HeaderKey, "k2"), "another key", 409, "is already in use")
	for range 2 {
		a.is(a.do("DELETE", "/containers/new", "", wire.HeaderKey, "k3"), "a removal twice", 204, "")
	}
	a.is(a.do("DELETE", "/containers/new", "", wire.HeaderKey, "k4"), "a removal of what is gone", 404, "No such container: new")
	for range 2 {
		a.is(a.do("DELETE", "/images/busybox", "", wire.HeaderKey, "k5"), "an image twice", 200, `[{"Untagged":"busybox:latest"},{"Deleted":"`+busybox+`"}]`)
	}
	a.is(a.do("DELETE", "/images/busybox", "", wire.HeaderKey, "k6"), "an image that is gone", 404, "No such image: busybox:latest")
}

// A restart whose answer was lost with its controller is done once, and is answered once
// the attempt that it asked for runs.
func TestARestartThatIsRepeatedIsOneRestart(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	var node sync.WaitGroup
	node.Go(func() {
		a.await(task, func(t *dv1.Task) bool { return t.Attempt == 2 })
		a.f.Report(&dv1.TaskReport{TaskId: task.Id, Attempt: 2, Started: 5})
	})
	for range 2 {
		answered := make(chan reply, 1)
		go func() { answered <- a.do("POST", "/containers/web/restart", "", wire.HeaderKey, "k1") }()
		select {
		case got := <-answered:
			a.is(got, "a restart", 204, "")
		case <-time.After(5 * time.Second):
			t.Fatal("it is not answered")
		}
	}
	node.Wait()
	if got := a.f.Snapshot().Task(task.Id).Attempt; got != 2 {
		t.Errorf("it is at attempt %d", got)
	}
}

func TestKill(t *testing.T) {
	for signal, c := range map[string]struct {
		sent string
		hand bool // it is recorded as a stop by hand
	}{
		"": {"SIGKILL", true}, "KILL": {"KILL", true}, "9": {"9", true}, "SIGTERM": {"SIGTERM", true}, "term": {"TERM", true}, "HUP": {"HUP", false},
	} {
		a := newAPI(t)
		task := a.run("web")
		a.is(a.do("POST", "/containers/web/kill?signal="+signal, "", wire.HeaderKey, "key"), "kill "+signal, 204, "")
		a.mu.Lock()
		asked := strings.Join(a.asked, "\n")
		a.mu.Unlock()
		if want := "n0 POST /v1/tasks/" + hexID(task) + "/kill?attempt=1&key=key&signal=" + c.sent; asked != want {
			t.Errorf("signal %q: the node was asked %q, want %q", signal, asked, want)
		}
		recorded := false
		for _, p := range a.f.Proposed() {
			recorded = recorded || p.GetKilled() != nil
		}
		if recorded != c.hand {
			t.Errorf("signal %q is recorded as by hand: %v", signal, recorded)
		}
	}
}

func TestAKillWithItsOwnStopSignalIsByHand(t *testing.T) {
	a := newAPI(t)
	task := a.created("web", `{"Image":"busybox","StopSignal":"SIGQUIT"}`)
	a.f.Run(task.Id)
	a.is(a.do("POST", "/containers/web/kill?signal=QUIT", ""), "its stop signal", 204, "")
	n := len(a.f.Proposed())
	a.is(a.do("POST", "/containers/web/kill?signal=TERM", ""), "another", 204, "")
	if more := len(a.f.Proposed()); n == 0 || more != n {
		t.Errorf("%d commands for the first, %d for both", n, more)
	}
}

func TestWaitConditions(t *testing.T) {
	type world struct {
		a    *api
		task *dv1.Task
	}
	exit := func(code int32) func(w world) { return func(w world) { w.a.f.Exit(w.task.Id, code) } }
	fail := func(attempt int32) func(w world) {
		return func(w world) {
			if t := w.a.f.Snapshot().Task(w.task.Id); t.Exit.GetAttempt() < t.Attempt && t.Failed == "" {
				w.a.f.Exit(w.task.Id, 0)
			}
			w.a.f.Do(&dv1.Command{Of: &dv1.Command_Start{Start: &dv1.Start{TaskId: w.task.Id}}})
			w.a.f.Report(&dv1.TaskReport{TaskId: w.task.Id, Attempt: attempt, Failed: `exec: "x": executable file not found in $PATH`})
		}
	}
	exited := func(restarts, code int32) *dv1.Exit {
		return &dv1.Exit{Attempt: 1, Restarts: restarts, Code: code}
	}
	// anew reports how a life ended, and the newest one that the agent has begun.
	anew := func(restarts, ended, code int32) func(w world) {
		return func(w world) {
			w.a.f.Report(&dv1.TaskReport{TaskId: w.task.Id, Attempt: 1, Restarts: restarts, Exit: exited(ended, code)})
		}
	}
	for what, c := range map[string]struct {
		before, then func(world) // the wait begins between them
		condition    string
		want         string // JSON
	}{
		"running":          {then: exit(3), want: `{"StatusCode":3}`},
		"running, by name": {then: exit(3), condition: "not-running", want: `{"StatusCode":3}`},
		"ended":            {before: exit(4), want: `{"StatusCode":4}`},
		"the next exit":    {then: exit(5), condition: "next-exit", want: `{"StatusCode":5}`},
		"the next of one that ended": {before: exit(4), condition: "next-exit", then: func(w world) {
			w.a.f.Run(w.task.Id)
			w.a.f.Exit(w.task.Id, 6)
		}, want: `{"StatusCode":6}`},
		"removed": {before: exit(7), condition: "removed", then: func(w world) {
			w.a.f.Do(&dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: w.task.Id}}})
		}, want: `{"StatusCode":7}`},
		"removed by force": {condition: "removed", then: func(w world) {
			w.a.f.Do(&dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: w.task.Id, Force: true}}})
		}, want: `{"Error":{"Message":"the container is gone, and how it ended is not known here"},"StatusCode":125}`},
		"a start that failed": {before: exit(0), condition: "next-exit", then: fail(2), want: `{"StatusCode":127}`},
		"the next after a start that failed": {before: fail(2), condition: "next-exit", then: func(w world) {
			w.a.f.Run(w.task.Id)
			w.a.f.Exit(w.task.Id, 6)
		}, want: `{"StatusCode":6}`},
		"the next start that failed": {before: fail(2), condition: "next-exit", then: fail(3), want: `{"StatusCode":127}`},
		"failed":                     {before: fail(2), want: `{"StatusCode":127}`},
		// As with docker, the end of a life ends a wait, although its agent begins it anew.
		"begun anew":           {then: anew(1, 0, 3), want: `{"StatusCode":3}`},
		"begun anew, the next": {then: anew(1, 0, 3), condition: "next-exit", want: `{"StatusCode":3}`},
		"in a later life": {before: anew(4, 3, 3), then: func(w world) {
			anew(4, 2, 5)(w) // comes late
			w.a.f.Observed(&dv1.TaskStatus{Id: w.task.Id, Attempt: 1, Restarts: 4, Phase: dv1.Phase_ACTIVE, Exit: exited(3, 3)})
			anew(4, 4, 6)(w)
		}, want: `{"StatusCode":6}`},
		"in a later life, the next": {before: anew(4, 3, 3), condition: "next-exit", then: func(w world) {
			anew(4, 3, 3)(w)
			anew(5, 4, 6)(w)
		}, want: `{"StatusCode":6}`},
		"a later life that did not begin": {before: anew(1, 0, 3), then: func(w world) {
			w.a.f.Report(&dv1.TaskReport{TaskId: w.task.Id, Attempt: 1, Restarts: 1, Failed: "permission denied"})
		}, want: `{"StatusCode":126}`},
	} {
		t.Run(what, func(t *testing.T) {
			a := newAPI(t)
			w := world{a, a.run("web")}
			if c.before != nil {
				c.before(w)
			}
			req, err := http.NewRequestWithContext(t.Context(), "POST", a.url+"/containers/web/wait?condition="+c.condition, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req) // returns with the header, before the end
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			if c.then != nil {
				c.then(w)
			}
			var got json.RawMessage
			if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != 200 || string(got) != c.want {
				t.Errorf("%d %s, %v; want %s", resp.StatusCode, got, err, c.want)
			}
		})
	}
}

// The exit of an auto-removed container can still be waited for, by its id.
func TestAWaitForWhatRemovedItself(t *testing.T) {
	a := newAPI(t)
	r := a.do("POST", "/containers/create?name=rm", `{"Image":"busybox","HostConfig":{"AutoRemove":true}}`)
	task := a.f.Snapshot().TaskByName("rm")
	a.f.Run(task.Id)
	a.f.Exit(task.Id, 8)
	a.is(a.do("POST", "/containers/"+hexID(task)+"/wait", ""), r.body, 200, `{"StatusCode":8}`)
	a.is(a.do("POST", "/containers/rm/wait", ""), "by its name", 404, "No such container: rm")
}

// Docker removes a container that is to remove itself also when it cannot be started, so
// that a client's wait for the removal ends.
func TestARefusedStartOfWhatRemovesItselfEndsWaits(t *testing.T) {
	a := newAPI(t)
	const publish = `"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}`
	for range a.f.Snapshot().NodeCount() {
		r := a.do("POST", "/containers/create", `{"Image":"busybox","HostConfig":{`+publish+`}}`)
		var made struct{ ID string }
		if err := json.Unmarshal([]byte(r.body), &made); err != nil {
			t.Fatal(err)
		}
		a.f.Run(a.f.Snapshot().TasksByPrefix(made.ID)[0].Id)
	}
	a.do("POST", "/containers/create?name=rm", `{"Image":"busybox","HostConfig":{"AutoRemove":true,`+publish+`}}`)
	task := a.f.Snapshot().TaskByName("rm")
	waited := make(chan reply, 1)
	go func() { waited <- a.do("POST", "/containers/"+hexID(task)+"/wait?condition=removed", "") }()
	const why = "Bind for 0.0.0.0:8080 failed: port is already allocated"
	for range 2 { // a client may repeat it with its key
		a.is(a.do("POST", "/containers/"+hexID(task)+"/start", "", wire.HeaderKey, "again"), "the start", 500, why)
	}
	a.is(<-waited, "the wait", 200, `"StatusCode":125`)
	a.is(a.do("GET", "/containers/rm/json", ""), "afterwards", 404, "No such container: rm")
}

// Without a leader, the exit that the node itself reports ends a wait after a while.
func TestAWaitWithoutALeader(t *testing.T) {
	a := newAPI(t)
	a.run("web")
	a.f.SetLeader(false)
	began := time.Now()
	a.is(a.do("POST", "/containers/web/wait", ""), "a wait", 200, `{"StatusCode":9,"Warning":"`+unrecorded+`"}`)
	if d := time.Since(began); d < withoutLeader {
		t.Errorf("it returned the node's exit after %s", d)
	}
}

// The node is asked for the exit of the awaited life, not of an earlier one.
func TestAWaitForALaterLifeWithoutALeader(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	a.f.Report(&dv1.TaskReport{TaskId: task.Id, Attempt: 1, Restarts: 2, Started: 7, Exit: &dv1.Exit{Attempt: 1, Restarts: 1, Code: 3}})
	a.f.SetLeader(false)
	a.is(a.do("POST", "/containers/web/wait?condition=next-exit", ""), "a wait", 200, `{"StatusCode":9,"Warning":"`+unrecorded+`"}`)
	a.mu.Lock()
	asked := strings.Join(a.asked, "\n")
	a.mu.Unlock()
	if want := "n0 GET /v1/tasks/" + hexID(task) + "/wait?attempt=1&restarts=2"; asked != want {
		t.Errorf("the node was asked %q, want %q", asked, want)
	}
}

// Nobody starts what ended while there is no leader: how it ended is no next exit.
func TestAWaitForTheNextExitOutlastsALeader(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	a.f.Exit(task.Id, 4)
	a.f.SetLeader(false)
	answered := make(chan reply, 1)
	go func() { answered <- a.do("POST", "/containers/web/wait?condition=next-exit", "") }()
	select {
	case got := <-answered:
		t.Fatalf("it ended with the exit before it: %d %s", got.code, got.body)
	case <-time.After(withoutLeader + uncommitted + 500*time.Millisecond):
	}
	a.f.SetLeader(true)
	a.f.Run(task.Id)
	a.f.Exit(task.Id, 6)
	a.is(<-answered, "a wait", 200, `{"StatusCode":6}`)
}

func TestAWaitThatIsTakenUpAgain(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	began := strconv.FormatUint(a.f.Snapshot().Index(), 10)
	a.f.Exit(task.Id, 4)
	a.is(a.do("POST", "/containers/web/wait?condition=next-exit", "", wire.HeaderAfter, began), "its exit came before it asked again", 200, `{"StatusCode":4}`)
	began = strconv.FormatUint(a.f.Snapshot().Index(), 10)
	a.f.Do(&dv1.Command{Of: &dv1.Command_Start{Start: &dv1.Start{TaskId: task.Id}}})
	a.f.Report(&dv1.TaskReport{TaskId: task.Id, Attempt: 2, Failed: "permission denied"})
	a.is(a.do("POST", "/containers/web/wait?condition=next-exit", "", wire.HeaderAfter, began), "its start failed before it asked again", 200, `{"StatusCode":126}`)
}

func TestRenameAndRemove(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	a.created("other", `{"Image":"busybox"}`)
	a.is(a.do("POST", "/containers/web/rename?name=other", ""), "a taken name", 409, `Error when allocating new name: Conflict. The container name \"/other\" is already in use`)
	a.is(a.do("POST", "/containers/web/rename?name=/shop", ""), "a free one", 204, "")
	a.is(a.do("GET", "/containers/web/json", ""), "its old name", 404, "No such container: web")
	a.is(a.do("GET", "/containers/shop/json", ""), "its new one", 200, `"Name":"/shop"`)
	a.is(a.do("GET", "/containers/"+hexID(task)[:12]+"/json", ""), "its id's beginning", 200, `"Name":"/shop"`)
	a.is(a.do("DELETE", "/containers/other?v=1", ""), "one that was never started", 204, "")
	a.is(a.do("DELETE", "/containers/shop?force=true", ""), "one that runs, by force", 204, "")
	if n := len(a.f.Snapshot().TasksByPrefix("")); n != 0 {
		t.Errorf("%d are left", n)
	}
}

func TestAnAmbiguousPrefix(t *testing.T) {
	a := newAPI(t)
	a.created("web-1", `{"Image":"busybox"}`)
	a.created("web-2", `{"Image":"busybox"}`)
	a.is(a.do("GET", "/containers/7765622d/json", ""), "the beginning of two ids", 400, "multiple IDs found with provided prefix: 7765622d")
}

func TestABindNeedsANode(t *testing.T) {
	a := newAPI(t)
	const bind = `{"Image":"busybox","HostConfig":{"Binds":["/srv:/srv"]}}`
	a.is(a.do("POST", "/containers/create?name=here", bind), "on the contact", 201, "")
	if n := a.f.Snapshot().TaskByName("here").NodeId; n != "n0" {
		t.Errorf("it is on %s", n)
	}
	a.is(a.do("POST", "/containers/create?name=there", bind, wire.HeaderContact, "n1"), "on another contact", 201, "")
	if n := a.f.Snapshot().TaskByName("there").NodeId; n != "n1" {
		t.Errorf("it is on %s", n)
	}
	a.f.Silence("n0", time.Now())
	a.is(a.do("POST", "/containers/create?name=on", bind, wire.HeaderOn, "node==web-2"), "where a header says", 201, "")
	if n := a.f.Snapshot().TaskByName("on").NodeId; n != "n1" {
		t.Errorf("it is on %s", n)
	}
}
