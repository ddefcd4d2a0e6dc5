package containerd

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

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

func TestTheDaemonOutlivesItsAgentAndIsReplacedWhenItDies(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root: it runs containerd")
	}
	dir := t.TempDir()
	run, err := os.MkdirTemp("/run", "dvct") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(run)
	bin := filepath.Join(dir, "drover-containerd")
	if out, err := exec.Command("go", "build", "-o", bin, "./drover-containerd").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	o := Options{Binary: bin, Root: dir + "/root", State: run + "/st", Socket: run + "/s", LogTo: dir + "/log", Log: slog.New(slog.DiscardHandler)}
	ready := make(chan struct{}, 8)
	agent := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { _ = Supervise(ctx, o, func() { ready <- struct{}{} }); close(done) }()
		return func() { cancel(); <-done }
	}
	stop := agent()
	next(t, ready)
	first := pidOf(t, o)
	defer func() { _ = syscall.Kill(pidOf(t, o), syscall.SIGKILL) }()
	stop()
	stop = agent() // a new agent adopts it
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
