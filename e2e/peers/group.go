// Package peers runs what users would otherwise pick, Docker Engine, Swarm and
// containerd's ctr, on the hosts of a fleet, and compares what they cost with what drover
// costs. All that it starts is gone afterwards, also after a failure.
package peers

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Group is a control group with all processes of one contender: its daemons and commands,
// and its containers, where it lets these be put below a given parent. It accounts for
// processes that are long gone, too, and for nobody else's.
type Group struct {
	name string   // below the root of each hierarchy
	home string   // directory of the group that this process is in
	more []string // other groups that count, below the hierarchy that accounts
}

const cgroupRoot = "/sys/fs/cgroup"

// NewGroup creates a group. It is removed after the test, along with the processes that are
// left in it.
func NewGroup(t testing.TB, name string) *Group {
	t.Helper()
	g := &Group{name: fmt.Sprintf("drover-bench-%d/%s", os.Getpid(), name), home: home()}
	t.Cleanup(func() {
		if left := g.remove(); left > 0 {
			t.Errorf("%d processes of %s outlived it", left, name)
		}
	})
	for _, d := range []string{g.own(), g.path(g.Containers())} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// unified reports whether the machine has cgroup v2 only.
func unified() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	return err == nil
}

// accounting is the hierarchy that accounts for CPU time.
func accounting() string {
	if unified() {
		return cgroupRoot
	}
	return filepath.Join(cgroupRoot, "cpuacct")
}

func (g *Group) path(name string) string { return filepath.Join(accounting(), name) }
func (g *Group) own() string             { return g.path(g.name + "/own") }

// Containers is the control group to be the parent of the contender's containers.
func (g *Group) Containers() string { return "/" + g.name + "/containers" }

// Include adds what is below another group, such as drover's containers of a node.
func (g *Group) Include(t testing.TB, name string) {
	t.Helper()
	pin := g.path(name + "/counted") // as long as it exists, so does its parent, with its count
	if err := os.MkdirAll(pin, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(pin) })
	g.more = append(g.more, name)
}

// Start starts a command in the group.
func (g *Group) Start(c *exec.Cmd) error {
	if unified() {
		d, err := os.Open(g.own())
		if err != nil {
			return fmt.Errorf("starting a peer: %w", err)
		}
		defer func() { _ = d.Close() }()
		c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(d.Fd())}
		return c.Start()
	}
	done := make(chan error, 1)
	go func() {
		// A child is in the group of the thread that forks it.
		runtime.LockOSThread()
		err := join(g.own())
		if err == nil {
			err = c.Start()
			err = errors.Join(err, join(g.home))
		}
		if err == nil {
			runtime.UnlockOSThread() // otherwise the thread ends with this function
		}
		done <- err
	}()
	return <-done
}

// join moves the calling thread to a group.
func join(dir string) error { return os.WriteFile(filepath.Join(dir, "tasks"), []byte("0"), 0) }

// home returns the directory of the group that this process is in.
func home() string {
	b, _ := os.ReadFile("/proc/self/cgroup")
	for l := range strings.Lines(string(b)) {
		if w := strings.SplitN(strings.TrimSpace(l), ":", 3); len(w) == 3 && w[1] == "cpuacct" {
			return filepath.Join(accounting(), w[2])
		}
	}
	return accounting()
}

// patience is how long a command may take. Docker 20.10 removes a hundred containers at once
// in half a minute, or never.
const patience = 2 * time.Minute

// Run runs a command in the group, and returns its standard output. One that takes more than
// two minutes is killed.
func (g *Group) Run(c *exec.Cmd) (string, error) { return g.run(c, patience) }

func (g *Group) run(c *exec.Cmd, limit time.Duration) (string, error) {
	var out, errs strings.Builder
	c.Stdout, c.Stderr = &out, &errs
	c.WaitDelay = time.Second // for what holds its streams
	err := g.Start(c)
	if err == nil {
		late := time.AfterFunc(limit, func() { _ = c.Process.Kill() })
		err = c.Wait()
		if !late.Stop() {
			err = fmt.Errorf("killed after %v: %w", limit, err)
		}
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(c.Args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Adopt moves running processes to the group.
func (g *Group) Adopt(pids []int) {
	for _, pid := range pids {
		_ = os.WriteFile(filepath.Join(g.own(), "cgroup.procs"), []byte(strconv.Itoa(pid)), 0) // unless it is gone
	}
}

// Pids returns the contender's processes, without those of containers.
func (g *Group) Pids() []int { return procs(g.own()) }

func procs(dir string) (pids []int) {
	b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for w := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(w); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// CPU returns the CPU time that the group's processes have taken so far.
func (g *Group) CPU() time.Duration {
	total := usage(g.path(g.name))
	for _, m := range g.more {
		total += usage(g.path(m))
	}
	return total
}

func usage(dir string) time.Duration {
	if b, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage")); err == nil {
		ns, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return time.Duration(ns)
	}
	b, _ := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "usage_usec "); ok {
			us, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Duration(us) * time.Microsecond
		}
	}
	return 0
}

// PSS returns the memory of the contender's processes in bytes, each shared page in part.
func (g *Group) PSS() (total int) {
	for _, pid := range g.Pids() {
		total += Memory(pid, "Pss:")
	}
	return total
}

// Memory returns a process's Rss or Pss in bytes, 0 if it is gone.
func Memory(pid int, what string) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, what); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n << 10
		}
	}
	return 0
}

// remove removes the group from all hierarchies, and returns how many processes it had to
// kill.
func (g *Group) remove() (killed int) {
	tops := []string{filepath.Join(cgroupRoot, g.name)}
	if !unified() {
		tops, _ = filepath.Glob(filepath.Join(cgroupRoot, "*", g.name))
	}
	for _, top := range tops {
		var dirs []string
		_ = filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			left := 0
			for _, d := range dirs {
				for _, pid := range procs(d) {
					left++
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			killed = max(killed, left)
			if left == 0 || time.Now().After(end) {
				break
			}
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = syscall.Rmdir(dirs[i])
		}
		if err := syscall.Rmdir(filepath.Dir(top)); err != nil && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EBUSY) {
			killed++ // it is there, and nothing is in it
		}
	}
	return killed
}
