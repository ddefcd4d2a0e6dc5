package fleet

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/drover/drover/pkg/identity"
)

// Kill sends SIGKILL to the host's processes whose command line contains all the words,
// and returns how many there were. Words are, e.g., "controller", "agent",
// "drover-containerd", "drover-shim", "up".
func (h *Host) Kill(words ...string) int {
	n := 0
	for _, pid := range h.Pids(words...) {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			n++
		}
	}
	return n
}

// Pids returns the host's processes whose command line contains all the words.
func (h *Host) Pids(words ...string) []int {
	return pids(append([]string{h.Dir + "/"}, words...))
}

func pids(words []string) []int {
	var found []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(b) == 0 {
			continue
		}
		line := strings.ReplaceAll(string(b), "\x00", " ")
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			found = append(found, pid)
		}
	}
	return found
}

// Mounts returns the mount points below the fleet's directory.
func (f *Fleet) Mounts() []string {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	var m []string
	for _, l := range strings.Split(string(b), "\n") {
		if w := strings.Fields(l); len(w) > 4 && strings.HasPrefix(w[4], f.Dir+"/") {
			m = append(m, w[4])
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(m)))
	return m
}

// cgroupTops are drover's control groups on this machine, one for each hierarchy. Hosts
// and other tests share them.
func cgroupTops() []string {
	var all []string
	for _, p := range []string{"/sys/fs/cgroup/*/drover", "/sys/fs/cgroup/drover"} {
		m, _ := filepath.Glob(p)
		all = append(all, m...)
	}
	return all
}

// Cgroups returns the control groups of the host's containers, in all hierarchies.
func (h *Host) Cgroups() []string {
	id, err := identity.Load(h.Dir + "/data")
	if err != nil {
		return []string{"unknown: " + err.Error()}
	}
	var all []string
	for _, top := range cgroupTops() {
		m, _ := filepath.Glob(filepath.Join(top, id.Node, "*"))
		for _, d := range m {
			if st, err := os.Stat(d); err == nil && st.IsDir() {
				all = append(all, d)
			}
		}
	}
	return all
}

// removeCgroups removes the host's control groups, whose processes are dead.
func (h *Host) removeCgroups() {
	id, err := identity.Load(h.Dir + "/data")
	if err != nil {
		return // drover never was up here
	}
	for _, top := range cgroupTops() {
		_ = exec.Command("find", filepath.Join(top, id.Node), "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").Run()
	}
}

func (f *Fleet) destroy() {
	if f.t.Failed() {
		for _, h := range f.Hosts {
			f.t.Logf("logs of %s:\n%s", h.Name, h.Logs())
		}
		if b, err := os.ReadFile(f.registryLog()); err == nil {
			f.t.Logf("log of the registry:\n%s", b[max(0, len(b)-4000):])
		}
	}
	for _, h := range f.Hosts {
		h.removeContainers()
	}
	f.StopRegistry()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		left := pids([]string{f.Dir + "/"})
		for _, p := range left {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
		if len(left) == 0 {
			break
		}
	}
	for _, h := range f.Hosts {
		h.killContainers()
	}
	var nets []*Host
	if f.prefix != "" {
		nets = slices.Concat(f.Hosts, []*Host{{Name: "reg", Netns: f.prefix + "-reg"}})
	}
	for _, h := range nets {
		out, _ := exec.Command("ip", "netns", "pids", h.Netns).Output()
		for _, w := range strings.Fields(string(out)) {
			if pid, err := strconv.Atoi(w); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		_ = exec.Command("ip", "link", "del", f.prefix+h.Name).Run()
		_ = exec.Command("ip", "netns", "del", h.Netns).Run()
	}
	if f.prefix != "" {
		_ = exec.Command("ip", "link", "del", f.prefix).Run()
	}
	for _, m := range f.Mounts() {
		_ = syscall.Unmount(m, syscall.MNT_DETACH)
	}
	for _, h := range f.Hosts {
		h.removeCgroups()
	}
	_ = os.RemoveAll(f.Dir)
	alive.done()
}

// Left returns what there is of the fleet on the machine: its processes, mounts, network
// namespaces, links and files. After the test, that should be nothing.
func (f *Fleet) Left() (left []string) {
	for _, pid := range pids([]string{f.Dir + "/"}) {
		left = append(left, "process "+strconv.Itoa(pid))
	}
	for _, m := range f.Mounts() {
		left = append(left, "mount "+m)
	}
	for _, what := range []string{"netns", "link"} {
		out, _ := exec.Command("ip", "-o", what).Output()
		for line := range strings.Lines(string(out)) {
			if slices.ContainsFunc(strings.Fields(line), f.named) {
				left = append(left, what+" "+strings.TrimSpace(line))
			}
		}
	}
	if _, err := os.Stat(f.Dir); err == nil {
		left = append(left, f.Dir)
	}
	return left
}

// named reports whether a word of ip's output is one of the fleet's names.
func (f *Fleet) named(word string) bool {
	name, _, _ := strings.Cut(strings.TrimSuffix(word, ":"), "@")
	if name == f.prefix {
		return true
	}
	for _, h := range append(f.Hosts, &Host{Name: "reg"}) {
		if name == f.prefix+"-"+h.Name || name == f.prefix+h.Name {
			return true
		}
	}
	return false
}

// alive counts the process's fleets: the last one removes the control groups that all
// share. Earlier, another fleet could be about to make its own in them.
var alive census

type census struct {
	mu sync.Mutex
	n  int // guarded by mu
}

func (c *census) add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

func (c *census) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n > 0 {
		return
	}
	for _, top := range cgroupTops() {
		_ = syscall.Rmdir(top) // unless another process's are in it
	}
}

// killContainers kills the processes of containers whose shims are dead.
func (h *Host) killContainers() {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		left := 0
		for _, g := range h.Cgroups() {
			b, _ := os.ReadFile(filepath.Join(g, "cgroup.procs"))
			for _, w := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(w); err == nil && pid > 0 {
					_ = syscall.Kill(pid, syscall.SIGKILL)
					left++
				}
			}
		}
		if left == 0 {
			return
		}
	}
}

// removeContainers removes them through the API; what is left is killed.
func (h *Host) removeContainers() {
	if _, err := os.Stat(h.Socket()); err != nil {
		return
	}
	ids := strings.Fields(h.Drover("ps", "-aq").Out)
	if len(ids) > 0 {
		_ = h.Drover(append([]string{"rm", "-f"}, ids...)...)
	}
}
