package engineapi

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// shop is a fleet with containers of all kinds: web runs on n0 with a port and a bind,
// db runs on n1, old ended with 3, new was never started, paused is paused.
func shop(t *testing.T) *api {
	t.Helper()
	a := newAPI(t)
	a.f.AddImage(&dv1.Image{Digest: "sha256:" + strings.Repeat("d", 64), Pulled: 1, Config: []byte(`{"created":"2024-01-02T03:04:05Z","config":{"Cmd":["db"],"Labels":{"kind":"store"}}}`)}, "reg:5000/shop/db:2")
	a.f.Run(a.created("web", `{"Image":"busybox","Cmd":["httpd"],"Labels":{"tier":"front","app":"shop"},"HostConfig":{"Binds":["/srv:/www:ro"],"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}}`).Id)
	db := a.f.Create("db", "reg:5000/shop/db:2", `{"Image":"reg:5000/shop/db:2","Labels":{"tier":"back","app":"shop"},"HostConfig":{"NetworkMode":"host"}}`)
	a.f.Run(db.Id)
	old := a.created("old", `{"Image":"busybox","Cmd":["sh","-c","exit 3"]}`)
	a.f.Run(old.Id)
	a.f.Exit(old.Id, 3)
	a.created("new", `{"Image":"busybox"}`)
	paused := a.created("paused", `{"Image":"busybox"}`)
	a.f.Run(paused.Id)
	a.f.Observed(&dv1.TaskStatus{Id: paused.Id, Attempt: 1, Phase: dv1.Phase_ACTIVE, Started: 5, Paused: true})
	return a
}

// names are the containers of a list, in its order.
func (a *api) names(query string) string {
	a.t.Helper()
	r := a.do("GET", "/containers/json?"+query, "")
	var list []container.Summary
	if err := json.Unmarshal([]byte(r.body), &list); err != nil || r.code != 200 {
		a.t.Fatalf("%s: %d %s %v", query, r.code, r.body, err)
	}
	var out []string
	for _, c := range list {
		out = append(out, strings.TrimPrefix(c.Names[0], "/"))
	}
	return strings.Join(out, " ")
}

func TestListFilters(t *testing.T) {
	a := shop(t)
	all := "paused new old db web" // newest first
	if got := a.names("all=1"); got != all {
		t.Errorf("all are %q", got)
	}
	id := hexID(a.f.Snapshot().TaskByName("web"))
	for _, c := range []struct{ filter, want string }{
		{`{}`, all},
		{`{"name":["e"]}`, "paused new web"}, {`{"name":["^/web$"]}`, "web"}, {`{"name":["^web$","old"]}`, "old web"}, {`{"name":["nothing"]}`, ""},
		{`{"name":{"web":true,"old":false}}`, "web"},
		{`{"id":["` + id[:7] + `"]}`, "web"}, {`{"id":["0"]}`, ""},
		{`{"label":["app=shop"]}`, "db web"}, {`{"label":["app","tier=back"]}`, "db"}, {`{"label":["app=none"]}`, ""}, {`{"label":["from=image"]}`, "paused new old web"},
		{`{"label":["io.drover.node=web-1"]}`, "paused new old web"},
		{`{"status":["running"]}`, "db web"}, {`{"status":["exited","created"]}`, "new old"}, {`{"status":["paused"]}`, "paused"}, {`{"status":["dead"]}`, ""},
		{`{"exited":["3"]}`, "old"}, {`{"exited":["0"]}`, ""},
		{`{"node":["web-1"]}`, "paused new old web"}, {`{"node":["web-*"]}`, all}, {`{"node":["n1"]}`, "db"},
		{`{"network":["host"]}`, "db"}, {`{"network":["bridge"]}`, "paused new old web"}, {`{"network":["` + networkID("host") + `"]}`, "db"},
		{`{"ancestor":["busybox"]}`, "paused new old web"}, {`{"ancestor":["reg:5000/shop/db:2","busybox"]}`, all}, {`{"ancestor":["nothing"]}`, ""}, {`{"ancestor":["dddd"]}`, "db"},
		{`{"before":["old"]}`, "db web"}, {`{"since":["old"]}`, "paused new"}, {`{"since":["web"],"before":["new"]}`, "old db"},
		{`{"publish":["8080"]}`, "web"}, {`{"publish":["8000-9000/tcp"]}`, "web"}, {`{"publish":["8080/udp"]}`, ""}, {`{"publish":["x"]}`, ""},
		{`{"expose":["80"]}`, "web"},
		{`{"volume":["/www"]}`, "web"}, {`{"volume":["/srv"]}`, "web"}, {`{"volume":["/none"]}`, ""},
		{`{"is-task":["true"]}`, ""}, {`{"is-task":["false"]}`, all}, {`{"health":["none"]}`, all}, {`{"health":["healthy"]}`, ""},
		{`{"isolation":["hyperv"]}`, ""}, {`{"isolation":[""]}`, all},
		{`{"status":["running"],"label":["tier=front"]}`, "web"},
	} {
		if got := a.names("all=1&filters=" + url.QueryEscape(c.filter)); got != c.want {
			t.Errorf("%s: %q, want %q", c.filter, got, c.want)
		}
	}
}

