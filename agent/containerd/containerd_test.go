package containerd

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/drover/drover/pkg/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func pidOf(t *testing.T, o Options) int {
	t.Helper()
	b, err := os.ReadFile(o.pidFile())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func next(t *testing.T, ready chan struct{}) {
	t.Helper()
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
		t.Fatal("containerd is not ready")
	}
}

// daemon builds one, with folders of its own; what it leaves goes with the test.
func daemon(t *testing.T) Options {
	t.Helper()
	testenv.Root(t)
	dir := t.TempDir()
	run, err := os.MkdirTemp("/run", "dvct") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "drover-containerd")
	testenv.Build(t, bin, "./drover-containerd")
	o := Options{Binary: bin, Root: dir + "/root", State: run + "/st", Socket: run + "/s", LogTo: dir + "/log", Log: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() {
		_ = syscall.Kill(pidOf(t, o), syscall.SIGKILL)
		_ = os.RemoveAll(run)
	})
	return o
}

// agent supervises until it is stopped, and tells each time that the daemon is ready.
func (o Options) agent(t *testing.T, ready chan struct{}) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { _ = Supervise(ctx, o, func() { ready <- struct{}{} }); close(done) }()
	return func() { cancel(); <-done }
}

func TestTheDaemonOutlivesItsAgentAndIsReplacedWhenItDies(t *testing.T) {
	o := daemon(t)
	ready := make(chan struct{}, 8)
	stop := o.agent(t, ready)
	next(t, ready)
	first := pidOf(t, o)
	stop()
	stop = o.agent(t, ready) // a new agent adopts it
	next(t, ready)
	if p := pidOf(t, o); p != first {
		t.Fatalf("pid %d after the agent's restart, was %d", p, first)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	next(t, ready)
	if p := pidOf(t, o); p == first {
		t.Fatal("the dead daemon was not replaced")
	}
	stop()
}

// A daemon that hangs takes connections and answers none: while it is used, and
// when an agent finds it so.
func TestADaemonThatHangsIsKilledAndReplaced(t *testing.T) {
	o := daemon(t)
	o.SilentFor, o.StartWithin = 3*time.Second, 10*time.Second
	ready := make(chan struct{}, 8)
	stop := o.agent(t, ready)
	defer func() { stop() }()
	next(t, ready)
	hang := func() int {
		t.Helper()
		pid := pidOf(t, o)
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		return pid
	}
	replaced := func(pid int) {
		t.Helper()
		next(t, ready)
		if pidOf(t, o) == pid {
			t.Fatal("the daemon that hangs was not replaced")
		}
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(line) > 0 {
			t.Fatalf("the daemon that hangs was left behind: %q", line)
		}
	}
	replaced(hang())
	stop()
	pid := hang()
	stop = o.agent(t, ready)
	replaced(pid)
}
