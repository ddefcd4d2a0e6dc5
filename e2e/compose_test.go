package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// compose builds docker compose, unmodified, as its own module names it, and returns the
// path of the program, which is kept in the build cache.
var compose = sync.OnceValues(func() (string, error) {
	c := exec.Command("go", "tool", "-modfile=compose/go.mod", "-n", "github.com/docker/compose/v5/cmd")
	c.Env = append(os.Environ(), "CGO_ENABLED=0") // one build for plain tests and those under the race detector
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("building docker compose: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
})

// shop runs compose on a host with the project e2e/compose/shop.yaml.
type shop struct {
	t       *testing.T
	program string
	file    string
}

func newShop(t *testing.T) shop {
	t.Helper()
	program, err := compose()
	if err != nil {
		t.Fatal(err)
	}
	file, err := filepath.Abs("compose/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return shop{t, program, file}
}

// on runs compose against a host's socket.
func (s shop) on(h *fleet.Host, args ...string) fleet.Result {
	s.t.Helper()
	env := []string{"env", "DOCKER_HOST=unix://" + h.Socket(), "VERSION=1"}
	return h.In(nil, append(append(env, s.program, "--file", s.file, "--ansi=never", "--progress=plain"), args...)...)
}

// composed is a container as `compose ps --format json` describes it.
type composed struct {
	ID, Name, Service, State, Labels string
	ExitCode                         int
	Publishers                       []struct{ TargetPort, PublishedPort int }
}

func (c composed) node() string {
	_, rest, _ := strings.Cut(c.Labels, "io.drover.node=")
	node, _, _ := strings.Cut(rest, ",")
	return node
}

// ps returns the project's containers by their names.
func (s shop) ps(h *fleet.Host) map[string]composed {
	s.t.Helper()
	r := s.on(h, "ps", "--all", "--format", "json")
	want(s.t, r, 0)
	all := map[string]composed{}
	for line := range strings.Lines(r.Out) {
		var c composed
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			s.t.Fatalf("%v: %s", err, line)
		}
		all[c.Name] = c
	}
	return all
}

// Docker compose, as it is, takes a fleet of three for one engine: up, scale, restart and
// down of a project with networks, aliases, a volume, a one-shot and a published port.
// What waits for health (depends_on: service_healthy) is not in it: the fleet refuses
// health checks.
func TestComposeOnAFleet(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a, b, c := f.Hosts[0], f.Hosts[1], f.Hosts[2]
	s := newShop(t)

	want(t, s.on(a, "up", "--detach"), 0, "Network shop_back +Created", "Volume shop_data +Created",
		"Container shop-migrate-1 +Exited.*Container shop-web-1 +Starting")
	all := s.ps(b)
	if len(all) != 4 {
		t.Fatalf("up made %v", all)
	}
	for name, c := range all {
		if state := map[bool]string{true: "exited", false: "running"}[c.Service == "migrate"]; c.State != state || c.ExitCode != 0 {
			t.Errorf("%s is %s (%d), not %s", name, c.State, c.ExitCode, state)
		}
	}
	ended, started := moment(t, a, "shop-migrate-1", "FinishedAt"), moment(t, a, "shop-web-1", "StartedAt")
	if started.Before(ended) {
		t.Errorf("web was started at %v, before its one-shot ended at %v", started, ended)
	}
	want(t, s.on(c, "logs", "migrate", "web"), 0, `migrate-1 +\| migrated\n`, `web-1 +\| listening on :80\n`)
	want(t, s.on(b, "images"), 0, "shop-cache-1 +alpine +latest", "shop-web-1 +web +latest")

	t.Run("services reach each other over nodes", func(t *testing.T) {
		want(t, s.on(b, "up", "--detach", "--scale", "web=3"), 0, "Container shop-db-1 +Running", "Container shop-web-3 +Started")
		all := s.ps(c)
		nodes := map[string]bool{}
		for _, c := range all {
			nodes[c.node()] = true
		}
		if len(all) != 6 || len(nodes) != 3 {
			t.Errorf("%d containers are on %v", len(all), nodes)
		}
		if all["shop-db-1"].node() != all["shop-migrate-1"].node() {
			t.Error("the users of one volume are on two nodes")
		}
		for i := 1; i <= 3; i++ {
			in := func(args ...string) fleet.Result {
				return s.on(c, append([]string{"exec", "-T", "--index", fmt.Sprint(i), "web"}, args...)...)
			}
			want(t, in("wget", "-q", "-O-", "http://postgres:5432/schema"), 0, "^1\n(1\n)*$")
			want(t, in("wget", "-q", "-O-", "http://db:5432/schema"), 0, "^1\n")
			want(t, in("wget", "-q", "-O-", "http://cache:6379/hostname"), 0, all["shop-cache-1"].ID[:12])
			want(t, in("/bin/sh", "-c", "echo $GREETING"), 0, "^hello there\n$")
			site := in("nslookup", "site")
			if n := strings.Count(site.Out, "\nAddress: "); n != 3 {
				t.Errorf("site has %d addresses: %v", n, site)
			}
		}
		// back is internal, and the cache is in no other network.
		want(t, s.on(c, "exec", "-T", "cache", "/bin/sh", "-c", "ip route | grep -c default"), 1, "^0\n$")
	})
	t.Run("published ports answer", func(t *testing.T) {
		for i := 1; i <= 3; i++ {
			one := s.ps(a)[fmt.Sprintf("shop-web-%d", i)]
			r := s.on(a, "port", "--index", fmt.Sprint(i), "web", "80")
			want(t, r, 0, fmt.Sprintf(`^0\.0\.0\.0:%d\n$`, one.Publishers[0].PublishedPort))
			at := f.Hosts[slices.IndexFunc(f.Hosts, func(h *fleet.Host) bool { return h.Name == one.node() })]
			f.Eventually(10*time.Second, one.Name+" answers from outside", func() bool {
				resp, err := http.Get(fmt.Sprintf("http://%s:%d/", at.Addr, one.Publishers[0].PublishedPort))
				if err != nil {
					return false
				}
				return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
			})
		}
	})
	t.Run("restart, kill, stop, start, run", func(t *testing.T) {
		before := moment(t, a, "shop-cache-1", "StartedAt")
		want(t, s.on(a, "restart", "cache"), 0, "Container shop-cache-1 +Started")
		if after := moment(t, a, "shop-cache-1", "StartedAt"); !after.After(before) {
			t.Errorf("restart left what was started at %v running", before)
		}
		want(t, s.on(b, "kill", "cache"), 0, "Container shop-cache-1 +Killed")
		if c := s.ps(b)["shop-cache-1"]; c.State != "exited" || c.ExitCode != 137 {
			t.Errorf("what was killed is %s (%d)", c.State, c.ExitCode)
		}
		want(t, s.on(c, "start", "cache"), 0, "Container shop-cache-1 +Started")
		want(t, s.on(c, "run", "--rm", "-T", "--no-deps", "cache", "wget", "-q", "-O-", "http://cache:6379/hostname"), 0, "^[0-9a-f]{12}\n")
		want(t, s.on(c, "run", "--rm", "-T", "--no-deps", "cache", "/bin/sh", "-c", "exit 7"), 7)
		want(t, s.on(a, "stop"), 0, "Container shop-web-3 +Stopped.*Container shop-db-1 +Stopped")
		want(t, s.on(a, "start"), 0, "Container shop-web-3 +Started")
		if n := len(s.ps(a)); n != 6 {
			t.Errorf("%d containers after a run that was removed, stop and start", n)
		}
	})
	t.Run("a volume outlives its project", func(t *testing.T) {
		want(t, s.on(b, "down"), 0, "Network shop_back +Removed")
		want(t, a.Drover("ps", "-aq"), 0, "^$")
		want(t, s.on(c, "up", "--detach"), 0, "Container shop-web-1 +Started")
		want(t, s.on(a, "exec", "-T", "db", "cat", "/data/schema"), 0, "^1\n1\n")
	})
	t.Run("down leaves nothing", func(t *testing.T) {
		want(t, s.on(c, "down", "--volumes"), 0, "Volume shop_data +Removed", "Network shop_front +Removed")
		want(t, a.Drover("ps", "-aq"), 0, "^$")
		want(t, a.Drover("volume", "ls", "-q"), 0, "^$")
		want(t, a.Drover("network", "ls", "-q", "--filter", "type=custom"), 0, "^$")
		for _, h := range f.Hosts {
			f.Eventually(45*time.Second, "the volume's data is removed", func() bool {
				dirs, _ := filepath.Glob(filepath.Join(h.Dir, "data", "volumes", "*", "_data"))
				return len(dirs) == 0
			})
			nothingLeft(t, f, h)
			f.Eventually(10*time.Second, "the networks' bridges are gone", func() bool {
				out, err := exec.Command("ip", "-n", h.Netns, "-o", "link", "show", "type", "bridge").Output()
				return err == nil && strings.Count(string(out), "\n") <= 1
			})
		}
	})
}

// moment returns a time of a container's state.
func moment(t *testing.T, h *fleet.Host, name, field string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(h.Must("inspect", "-f", "{{.State."+field+"}}", name)))
	if err != nil {
		t.Fatal(err)
	}
	return at
}
