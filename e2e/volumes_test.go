package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// Volumes of a fleet, by drover's and docker's client: homes, pins, seeding, removal, and
// a node that is lost and comes back.
func TestVolumesOfAFleet(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a, b, c := f.Hosts[0], f.Hosts[1], f.Hosts[2]
	a.Must("pull", "alpine")
	home := func(name string) string {
		return strings.TrimSpace(a.Must("volume", "inspect", "-f", `{{index .Labels "io.drover.node"}}`, name))
	}
	data := func(h *fleet.Host) []string {
		dirs, _ := filepath.Glob(filepath.Join(h.Dir, "data", "volumes", "*", "_data"))
		return dirs
	}

	want(t, a.Drover("volume", "create", "data"), 0, "data")
	if got := home("data"); got != "" {
		t.Errorf("it has a home before it is used: %q", got)
	}
	want(t, a.Drover("run", "--rm", "--on", "node==c", "-v", "data:/x", "alpine", "/bin/sh", "-c", "echo kept > /x/f"), 0)
	if got := home("data"); got != "c" {
		t.Errorf("its home is %q", got)
	}
	// Everybody goes there, from any host, also with docker's client.
	want(t, b.Drover("run", "--rm", "-v", "data:/x:ro", "alpine", "/bin/cat", "/x/f"), 0, "kept")
	want(t, a.Docker(nil, "run", "--rm", "--mount", "type=volume,src=data,dst=/x,readonly", "alpine", "/bin/cat", "/x/f"), 0, "kept")
	want(t, a.Drover("run", "--rm", "--on", "node==a", "-v", "data:/x", "alpine", "/bin/true"), 125, "excluded: volume data is on c")
	for _, list := range []fleet.Result{a.Docker(nil, "volume", "ls"), a.Drover("volume", "ls")} {
		want(t, list, 0, "DRIVER", "VOLUME NAME", "local", "data")
	}

	want(t, a.Drover("volume", "ls"), 0, "DRIVER +VOLUME NAME +NODE\nlocal +data +c\n")
	want(t, a.Drover("volume", "ls", "-q"), 0, "^data\n$")

	// Anonymous ones go with --rm and rm -v, on their node's disk as well: once the log is
	// read, or was kept for long enough.
	want(t, a.Drover("run", "--rm", "--on", "node==b", "-v", "/anon", "alpine", "/bin/true"), 0)
	f.Eventually(45*time.Second, "an anonymous volume's data is removed", func() bool { return len(data(b)) == 0 })
	want(t, a.Drover("run", "-d", "--name", "web", "--on", "node==b", "-v", "/anon", "-v", "shared:/s", "alpine", "/bin/sh", "-c", "echo s > /s/f; sleep 1000"), 0)
	want(t, a.Drover("run", "--rm", "--volumes-from", "web:ro", "alpine", "/bin/cat", "/s/f"), 0, "s")
	want(t, a.Drover("volume", "rm", "shared"), 1, "volume is in use - ")
	want(t, a.Drover("ps", "--filter", "volume=shared", "--format", "{{.Names}}"), 0, "web")
	want(t, a.Drover("rm", "-fv", "web"), 0)
	f.Eventually(45*time.Second, "the named one's data alone stays", func() bool { return len(data(b)) == 1 })

	// A lost node pins, keeps its data, and removals wait for it.
	c.Link(false)
	f.Eventually(20*time.Second, "c is silent", func() bool {
		row := a.Drover("node", "ls").Out
		return strings.Contains(row, "silent") || strings.Contains(row, "down")
	})
	want(t, a.Drover("run", "--rm", "-v", "data:/x", "alpine", "/bin/true"), 125, "excluded: volume data is on c")
	want(t, a.Drover("volume", "rm", "data"), 0)
	want(t, a.Drover("run", "--rm", "-v", "data:/x", "alpine", "/bin/sh", "-c", "ls /x; echo new > /x/g"), 0)
	if got := home("data"); got == "c" || got == "" {
		t.Errorf("the new volume's home is %q", got)
	}
	if len(data(c)) != 1 {
		t.Errorf("%q is there on the node that nobody can tell", data(c))
	}
	c.Link(true)
	f.Eventually(30*time.Second, "the old data is removed once its node is heard", func() bool { return len(data(c)) == 0 })
	want(t, a.Drover("run", "--rm", "-v", "data:/x", "alpine", "/bin/cat", "/x/g"), 0, "new")

	events := func(filter string) fleet.Result {
		return a.Drover("events", "--since", "10m", "--until", "0s", "--filter", "type=volume", "--filter", filter)
	}
	want(t, events("node=b"), 0, "volume create shared .*io.drover.node=b", "volume mount shared .*io.drover.node=b", "volume unmount shared .*io.drover.node=b")
	want(t, a.Drover("volume", "prune", "-f"), 0, "Total reclaimed space")
	f.Eventually(5*time.Second, "a prune is an event", func() bool { // its second must be over: docker's client asks for whole ones
		return regexp.MustCompile(`volume prune +\(reclaimed=\d+\)`).MatchString(events("event=prune").Out)
	})
	want(t, a.Drover("volume", "ls", "-q"), 0, "data", "shared")
	want(t, a.Drover("system", "df"), 0, "Local Volumes")
	want(t, a.Drover("volume", "prune", "-af"), 0, "data", "shared")
	for _, h := range f.Hosts {
		f.Eventually(45*time.Second, "all data is removed", func() bool { return len(data(h)) == 0 })
	}
}

// An agent that is killed again and again while it seeds a volume leaves the whole image's
// directory there, or nothing that counts as it.
func TestAnAgentIsKilledDuringTheCopyUp(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a")
	a := f.Hosts[0]
	a.Up()
	a.Must("pull", "alpine")
	for i := range 4 {
		name := "seeded" + string(rune('0'+i))
		done := make(chan fleet.Result, 1)
		go func() {
			done <- a.Drover("run", "--rm", "-v", name+":/bin", "alpine", "/bin/sh", "-c", "ls /bin/busybox && ls /bin | wc -l")
		}()
		time.Sleep(time.Duration(30+40*i) * time.Millisecond)
		a.Kill("agent", "--data-dir")
		want(t, <-done, 0, "/bin/busybox")
	}
	dirs, err := os.ReadDir(filepath.Join(a.Dir, "data", "volumes"))
	if err != nil || len(dirs) != 4 {
		t.Fatalf("%d volumes, %v", len(dirs), err)
	}
	for _, d := range dirs {
		parts, _ := os.ReadDir(filepath.Join(a.Dir, "data", "volumes", d.Name()))
		if len(parts) != 1 {
			t.Errorf("volume %.12s has %v", d.Name(), parts)
		}
	}
}