// A list of what has ended has what only an agent knows of yet, and leaves out what its
// report is too old for.
func TestAListOfWhatEndedIsAsNewAsTheReports(t *testing.T) {
	a := shop(t)
	db, web := a.f.Snapshot().TaskByName("db"), a.f.Snapshot().TaskByName("web")
	a.f.Observed(&dv1.TaskStatus{Id: db.Id, Attempt: 1, Phase: dv1.Phase_EXITED, Exit: &dv1.Exit{Attempt: 1, Code: 7}})
	a.f.Observed(&dv1.TaskStatus{Id: web.Id, Attempt: 0, Phase: dv1.Phase_EXITED, Exit: &dv1.Exit{}})
	for filter, want := range map[string]string{
		`{"status":["exited"]}`: "old db", `{"exited":["7"]}`: "db", `{"exited":["3","7"],"status":["exited"]}`: "old db", `{"exited":["0"]}`: "",
		`{"status":["exited","running"]}`: "old db web", `{"status":["running"]}`: "web", `{"status":["exited"],"name":["d"]}`: "old db",
	} {
		if got := a.names("all=1&filters=" + url.QueryEscape(filter)); got != want {
			t.Errorf("%s: %q, want %q", filter, got, want)
		}
	}
	if got := a.names("limit=1&filters=" + url.QueryEscape(`{"status":["exited"]}`)); got != "old" {
		t.Errorf("the newest is %q", got)
	}
}

func TestListLimits(t *testing.T) {
	a := shop(t)
	for query, want := range map[string]string{
		"": "paused db web", "all=0": "paused db web", "all=false": "paused db web", "all=true": "paused new old db web",
		"limit=2": "paused new", "limit=100": "paused new old db web", "limit=0": "paused db web", "limit=-1": "paused db web",
		"limit=1&filters=%7B%22name%22:%5B%22web%22%5D%7D": "web", "filters=%7B%22status%22:%5B%22exited%22%5D%7D": "old",
	} {
		if got := a.names(query); got != want {
			t.Errorf("%q: %q, want %q", query, got, want)
		}
	}
	r := a.do("GET", "/containers/json?size=1", "")
	if r.header.Get("Drover-Warning") != "sizes of containers are not available on this fleet yet" {
		t.Errorf("sizes: %v", r.header)
	}
}

