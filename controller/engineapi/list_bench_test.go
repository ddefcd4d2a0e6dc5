package engineapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/fleet/fleettest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

const someDigest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// large is a fleet of nodes and tasks, a hundred of which share a spec; one in so
// many runs, and the others have ended.
func large(t testing.TB, nodes, tasks, running int) *fleettest.Fleet {
	t.Helper()
	f := fleettest.New(t)
	f.AddImage(&dv1.Image{Digest: someDigest, Config: []byte(`{"config":{"Cmd":["sh"],"Env":["PATH=/bin"],"Labels":{"from":"image"}}}`)}, "docker.io/library/busybox:latest")
	var effects []*dv1.Effect
	for n := range nodes {
		id := fmt.Sprint("n", n)
		effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: pki.URI(fleettest.Cluster, pki.KindNode, id)}}},
			&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: id, Name: "node-" + id, Capacity: &dv1.Capacity{NanoCpus: 4e9, Memory: 4 << 30}}}})
	}
	var spec []byte
	for n := range tasks {
		if n%100 == 0 {
			spec = fmt.Appendf(nil, "spec %-27d", n)
			body := fmt.Sprintf(`{"Image":"busybox","Cmd":["serve","--port","80"],"Env":["MODE=production"],"Labels":{"app":"app-%d"},"HostConfig":{"NetworkMode":"bridge"}}`, n/100)
			effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: spec, Body: []byte(body), Image: "busybox", Digest: someDigest}}})
		}
		task := &dv1.Task{Id: fmt.Appendf(nil, "%-32d", n), SpecId: spec, Name: fmt.Sprint("task-", n), NodeId: fmt.Sprint("n", n%nodes),
			Created: fleettest.Start.UnixNano() + int64(n), Desired: dv1.Desired_RUNNING, Attempt: 1, Started: fleettest.Start.UnixNano()}
		if n%running != 0 {
			task.Exit = &dv1.Exit{Attempt: 1, At: task.Started}
		}
		effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Task{Task: task}})
	}
	f.Apply(effects...)
	return f
}

func get(t testing.TB, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
	return w
}

func filtered(f string) string { return "/containers/json?filters=" + url.QueryEscape(f) }

// What lists of a large fleet cost; under 20 ms each is the goal.
func BenchmarkLists(b *testing.B) {
	for _, fl := range []struct {
		name    string
		running int
	}{{"all run", 1}, {"200 run", 500}} {
		f := large(b, 5000, 100_000, fl.running)
		for i := range 500 {
			f.Silence(fmt.Sprint("n", i), fleettest.Start)
		}
		h := f.As(fleettest.Admin, New(Options{Fleet: f}))
		for what, path := range map[string]string{
			"limit":           "/containers/json?limit=200",
			"label":           filtered(`{"label":["app=app-7"]}`),
			"label and limit": "/containers/json?limit=200&filters=" + url.QueryEscape(`{"label":["app=app-7"]}`),
			"status":          "/containers/json?limit=200&filters=" + url.QueryEscape(`{"status":["exited"]}`),
			"ps":              "/containers/json",
			"info":            "/info",
		} {
			if fl.running == 1 && what == "ps" {
				continue // its answer is all of them
			}
			b.Run(fl.name+"/"+what, func(b *testing.B) {
				for b.Loop() {
					get(b, h, path)
				}
			})
		}
	}
}

// A list is the newest first, cut where it is asked to be, and holds no more than
// what passes all filters, whoever decides them.
func TestListsOfALargeFleet(t *testing.T) {
	f := large(t, 50, 1000, 10)
	h := f.As(fleettest.Admin, New(Options{Fleet: f}))
	names := func(path string) (out []string) {
		var list []container.Summary
		if err := json.Unmarshal(get(t, h, path).Body.Bytes(), &list); err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			out = append(out, c.Names[0])
		}
		return out
	}
	for _, c := range []struct {
		path        string
		n           int
		first, last string
	}{
		{"/containers/json", 100, "/task-990", "/task-0"},
		{"/containers/json?all=1", 1000, "/task-999", "/task-0"},
		{"/containers/json?limit=3", 3, "/task-999", "/task-997"},
		{filtered(`{"label":["app=app-7"]}`), 10, "/task-790", "/task-700"},
		{filtered(`{"label":["app=app-7","from=image"]}`), 10, "/task-790", "/task-700"},
		{filtered(`{"label":["app=app-7","io.drover.node=node-n40"]}`), 2, "/task-790", "/task-740"},
		{filtered(`{"node":["node-n4*"],"label":["app=app-7"]}`), 2, "/task-790", "/task-740"},
		{filtered(`{"status":["exited"],"label":["app=app-7"]}`), 90, "/task-799", "/task-701"},
		{"/containers/json?limit=2&filters=" + url.QueryEscape(`{"status":["running"],"label":["app=app-7"]}`), 2, "/task-790", "/task-780"},
		{filtered(`{"exited":["0"]}`), 0, "", ""},
		{"/containers/json?all=1&filters=" + url.QueryEscape(`{"exited":["0"],"label":["app=app-7"]}`), 90, "/task-799", "/task-701"},
		{"/containers/json?all=1&filters=" + url.QueryEscape(`{"name":["task-99"]}`), 11, "/task-999", "/task-99"},
		{"/containers/json?all=1&filters=" + url.QueryEscape(`{"since":["task-997"]}`), 2, "/task-999", "/task-998"},
	} {
		got := names(c.path)
		if len(got) != c.n || c.n > 0 && (got[0] != c.first || got[c.n-1] != c.last) {
			t.Errorf("%s: %d, %v", c.path, len(got), got[:min(len(got), 3)])
		}
	}
	// What an agent saw counts before the log has it.
	ended := f.Snapshot().TaskByName("task-990")
	f.Observed(&dv1.TaskStatus{Id: ended.Id, Attempt: 1, Phase: dv1.Phase_EXITED, Exit: &dv1.Exit{Attempt: 1, Code: 3}})
	paused := f.Snapshot().TaskByName("task-980")
	f.Observed(&dv1.TaskStatus{Id: paused.Id, Attempt: 1, Phase: dv1.Phase_ACTIVE, Paused: true})
	if got := names("/containers/json"); len(got) != 99 || got[0] != "/task-980" {
		t.Errorf("with one that ended as its agent saw it: %d, %v", len(got), got[:1])
	}
	if got := names(filtered(`{"status":["paused"]}`)); len(got) != 1 || got[0] != "/task-980" {
		t.Errorf("paused are %v", got)
	}
	if got := names("/containers/json?all=1&filters=" + url.QueryEscape(`{"exited":["3"]}`)); len(got) != 1 || got[0] != "/task-990" {
		t.Errorf("those that exited with 3 are %v", got)
	}
	var info struct{ Containers, ContainersRunning, ContainersPaused, ContainersStopped int }
	if err := json.Unmarshal(get(t, h, "/info").Body.Bytes(), &info); err != nil || info.Containers != 1000 || info.ContainersRunning != 99 || info.ContainersPaused != 1 || info.ContainersStopped != 900 {
		t.Errorf("info: %+v %v", info, err)
	}
}
