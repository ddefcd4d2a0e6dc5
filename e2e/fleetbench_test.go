package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// Rounds of slow benchmarks.
const (
	leaderKills = 20
	swarmKills  = 3
	starts      = 60
	idleFor     = 10 * time.Second
)

// BenchmarkFleet prints what three controllers cost and achieve, all in one run.
func BenchmarkFleet(b *testing.B) {
	f := fleet.New(b, "a", "b", "c", "s")
	a, lone := f.Hosts[0], f.Hosts[3]
	a.Up()
	for _, h := range f.Hosts[1:3] {
		h.Join(a, a.Must("token", "create", "-q", "--role", "controller"))
	}
	f.Voters(3)
	lone.Up()
	lone.Must("pull", "busybox")
	a.Must("pull", "--each", "busybox")
	follower := f.Hosts[1]
	if f.Leader() == follower {
		follower = f.Hosts[2]
	}
	sides := []*side{
		{name: "drover run --rm busybox true, 3 controllers", run: func() fleet.Result { return f.Leader().Drover("run", "--rm", "busybox", "true") }},
		{name: "the same through a follower", run: func() fleet.Result { return follower.Drover("run", "--rm", "busybox", "true") }},
		{name: "drover, one host", run: func() fleet.Result { return lone.Drover("run", "--rm", "busybox", "true") }},
	}
	leader := f.Leader()
	sides[0].run = func() fleet.Result { return leader.Drover("run", "--rm", "busybox", "true") }
	if s := ctr(b, f, lone); s != nil {
		sides = append(sides, s)
	}
	if s := docker(b, f, lone); s != nil {
		sides = append(sides, s)
	}
	compare(b, sides)
	idle(f)
	scale(b, f)
	failover(b, f)
	swarm(b, f)
}

// idle prints what an idle host costs.
func idle(f *fleet.Fleet) {
	time.Sleep(2 * time.Second)
	for _, h := range f.Hosts[:3] {
		pids := map[int]bool{}
		for _, who := range []string{"controller", "agent", "drover-containerd", " up "} {
			for _, pid := range h.Pids(who) {
				pids[pid] = true
			}
		}
		var before, after, pss int
		for pid := range pids {
			before += cpu(pid)
			pss += memory(pid, "Pss:")
		}
		time.Sleep(idleFor / 3)
		for pid := range pids {
			after += cpu(pid)
		}
		fmt.Printf("idle host %s of three: %.1f %% of a core, %.1f MB resident\n", h.Name, float64(after-before)/(idleFor/3).Seconds(), float64(pss)/1e6)
	}
}

// cpu returns a process's CPU time so far, in hundredths of a second.
func cpu(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	w := strings.Fields(rest)
	user, _ := strconv.Atoi(w[11])
	system, _ := strconv.Atoi(w[12])
	return user + system
}

// scale starts containers on all hosts at once.
func scale(b *testing.B, f *fleet.Fleet) {
	begin := time.Now()
	var all sync.WaitGroup
	for i := range starts {
		all.Go(func() {
			if r := f.Hosts[i%3].Drover("run", "-d", "busybox", "sleep", "100000"); r.Code != 0 {
				b.Errorf("start %d: %v", i, r)
			}
		})
	}
	all.Wait()
	took := time.Since(begin)
	running := len(strings.Fields(f.Hosts[0].Must("ps", "-q")))
	fmt.Printf("%d starts over three hosts, until %d are running: %v\n", starts, running, took.Round(10*time.Millisecond))
	f.Hosts[0].Must(append([]string{"rm", "-f"}, strings.Fields(f.Hosts[0].Must("ps", "-aq"))...)...)
}

// failover kills the leader repeatedly, and times the next write.
func failover(b *testing.B, f *fleet.Fleet) {
	var took []time.Duration
	for i := range leaderKills {
		l := f.Leader()
		other := f.Hosts[0]
		if other == l {
			other = f.Hosts[1]
		}
		l.Kill("controller", "--data-dir")
		begin := time.Now()
		if r := other.Drover("node", "label", "a", fmt.Sprintf("round=%d", i)); r.Code != 0 {
			b.Fatalf("a write after the leader's death: %v", r)
		}
		took = append(took, time.Since(begin))
		// The next round starts once all three live again: a majority must remain.
		f.Eventually(30*time.Second, "the killed controller is back", func() bool {
			return l.In(nil, "curl", "-sf", "-m1", "--unix-socket", l.Socket(), "http://x/_ping").Out == "OK"
		})
		time.Sleep(500 * time.Millisecond)
	}
	slices.Sort(took)
	fmt.Printf("leader killed, until the next write is answered: median %v, worst of %d %v (goal 1 s)\n", took[len(took)/2].Round(time.Millisecond), leaderKills, took[len(took)-1].Round(time.Millisecond))
}

