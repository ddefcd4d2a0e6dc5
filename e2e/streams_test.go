package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// counting is a container's command that counts to n, a line each tenth of a second.
func counting(n, code int) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit %d", n, code)
}

func counted(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i)
	}
	return b.String()
}

// begun waits until the container has printed something.
func begun(f *fleet.Fleet, h *fleet.Host, name string) {
	f.Eventually(20*time.Second, name+" counts", func() bool { return strings.Contains(h.Drover("logs", name).Out, "3\n") })
}

// A follower's link is down for a while, and there is a majority without it: no run
// loses output, neither those that it relayed nor those that start after it is back.
func TestAFollowerIsCutOffUnderRuns(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c", "d")
	f.Quorum()
	a, d := f.Hosts[0], f.Hosts[3]
	a.Must("pull", "alpine")
	l := f.Leader()
	for _, cut := range f.Hosts[:3] {
		if cut == l {
			continue
		}
		var runs sync.WaitGroup
		run := func(on, name string, n int) {
			runs.Go(func() {
				r := d.Drover("run", "--rm", "--name", name, "--on", on, "alpine", "/bin/sh", "-c", counting(n, 7))
				if r.Code != 7 || r.Out != counted(n) {
					t.Errorf("%s, %s cut off: %v", name, cut.Name, r)
				}
			})
		}
		for _, on := range f.Hosts {
			if on != cut {
				run("node=="+on.Name, "one-on-"+on.Name, 40)
				run("node=="+on.Name, "two-on-"+on.Name, 60)
			}
		}
		begun(f, a, "two-on-d")
		cut.Link(false)
		time.Sleep(7 * time.Second) // some runs end meanwhile, some later
		cut.Link(true)
		for i := range 10 {
			run("node!="+cut.Name, fmt.Sprint("later-", i), 1)
			time.Sleep(200 * time.Millisecond)
		}
		runs.Wait()
		if t.Failed() {
			t.Fatal(d.Logs())
		}
	}
}

// When an agent dies under attached runs and restarts, they continue where they were,
// also with docker's client, and so do followed logs.
func TestAnAgentDiesUnderAttachedRuns(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c", "d")
	f.Quorum()
	a, d := f.Hosts[0], f.Hosts[3]
	a.Must("pull", "alpine")
	var runs sync.WaitGroup
	for _, h := range []*fleet.Host{a, f.Hosts[1], d} {
		runs.Go(func() {
			name := "by-" + h.Name
			if r := h.Drover("run", "--rm", "--name", name, "--on", "node==d", "alpine", "/bin/sh", "-c", counting(40, 7)); r.Code != 7 || r.Out != counted(40) {
				t.Errorf("run at %s: %v", h.Name, r)
			}
		})
		if h == d {
			continue // its socket dies with the agent, so docker's client can't continue
		}
		runs.Go(func() {
			if r := h.Docker(nil, "run", "--rm", "-l", "io.drover.on=node==d", "alpine", "/bin/sh", "-c", counting(40, 7)); r.Code != 7 || r.Out != counted(40) {
				t.Errorf("docker run at %s: %v", h.Name, r)
			}
		})
	}
	a.Must("run", "-d", "--name", "followed", "--on", "node==d", "alpine", "/bin/sh", "-c", counting(50, 0))
	for _, h := range []*fleet.Host{a, d} {
		runs.Go(func() {
			if r := h.Drover("logs", "-f", "followed"); r.Code != 0 || r.Out != counted(50) {
				t.Errorf("logs -f at %s: %v", h.Name, r)
			}
		})
	}
	runs.Go(func() {
		if r := a.Docker(nil, "logs", "-f", "followed"); r.Code != 0 || r.Out != counted(50) {
			t.Errorf("docker logs -f: %v", r)
		}
	})
	for _, name := range []string{"by-a", "by-b", "by-d", "followed"} {
		begun(f, a, name)
	}
	d.Kill("agent", "--data-dir")
	runs.Wait()
	if t.Failed() {
		t.Fatal(d.Logs())
	}
}

// Each controller dies in turn while logs are followed: none of them ends early, and
// none has a gap or a duplicate line.
func TestControllersDieUnderFollowedLogs(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c", "d")
	f.Quorum()
	a, d := f.Hosts[0], f.Hosts[3]
	a.Must("run", "-d", "-t", "--name", "terminal", "--on", "node==b", "alpine", "/bin/sh", "-c", counting(80, 0))
	a.Must("run", "-d", "--name", "piped", "--on", "node==d", "alpine", "/bin/sh", "-c", counting(80, 0))
	var followers sync.WaitGroup
	for _, h := range []*fleet.Host{a, f.Hosts[1], d} {
		for name, want := range map[string]string{"piped": counted(80), "terminal": strings.ReplaceAll(counted(80), "\n", "\r\n")} {
			followers.Go(func() {
				if r := h.Drover("logs", "-f", name); r.Code != 0 || r.Out != want {
					t.Errorf("logs -f %s at %s: %v", name, h.Name, r)
				}
			})
		}
	}
	begun(f, a, "piped")
	for _, h := range f.Hosts[:3] {
		h.Kill("controller", "--data-dir")
		f.Voters(3)
		f.Leader()
	}
	followers.Wait()
}
