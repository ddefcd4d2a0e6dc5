package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// rounds is how often each side runs. Sides take turns, so that noise on the machine
// affects all of them.
const rounds = 20

// side is one contender.
type side struct {
	name string
	run  func() fleet.Result
	took []time.Duration
}

func (s *side) median() time.Duration {
	slices.Sort(s.took)
	return s.took[len(s.took)/2]
}

// BenchmarkOneHost prints ratios of medians, all sides in one run on one host.
func BenchmarkOneHost(b *testing.B) {
	f := fleet.New(b, "a")
	h := f.Hosts[0]
	h.Up()
	h.Must("pull", "busybox")
	sides := []*side{{name: "drover run --rm busybox true", run: func() fleet.Result { return h.Drover("run", "--rm", "busybox", "true") }}}
	sides = append(sides, &side{name: "the same by the host's runc", run: func() fleet.Result { return h.Drover("run", "--rm", "--runtime", "runc", "busybox", "true") }})
	if s := ctr(b, f, h); s != nil {
		sides = append(sides, s)
	}
	if s := docker(b, f, h); s != nil {
		sides = append(sides, s)
	}
	compare(b, sides)

	h.Must("run", "-d", "--name", "idle", "busybox", "sleep", "100000")
	h.Must("run", "-d", "--name", "other", "--runtime", "runc", "busybox", "sleep", "100000")
	compare(b, []*side{
		{name: "drover exec idle true", run: func() fleet.Result { return h.Drover("exec", "idle", "true") }},
		{name: "the same by the host's runc", run: func() fleet.Result { return h.Drover("exec", "other", "true") }},
	})
	h.Must("rm", "-f", "idle", "other")
	st, err := os.Stat(filepath.Join(f.Bin, "drover"))
	if err != nil {
		b.Fatal(err)
	}
	fmt.Printf("size of the binary: %.1f MB (target 60)\n", float64(st.Size())/1e6)
	var rss, pss int
	seen := map[int]bool{}
	for _, who := range []string{"controller", "agent", "drover-containerd", " up "} {
		for _, pid := range h.Pids(who) {
			if !seen[pid] {
				seen[pid] = true
				rss += memory(pid, "Rss:")
				pss += memory(pid, "Pss:")
			}
		}
	}
	fmt.Printf("resident memory of an idle host, %d processes: %.1f MB, of which each shared page once: %.1f MB (target 80)\n", len(seen), float64(rss)/1e6, float64(pss)/1e6)
}

func compare(b *testing.B, sides []*side) {
	for i := range rounds + 1 {
		for _, s := range sides {
			start := time.Now()
			if r := s.run(); r.Code != 0 {
				b.Fatalf("%s: %v", s.name, r)
			}
			if i > 0 { // the first round is a warm-up
				s.took = append(s.took, time.Since(start))
			}
		}
	}
	ours := sides[0].median()
	fmt.Printf("%-40s %v (median of %d)\n", sides[0].name, ours.Round(100*time.Microsecond), rounds)
	for _, s := range sides[1:] {
		fmt.Printf("%-40s %v: drover takes %.2fx of it\n", s.name, s.median().Round(100*time.Microsecond), float64(ours)/float64(s.median()))
	}
}

// ctr starts the distribution's own containerd on the host, nil if it isn't installed.
func ctr(b *testing.B, f *fleet.Fleet, h *fleet.Host) *side {
	if _, err := exec.LookPath("ctr"); err != nil {
		fmt.Println("no ctr on this machine (package containerd): not compared")
		return nil
	}
	dir := filepath.Join(h.Dir, "ctr")
	conf := filepath.Join(dir, "config.toml")
	sock := filepath.Join(dir, "s")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	toml := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n address = %q\n", dir+"/root", dir+"/state", sock)
	if err := os.WriteFile(conf, []byte(toml), 0o644); err != nil {
		b.Fatal(err)
	}
	c := exec.Command("nsenter", "--net=/var/run/netns/"+h.Netns, "containerd", "--config", conf)
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	f.Eventually(20*time.Second, "containerd answers", func() bool { return h.In(nil, "ctr", "-a", sock, "version").Code == 0 })
	ref := f.Registry + "/library/busybox:latest"
	if r := h.In(nil, "ctr", "-a", sock, "images", "pull", "--plain-http", ref); r.Code != 0 {
		b.Fatalf("ctr images pull: %v", r)
	}
	n := 0
	return &side{name: "ctr run --rm busybox true (no network)", run: func() fleet.Result {
		n++
		return h.In(nil, "ctr", "-a", sock, "run", "--rm", ref, "bench"+strconv.Itoa(n), "true")
	}}
}

// docker starts a docker engine on the host, nil if it isn't installed.
func docker(b *testing.B, f *fleet.Fleet, h *fleet.Host) *side {
	if _, err := exec.LookPath("dockerd"); err != nil {
		fmt.Println("no docker engine on this machine (package docker.io): not compared")
		return nil
	}
	dir := filepath.Join(h.Dir, "docker")
	sock := "unix://" + dir + "/s"
	c := exec.Command("nsenter", "--net=/var/run/netns/"+h.Netns, "dockerd", "-H", sock, "--data-root", dir+"/data", "--exec-root", dir+"/exec",
		"--pidfile", dir+"/pid", "--insecure-registry", f.Registry, "--bip", "10.211.0.1/24")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Process.Signal(os.Interrupt); _ = c.Wait() })
	f.Eventually(30*time.Second, "dockerd answers", func() bool { return h.In(nil, "docker", "-H", sock, "version").Code == 0 })
	ref := f.Registry + "/library/busybox:latest"
	if r := h.In(nil, "docker", "-H", sock, "pull", ref); r.Code != 0 {
		b.Fatalf("docker pull: %v", r)
	}
	return &side{name: "docker run --rm busybox true", run: func() fleet.Result {
		return h.In(nil, "docker", "-H", sock, "run", "--rm", ref, "true")
	}}
}

// memory returns a process's Rss or Pss in bytes, 0 if it is gone.
func memory(pid int, what string) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, what); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n << 10
		}
	}
	return 0
}