// swarm does the same with Docker Swarm and three managers, if it is installed.
func swarm(b *testing.B, f *fleet.Fleet) {
	if _, err := exec.LookPath("dockerd"); err != nil {
		fmt.Println("no docker engine on this machine: Swarm is not compared")
		return
	}
	engines := map[string]*exec.Cmd{}
	sock := func(h *fleet.Host) string { return "unix://" + filepath.Join(h.Dir, "swarm", "s") }
	start := func(h *fleet.Host) {
		dir := filepath.Join(h.Dir, "swarm")
		_ = os.MkdirAll(dir, 0o755)
		_ = os.Remove(filepath.Join(dir, "pid"))
		c := exec.Command("nsenter", "--net=/var/run/netns/"+h.Netns, "dockerd", "-H", sock(h), "--data-root", dir+"/data", "--exec-root", dir+"/exec", "--pidfile", dir+"/pid", "--insecure-registry", f.Registry, "--bip", "10.212.0.1/24")
		if err := c.Start(); err != nil {
			b.Fatal(err)
		}
		engines[h.Name] = c
		f.Eventually(60*time.Second, "dockerd answers", func() bool { return h.In(nil, "docker", "-H", sock(h), "version").Code == 0 })
	}
	b.Cleanup(func() {
		for _, c := range engines {
			_ = c.Process.Signal(os.Interrupt)
			_ = c.Wait()
		}
	})
	hosts := f.Hosts[:3]
	for _, h := range hosts {
		start(h)
	}
	on := func(h *fleet.Host, stdin string, args ...string) fleet.Result {
		return h.In([]byte(stdin), append([]string{"docker", "-H", sock(h)}, args...)...)
	}
	if r := on(hosts[0], "", "swarm", "init", "--advertise-addr", hosts[0].Addr); r.Code != 0 {
		fmt.Println("Swarm does not come up here:", strings.TrimSpace(r.Err))
		return
	}
	token := strings.TrimSpace(on(hosts[0], "", "swarm", "join-token", "-q", "manager").Out)
	for _, h := range hosts[1:] {
		if r := on(h, "", "swarm", "join", "--token", token, "--advertise-addr", h.Addr, hosts[0].Addr+":2377"); r.Code != 0 {
			fmt.Println("Swarm does not come up here:", strings.TrimSpace(r.Err))
			return
		}
	}
	ref := f.Registry + "/library/busybox:latest"
	for _, h := range hosts {
		_ = on(h, "", "pull", ref)
	}
	begin := time.Now()
	if r := on(hosts[0], "", "service", "create", "-d", "--name", "many", "--replicas", strconv.Itoa(starts), ref, "sleep", "100000"); r.Code == 0 {
		want := fmt.Sprintf("%d/%d", starts, starts)
		for strings.TrimSpace(on(hosts[0], "", "service", "ls", "--format", "{{.Replicas}}").Out) != want && time.Since(begin) < time.Minute {
			time.Sleep(50 * time.Millisecond)
		}
		fmt.Printf("Swarm: %d replicas over three hosts, running after %v\n", starts, time.Since(begin).Round(10*time.Millisecond))
		_ = on(hosts[0], "", "service", "rm", "many")
		time.Sleep(3 * time.Second)
	}
	var took []time.Duration
	for i := range swarmKills {
		var leader, other *fleet.Host
		f.Eventually(60*time.Second, "Swarm has a leader", func() bool {
			for _, h := range hosts {
				if strings.TrimSpace(on(h, "", "node", "inspect", "self", "--format", "{{.ManagerStatus.Leader}}").Out) == "true" {
					leader = h
				} else {
					other = h
				}
			}
			return leader != nil && other != nil
		})
		_ = engines[leader.Name].Process.Kill()
		begin := time.Now()
		for on(other, "x", "config", "create", fmt.Sprintf("round%d", i), "-").Code != 0 && time.Since(begin) < time.Minute {
			time.Sleep(50 * time.Millisecond)
		}
		took = append(took, time.Since(begin))
		_ = engines[leader.Name].Wait()
		start(leader)
		time.Sleep(5 * time.Second)
	}
	slices.Sort(took)
	fmt.Printf("Swarm: leader killed, until the next write is answered: median %v, worst of %d %v\n", took[len(took)/2].Round(time.Millisecond), swarmKills, took[len(took)-1].Round(time.Millisecond))
}
