package fleet

import (
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
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

// Cgroups returns the control groups of the host's containers, in all hierarchies. The
// machine has others, of other hosts and other tests.
func (h *Host) Cgroups() []string {
	id, err := identity.Load(h.Dir + "/data")
	if err != nil {
		return []string{"unknown: " + err.Error()}
	}
	var all []string
	for _, p := range []string{"/sys/fs/cgroup/*/drover/", "/sys/fs/cgroup/drover/"} {
		m, _ := filepath.Glob(p + id.Node + "/*")
		for _, d := range m {
			if st, err := os.Stat(d); err == nil && st.IsDir() {
				all = append(all, d)
			}
		}
	}
	return all
}

func (f *Fleet) destroy() {
	if f.t.Failed() {
		for _, h := range f.Hosts {
			f.t.Logf("logs of %s:\n%s", h.Name, h.Logs())
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
	for _, h := range append(f.Hosts, &Host{Name: "reg", Netns: f.prefix + "-reg"}) {
		out, _ := exec.Command("ip", "netns", "pids", h.Netns).Output()
		for _, w := range strings.Fields(string(out)) {
			if pid, err := strconv.Atoi(w); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if h.Name != "" {
			_ = exec.Command("ip", "link", "del", f.prefix+h.Name).Run()
		}
		_ = exec.Command("ip", "netns", "del", h.Netns).Run()
	}
	_ = exec.Command("ip", "link", "del", f.prefix).Run()
	for _, m := range f.Mounts() {
		_ = syscall.Unmount(m, syscall.MNT_DETACH)
	}
	for _, c := range []string{"/sys/fs/cgroup/*/drover", "/sys/fs/cgroup/drover"} {
		tops, _ := filepath.Glob(c)
		for _, top := range tops {
			_ = exec.Command("find", top, "-depth", "-type", "d", "-empty", "-o", "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").Run()
		}
	}
	_ = os.RemoveAll(f.Dir)
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
