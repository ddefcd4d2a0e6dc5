package peers

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drover/drover/pkg/testenv"
)

// A group accounts for what its processes and their children took, also once they are
// gone, and for nothing of this process; and what is left in it ends with it.
func TestAGroup(t *testing.T) {
	testenv.Root(t)
	g := NewGroup(t, "test")
	const busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
	out, err := g.Run(exec.Command("busybox", "sh", "-c", "busybox sh -c '"+busy+"'; cat /proc/self/cgroup"))
	if err != nil || !strings.Contains(out, g.name+"/own") {
		t.Fatalf("a child of a command is in %s (%v)", out, err)
	}
	spent := g.CPU()
	if spent < 10*time.Millisecond {
		t.Errorf("a busy child took %v", spent)
	}
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); { // on our own account
	}
	if more := g.CPU() - spent; more > 5*time.Millisecond {
		t.Errorf("this process is accounted for: %v more", more)
	}
	if pids := g.Pids(); len(pids) > 0 {
		t.Errorf("after all commands, the group has %v", pids)
	}
	if _, err := g.Run(exec.Command("busybox", "sh", "-c", "echo why >&2; exit 3")); err == nil || !strings.Contains(err.Error(), "exit status 3: why") {
		t.Errorf("a command that fails: %v", err)
	}
	if _, err := g.run(exec.Command("busybox", "sleep", "100"), time.Millisecond); err == nil || !strings.Contains(err.Error(), "sleep 100: killed after 1ms") {
		t.Errorf("a command that does not end: %v", err)
	}
	stays := exec.Command("busybox", "sleep", "100")
	if err := g.Start(stays); err != nil {
		t.Fatal(err)
	}
	if pids := g.Pids(); len(pids) != 1 || pids[0] != stays.Process.Pid {
		t.Errorf("the group has %v", pids)
	}
	if g.PSS() == 0 {
		t.Error("it takes no memory")
	}
	done := make(chan error, 1)
	go func() { done <- stays.Wait() }()
	if killed := g.remove(); killed != 1 {
		t.Errorf("%d processes were left", killed)
	}
	if err := <-done; err == nil || stays.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("what was left ended with %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", g.name)); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

// Other groups count, also once somebody removed what was in them.
func TestAGroupIncludesOthers(t *testing.T) {
	testenv.Root(t)
	g, other := NewGroup(t, "test"), NewGroup(t, "other")
	g.Include(t, other.name)
	if _, err := other.Run(exec.Command("busybox", "sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")); err != nil {
		t.Fatal(err)
	}
	spent := g.CPU()
	if spent < 10*time.Millisecond {
		t.Errorf("what is included took %v", spent)
	}
	for _, d := range []string{other.own(), other.path(other.Containers()), other.path(other.name)} {
		_ = syscall.Rmdir(d)
	}
	if g.CPU() < spent {
		t.Errorf("%v of %v are forgotten", spent-g.CPU(), spent)
	}
}

func TestMemoryOfNobody(t *testing.T) {
	if n := Memory(1<<30, "Pss:"); n != 0 {
		t.Errorf("a process that is not there takes %d bytes", n)
	}
	if n := Memory(os.Getpid(), "Rss:"); n < 1<<20 {
		t.Errorf("this one takes %d bytes", n)
	}
}
