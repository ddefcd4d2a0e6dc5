package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// addresses returns what a container is told of a name, sorted.
func addresses(h *fleet.Host, container, name string) string {
	r := h.Drover("exec", container, "nslookup", name+".", "127.0.0.11")
	var out []string
	answer := false
	for line := range strings.Lines(r.Out) {
		f := strings.Fields(line)
		answer = answer || strings.HasPrefix(line, "Name:")
		if answer && len(f) > 1 && strings.HasPrefix(line, "Address") {
			out = append(out, f[len(f)-1])
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), " ")
}

// addressOf returns a container's address in a network.
func addressOf(h *fleet.Host, container, network string) string {
	return strings.TrimSpace(h.Must("inspect", "-f", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network), container))
}

// Containers on several nodes find and reach each other by name, whatever of drover is
// dead.
func TestContainersFindEachOtherByName(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a := f.Hosts[0]
	a.Must("pull", "alpine")
	a.Must("network", "create", "red")
	for _, h := range f.Hosts {
		a.Must("run", "-d", "--name", "on-"+h.Name, "--on", "node=="+h.Name, "--network", "red", "--network-alias", "all", "alpine", "sleep", "1000")
	}
	every := ""
	for _, h := range f.Hosts {
		every += addressOf(a, "on-"+h.Name, "red") + " "
	}
	all := strings.Fields(every)
	slices.Sort(all)
	every = strings.Join(all, " ")
	whole := func(when string) {
		t.Helper()
		for _, h := range f.Hosts {
			from := "on-" + h.Name
			f.Eventually(10*time.Second, when+", "+from+" knows all", func() bool { return addresses(a, from, "all") == every })
			for _, other := range f.Hosts {
				f.Eventually(10*time.Second, when+", "+from+" reaches on-"+other.Name, func() bool {
					return a.Drover("exec", from, "ping", "-c1", "-W1", "on-"+other.Name).Code == 0
				})
			}
		}
	}
	whole("at first")

	// One that stops is not answered any more, one that starts again is, at once.
	a.Must("stop", "-t", "0", "on-c")
	began, asked := time.Now(), time.Now()
	f.Eventually(30*time.Second, "a stopped container has no name", func() bool { // what nobody knows is asked outside, in vain
		asked = time.Now()
		return addresses(a, "on-b", "on-c") == ""
	})
	if d := asked.Sub(began); d > time.Second {
		t.Errorf("a stopped container had a name for %v", d)
	}
	a.Must("start", "on-c")
	whole("after a start")

	b := f.Hosts[1]
	if n := b.Kill("drover-resolver"); n != 1 {
		t.Errorf("on b were %d resolvers", n)
	}
	whole("after the death of a resolver")
	was := fmt.Sprint(b.Pids("drover-resolver"))
	b.Kill("agent", "--data-dir")
	whole("after the death of an agent")
	if now := fmt.Sprint(b.Pids("drover-resolver")); now != was {
		t.Errorf("the resolver was %s, with the next agent it is %s", was, now)
	}
	f.Leader().Kill("controller", "--data-dir")
	whole("after the death of the leader")

	// Joining and leaving while running; nothing is left.
	a.Must("network", "create", "blue")
	for _, c := range []string{"on-a", "on-b"} {
		a.Must("network", "connect", "--alias", "both", "blue", c)
	}
	f.Eventually(10*time.Second, "a network that was joined is used", func() bool {
		return len(strings.Fields(addresses(a, "on-a", "both"))) == 2 && a.Drover("exec", "on-a", "ping", "-c1", "-W1", "on-b.blue").Code == 0
	})
	a.Must("network", "disconnect", "blue", "on-b")
	f.Eventually(10*time.Second, "one that left has no name", func() bool { return len(strings.Fields(addresses(a, "on-a", "both"))) == 1 })
	for _, h := range f.Hosts {
		a.Must("rm", "-f", "on-"+h.Name)
	}
	for _, n := range []string{"red", "blue"} {
		f.Eventually(30*time.Second, n+" can go", func() bool { return a.Drover("network", "rm", n).Code == 0 })
	}
	for _, h := range f.Hosts {
		f.Eventually(90*time.Second, "the resolver of "+h.Name+" ends", func() bool { return len(h.Pids("drover-resolver")) == 0 })
	}
}

// A node that starts again without any controller goes on with what it was told: its
// containers find and reach those of nodes on which only containers are left.
func TestNamesAndRoutesNeedNoController(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a, c := f.Hosts[0], f.Hosts[2]
	a.Must("pull", "alpine")
	a.Must("network", "create", "red")
	for _, h := range f.Hosts {
		a.Must("run", "-d", "--name", "on-"+h.Name, "--on", "node=="+h.Name, "--network", "red", "alpine", "sleep", "1000")
	}
	netns := filepath.Join(c.Dir, "run", "netns", a.Must("inspect", "-f", "{{.Id}}", "on-c")[:12])
	want := map[string]string{}
	for _, h := range f.Hosts {
		want["on-"+h.Name] = addressOf(a, "on-"+h.Name, "red")
		f.Eventually(10*time.Second, "on-c knows on-"+h.Name, func() bool { return addresses(a, "on-c", "on-"+h.Name) == want["on-"+h.Name] })
	}
	for _, h := range f.Hosts {
		for _, what := range []string{"up", "controller", "agent", "drover-resolver"} {
			h.Kill(what, "--data-dir")
			h.Kill(what)
		}
	}
	c.Start()
	for name, addr := range want {
		f.Eventually(30*time.Second, "on-c knows "+name+" again", func() bool {
			out, err := exec.Command("nsenter", "--net="+netns, "busybox", "nslookup", name+".", "127.0.0.11").Output()
			return err == nil && strings.Contains(string(out), addr+"\n")
		})
		if out, err := exec.Command("nsenter", "--net="+netns, "busybox", "ping", "-c1", "-W2", addr).CombinedOutput(); err != nil {
			t.Errorf("%s is not reached: %s", name, out)
		}
	}
}
