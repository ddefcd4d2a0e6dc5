package engineapi

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

// moving is what differs from one run to the next.
var moving = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`"Up [^"(]+( \(|")`), `"Up SOME TIME$1`},
	{regexp.MustCompile(`(Exited \(\d+\)) [^"]+ ago`), `$1 SOME TIME ago`},
	{regexp.MustCompile(`"SystemTime": "[^"]+"`), `"SystemTime": "NOW"`},
	{regexp.MustCompile(regexp.QuoteMeta(runtime.Version())), `GO`},
	{regexp.MustCompile(`"Arch": "` + runtime.GOARCH + `"`), `"Arch": "ARCH"`},
}

// golden compares an answer with what it was when somebody looked at it.
func golden(t *testing.T, name string, r reply) {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, []byte(r.body), "", "  "); err != nil || r.code >= 300 {
		t.Fatalf("%s: %d %s: %v", name, r.code, r.body, err)
	}
	got := strings.TrimSpace(b.String()) + "\n"
	for _, m := range moving {
		got = m.what.ReplaceAllString(got, m.by)
	}
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not as in %s (-update writes it):\n%s", name, file, got)
	}
}

// What clients read, in docker's shapes.
func TestGoldens(t *testing.T) {
	a := shop(t)
	web := a.f.Snapshot().TaskByName("web")
	a.f.Observed(&dv1.TaskStatus{Id: web.Id, Attempt: 1, Phase: dv1.Phase_ACTIVE, Started: 1767323045e9, Pid: 42, Ip: "10.210.0.2", Gateway: "10.210.0.1", PrefixLen: 24,
		Mac: "02:00:00:00:00:02", Ports: []*dv1.Port{{Proto: "tcp", Container: 80, Host: 8080}}})
	golden(t, "ps", a.do("GET", "/containers/json?all=1", ""))
	golden(t, "inspect-running", a.do("GET", "/containers/web/json", ""))
	golden(t, "inspect-ended", a.do("GET", "/containers/old/json", ""))
	golden(t, "inspect-new", a.do("GET", "/containers/new/json", ""))
	golden(t, "inspect-1.44", a.do("GET", "/v1.44/containers/web/json", ""))
	golden(t, "images", a.do("GET", "/images/json", ""))
	golden(t, "image", a.do("GET", "/images/busybox/json", ""))
	golden(t, "info", a.do("GET", "/info", ""))
	golden(t, "version", a.do("GET", "/version", ""))
}

func TestGoldensOfASilentNode(t *testing.T) {
	a := shop(t)
	a.f.Silence("n1", time.Now().Add(-time.Hour))
	r := a.do("GET", "/info", "")
	r.body = strings.ReplaceAll(r.body, "1h0m0s", "AN HOUR")
	golden(t, "info-silent", r)
	r = a.do("GET", "/containers/json?all=1&filters=%7B%22name%22:%5B%22db%22%5D%7D", "")
	r.body = strings.ReplaceAll(r.body, "1h0m0s", "AN HOUR")
	golden(t, "ps-silent", r)
}
