package engineapi

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestTop(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	a.is(a.do("GET", "/containers/web/top?ps_args=-o+pid,cmd+m", ""), "a list", 200, `{"Processes":[["7","sleep -o pid,cmd m"]],"Titles":["PID","CMD"]}`)
	a.created("new", `{"Image":"busybox"}`)
	a.is(a.do("GET", "/containers/new/top", ""), "of what never ran", 409, "container "+hexID(a.f.Snapshot().TaskByName("new"))+" is not running")
	a.is(a.do("GET", "/containers/nope/top", ""), "of nothing", 404, "No such container: nope")
	for code, c := range map[int]struct {
		said, want string
		code       int
	}{
		http.StatusConflict:            {`{"message":"web: not running"}`, "container " + hexID(task) + " is not running", 409},
		http.StatusInternalServerError: {`{"message":"Couldn't find PID field in ps output"}`, "Couldn't find PID field in ps output", 500},
	} {
		a.odd["n0"] = func(w http.ResponseWriter, _ *http.Request) { http.Error(w, c.said, code) }
		a.is(a.do("GET", "/containers/web/top", ""), "what its node refuses", c.code, c.want)
	}
}

// A node may know that a container runs before the log does.
func TestTopOfWhatHasJustStarted(t *testing.T) {
	a := newAPI(t)
	task := a.created("web", `{"Image":"busybox"}`)
	a.f.Observed(&dv1.TaskStatus{Id: task.Id, Attempt: 1, Phase: dv1.Phase_ACTIVE})
	a.is(a.do("GET", "/containers/web/top", ""), "a list", 200, `["PID","CMD"]`)
}

// NumProcs of the tests' agents says what they were asked for.
func TestStats(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	for query, want := range map[string]struct {
		version string
		asked   uint32
	}{"stream=0": {"", 1}, "stream=false&one-shot=false": {"", 1}, "stream=0&one-shot=1": {"", 0}, "stream=no&one-shot=true": {"/v1.41", 0}, "stream=0&one-shot=TRUE": {"/v1.40", 1}} {
		var s container.StatsResponse
		r := a.do("GET", want.version+"/containers/web/stats?"+query, "")
		if err := json.Unmarshal([]byte(r.body), &s); r.code != 200 || err != nil || s.ID != hexID(task) || s.Name != "/web" || s.NumProcs != want.asked {
			t.Errorf("%s: %d %s (%v), want %d", query, r.code, r.body, err, want.asked)
		}
	}
	a.created("new", `{"Image":"busybox"}`)
	a.asked = nil
	a.is(a.do("GET", "/containers/new/stats?stream=0", ""), "of what does not run", 200, `"name":"/new","os_type":"linux","read":"0001-01-01T00:00:00Z","cpu_stats":{"cpu_usage":{"total_usage":0,`)
	if len(a.asked) > 0 {
		t.Errorf("its node was asked: %v", a.asked)
	}
	a.is(a.do("GET", "/containers/nope/stats", ""), "of nothing", 404, "No such container: nope")
	a.odd["n0"] = func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"message":"no such controller"}`, http.StatusInternalServerError)
	}
	a.is(a.do("GET", "/containers/web/stats", ""), "what its node refuses", 500, "no such controller")
}

// A stream goes on when the node's connection breaks, with whole samples only, until its
// container is removed.
func TestAStreamOfStatsGoesOn(t *testing.T) {
	a := newAPI(t)
	task := a.run("web")
	asked := 0
	a.odd["n0"] = func(w http.ResponseWriter, _ *http.Request) {
		asked++
		_, _ = io.WriteString(w, `{"num_procs":`+string(rune('0'+asked))+"}\n")
		switch asked {
		case 2:
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, `{"num_pr`)
			panic(http.ErrAbortHandler)
		case 3:
			a.f.Do(&dv1.Command{Of: &dv1.Command_Remove{Remove: &dv1.Remove{TaskId: task.Id, Force: true}}})
		}
	}
	r := a.do("GET", "/containers/web/stats", "")
	if want := strings.Join([]string{`{"num_procs":1}`, `{"num_procs":2}`, `{"num_procs":3}`, ""}, "\n"); r.code != 200 || r.body != want {
		t.Errorf("%d %q, want %q", r.code, r.body, want)
	}
}

func FuzzSamples(f *testing.F) {
	f.Add("{}\n{}\n{")
	f.Add("\n\n")
	f.Fuzz(func(t *testing.T, from string) {
		var to strings.Builder
		samples(&to, strings.NewReader(from))
		if want := from[:strings.LastIndexByte(from, '\n')+1]; to.String() != want && len(from) < maxSample {
			t.Errorf("%q of %q", to.String(), from)
		}
	})
}