func TestListImages(t *testing.T) {
	a := shop(t)
	untagged := "sha256:" + strings.Repeat("e", 64)
	a.f.AddImage(&dv1.Image{Digest: untagged, Pulled: 2e9})
	for filter, want := range map[string]string{
		``: "busybox:latest reg:5000/shop/db:2 ", `{"dangling":["true"]}`: "", `{"dangling":["0"]}`: "busybox:latest reg:5000/shop/db:2",
		`{"label":["kind=store"]}`: "reg:5000/shop/db:2", `{"label":["from","kind"]}`: "",
		`{"reference":["busybox"]}`: "busybox:latest", `{"reference":["busy*"]}`: "busybox:latest", `{"reference":["reg:5000/*/db"]}`: "reg:5000/shop/db:2", `{"reference":["busybox:1"]}`: "",
		`{"before":["busybox"]}`: "reg:5000/shop/db:2 ", `{"since":["reg:5000/shop/db:2"]}`: "busybox:latest",
		`{"until":["2024-06-01T00:00:00Z"]}`: "reg:5000/shop/db:2 ", `{"until":["24h"]}`: "busybox:latest reg:5000/shop/db:2 ", `{"until":["24h","3"]}`: "",
		`{"until":["2024-01-02T03:04:05Z"]}`: "", `{"until":["1735787045.5"]}`: "busybox:latest reg:5000/shop/db:2 ",
	} {
		r := a.do("GET", "/images/json?filters="+url.QueryEscape(filter), "")
		var list []image.Summary
		if err := json.Unmarshal([]byte(r.body), &list); err != nil || r.code != 200 {
			t.Fatalf("%s: %d %s", filter, r.code, r.body)
		}
		var got []string
		for _, i := range list {
			got = append(got, strings.Join(i.RepoTags, " "))
		}
		dangling := filter == `{"dangling":["true"]}` && len(list) == 1 && list[0].ID == untagged
		if strings.Join(got, " ") != want && !dangling {
			t.Errorf("%s: %q, want %q", filter, got, want)
		}
		for _, i := range list {
			if i.ID == busybox && i.Containers != 4 {
				t.Errorf("busybox has %d containers", i.Containers)
			}
		}
	}
	if r := a.do("GET", "/images/json?filter=busybox", ""); !strings.Contains(r.body, "busybox:latest") || strings.Contains(r.body, "shop/db") {
		t.Errorf("the filter of older versions: %s", r.body)
	}
}

func TestReferencePatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, ref string
		fits         bool
	}{
		{"busybox", "busybox:latest", true}, {"busybox:latest", "busybox:latest", true}, {"busybox:1", "busybox:latest", false}, {"busybox:*", "busybox:1", true},
		{"b*", "busybox:1", true}, {"a/b", "a/b:1", true}, {"*", "a/b:1", false}, {"*/*", "a/b:1", true}, {"reg:5000/a", "reg:5000/a:1", true}, {"[", "a:1", false},
	} {
		if got := refMatches(c.pattern, c.ref); got != c.fits {
			t.Errorf("%s of %s: %v", c.pattern, c.ref, got)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for want, c := range map[string]container.Config{
		"sh -c 'exit 3'": {Cmd: []string{"sh", "-c", "exit 3"}}, "/run x": {Entrypoint: []string{"/run"}, Cmd: []string{"x"}}, "": {}, "a b c": {Cmd: []string{"a b", "c"}},
	} {
		if got := commandLine(&c); got != want {
			t.Errorf("%+v: %q, want %q", c, got, want)
		}
	}
}

func TestMoments(t *testing.T) {
	for text, want := range map[string]int64{
		"": 0, "0": 0, "1": 1e9, "1.5": 1_500_000_000, "1.000000001": 1_000_000_001, "1.0000000019": 1_000_000_001, "2026-01-02T03:04:05Z": 1767323045e9, "2026-01-02T03:04:05.5+01:00": 1767319445500000000,
	} {
		if got, err := moment(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, bad := range []string{"x", "1.x", "2026-01-02"} {
		if got, err := moment(bad); err == nil {
			t.Errorf("%q is %d", bad, got)
		}
	}
}
