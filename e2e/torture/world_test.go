package torture

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
	"github.com/drover/drover/pkg/failpoint"
)

// world is a fleet whose processes are restarted as soon as they end.
type world struct {
	t     *testing.T
	f     *fleet.Fleet
	hosts []*host
	round int
}

// host is a host of the fleet with a container that nothing may happen to.
type host struct {
	*fleet.Host
	points    string       // directory of its failpoints
	bystander string       // id
	removed   []string     // ids of auto-removed containers, whose output may still be kept
	started   atomic.Int64 // Unix seconds: when its agent was started last, which keeps output anew
}

func newWorld(t *testing.T, bin string, hosts int) *world {
	f := fleet.Of(t, bin, []string{"a", "b", "c"}[:hosts]...)
	w := &world{t: t, f: f}
	ctx, end := context.WithCancel(context.WithoutCancel(t.Context()))
	var kept sync.WaitGroup
	t.Cleanup(func() {
		for _, h := range w.hosts {
			_ = h.Drover("rm", "-f", h.bystander)
		}
		end()
		kept.Wait()
		for _, h := range w.hosts {
			_ = os.Remove(h.Socket()) // nobody answers there
		}
	})
	if hosts == 1 {
		f.Hosts[0].Up()
	} else {
		f.Quorum()
	}
	f.Hosts[0].Must("pull", "alpine")
	for _, fh := range f.Hosts {
		h := &host{Host: fh, points: filepath.Join(fh.Dir, "failpoints")}
		for _, d := range []string{h.points, h.marks()} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		w.hosts = append(w.hosts, h)
		// drover up waits longer and longer before it restarts a process.
		for _, pid := range h.Pids("drover up") {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
		f.Eventually(15*time.Second, "drover up has ended", func() bool { return len(h.Pids("drover ")) == 0 })
		for _, verb := range []string{controller, agent} {
			kept.Go(func() { h.keep(ctx, verb) })
		}
	}
	if hosts > 1 {
		f.Voters(3)
	}
	for _, h := range w.hosts {
		f.Eventually(20*time.Second, h.Name+" runs containers", func() bool {
			r := h.Drover("run", "-d", "-v", h.marks()+":/m", "alpine", "/bin/sh", "-c", script(h.idle()))
			h.bystander = strings.TrimSpace(r.Out)
			return r.Code == 0
		})
	}
	return w
}

func (h *host) marks() string { return filepath.Join(h.Dir, "marks") }

// idle is the name of what its bystander does, on this machine.
func (h *host) idle() string { return "bystander-" + h.Netns }

// keep runs one of drover's processes, again and again.
func (h *host) keep(ctx context.Context, verb string) {
	for ctx.Err() == nil {
		c := h.Command(verb)
		c.Env = append(os.Environ(), failpoint.Env+"=@"+h.points)
		log, err := os.OpenFile(filepath.Join(h.Dir, verb+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			c.Stdout, c.Stderr = log, log
			if verb == agent {
				h.started.Store(time.Now().Unix())
			}
			err = run(ctx, c)
			_ = log.Close()
		}
		select { // one that can't start at all
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond):
		}
		_ = err
	}
}

func run(ctx context.Context, c *exec.Cmd) error {
	if err := c.Start(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Process.Signal(syscall.SIGKILL) })
	defer stop()
	return c.Wait()
}

// script is the program of a container with a name: it leaves a line for each time that it
// begins, and ends at once when it is told to.
func script(name string) string {
	return "echo begun >>/m/" + name + "; trap 'exit 0' TERM; sleep 1000 & wait"
}

// begun returns how often a container's process has begun.
func (h *host) begun(name string) int {
	b, _ := os.ReadFile(filepath.Join(h.marks(), name))
	return strings.Count(string(b), "\n")
}

// running returns the pids of the first processes of containers with a name.
func (h *host) running(name string) (out []int) {
	for _, pid := range h.pidsOf("/m/" + name + ";") {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 2 && f[0] == "NSpid:" && f[len(f)-1] == "1" {
				out = append(out, pid)
			}
		}
	}
	return out
}

// pidsOf returns the processes in this machine whose command line has a word.
func (h *host) pidsOf(word string) (out []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); err == nil && strings.Contains(string(b), word) {
			out = append(out, pid)
		}
	}
	return out
}

// seen is a container as the API shows it.
type seen struct {
	ID    string `json:"Id"`
	Names []string
	State string
}

// list asks the host's API for all containers.
func (h *host) list(ctx context.Context) ([]seen, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.Socket())
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://drover/containers/json?all=1", nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ps: %s", resp.Status)
	}
	if m := resp.Header.Get("Drover-Missing"); m != "" {
		return nil, fmt.Errorf("missing: %s", m)
	}
	var out []seen
	return out, json.NewDecoder(resp.Body).Decode(&out)
}

// arm arms a failpoint, for the round's number: passes are counted anew.
func (h *host) arm(p plan, round int) error {
	_ = os.Remove(filepath.Join(h.points, failpoint.Fired))
	tmp := filepath.Join(h.points, "new")
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "# %d\n%s=%s@%d", round, p.Point, p.Action, p.Pass), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(h.points, failpoint.Armed))
}

// disarm reports whether the failpoint was reached.
func (h *host) disarm() bool {
	_ = os.Remove(filepath.Join(h.points, failpoint.Armed))
	return h.fired()
}

func (h *host) fired() bool {
	_, err := os.Stat(filepath.Join(h.points, failpoint.Fired))
	return err == nil
}

// whileStopped kills the victim as soon as a process of the host has stopped at its
// failpoint, and lets that one continue.
func (h *host) whileStopped(ctx context.Context, victim string) {
	for ctx.Err() == nil {
		var stopped []int
		if h.fired() {
			stopped = slices.DeleteFunc(h.Pids("drover"), func(pid int) bool { return !isStopped(pid) })
		}
		if len(stopped) > 0 {
			for _, pid := range h.victims(victim) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			for _, pid := range stopped {
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
	// It may be reached after its operation.
	for _, pid := range h.Pids("drover") {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
}

// victims returns the processes that are to die: never the shim of the bystander.
func (h *host) victims(victim string) []int {
	if victim == shim {
		return slices.DeleteFunc(h.Pids(shim), h.isBystander)
	}
	if victim == everything {
		return slices.Concat(h.Pids(controller), h.Pids(agent), h.Pids(containerd))
	}
	return h.Pids(victim)
}

func isStopped(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(rest, "T")
}

func (h *host) isBystander(pid int) bool { return h.bystander != "" && bundleOf(pid) == h.bystander }

// bundleOf returns whose shim a process is: the name of its bundle.
func bundleOf(pid int) string {
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return ""
	}
	return filepath.Base(dir)
}
