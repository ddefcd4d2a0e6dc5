package engine_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/life"
)

// spares returns the pids of the shims that wait, by their bundles.
func (w *world) spares(t *testing.T) (pids []int) {
	t.Helper()
	bundles, err := filepath.Glob(filepath.Join(w.run, "shims", "spare-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bundles {
		pids = append(pids, shims(t, filepath.Base(b))...)
	}
	return pids
}

// spared blocks until n shims wait.
func (w *world) spared(t *testing.T, n int) []int {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		pids := w.spares(t)
		if len(pids) == n {
			return pids
		}
		if time.Now().After(end) {
			t.Fatalf("the shims that wait are %v, not %d", pids, n)
		}
	}
}

// whole starts a container, and checks that it runs once and leaves nothing.
func (w *world) whole(t *testing.T, e *node) (shim int) {
	t.Helper()
	id := w.prepared(t, e, waits)
	if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	shim = shimOf(t, id)
	ends(t, e, id)
	if err := e.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left := w.traces(t, id); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
	return shim
}

// A shim that waits becomes that of the next container, and is as good as another, also
// after its agent was replaced.
func TestAContainerTakesTheShimThatWaits(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	if got := w.spares(t); len(got) > 0 {
		t.Errorf("before any start there are %v", got)
	}
	w.whole(t, e)
	spare := w.spared(t, 1)[0]
	if got := w.whole(t, e); got != spare {
		t.Errorf("its shim is %d, not %d, which waited", got, spare)
	}
	if next := w.spared(t, 1)[0]; next == spare {
		t.Error("it waits again")
	}

	id := w.prepared(t, e, waits)
	if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	left := w.spared(t, 1)[0]
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if alive(left) {
		t.Error("a shim that waits outlives its agent")
	}
	e = w.open(t)
	ends(t, e, id)
	if err := e.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left := w.traces(t, id); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
}

// A shim dies at any time while it waits: containers start.
func TestAShimThatWaitsDies(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	w.whole(t, e)
	for range 3 {
		if err := syscall.Kill(w.spared(t, 1)[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		w.whole(t, e)
	}
}

func TestManyStartsAtOnceShareWhatWaits(t *testing.T) {
	w := newWorld(t)
	w.o.Spares = 2
	e := w.open(t)
	w.pulled(t, e)
	w.whole(t, e)
	w.spared(t, 2)
	var ids []string
	for range 20 {
		ids = append(ids, w.prepared(t, e, waits))
	}
	var all errgroup.Group
	for _, id := range ids {
		all.Go(func() error {
			_, err := e.Start(t.Context(), id, life.First(1), nil)
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, id := range ids {
		seen[shimOf(t, id)] = true
		ends(t, e, id)
	}
	if len(seen) != len(ids) {
		t.Errorf("%d containers have %d shims", len(ids), len(seen))
	}
	w.spared(t, 2)
	for _, id := range ids {
		if err := e.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := exec.Command("pgrep", "-f", w.dir+"/drover-shim").Output(); len(left) > 0 {
		t.Errorf("shims are left: %s", left)
	}
	if left, _ := os.ReadDir(filepath.Join(w.run, "shims")); len(left) > 0 {
		t.Errorf("bundles are left: %v", left)
	}
}

// The shim itself ends with its agent, however that dies, while it has no container.
func TestAShimWithoutAContainerEndsWithItsLifeline(t *testing.T) {
	w := newWorld(t)
	bundle := t.TempDir()
	if err := shimapi.WriteChoice(bundle, shimapi.Choice{}); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(w.run, "x.sh"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	line, held, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.Command(w.o.ShimPath, "-namespace", "drover", "-id", "spare-x", "-address", "")
	cmd.Dir, cmd.Stderr = bundle, &said
	cmd.Env = append(os.Environ(), shimapi.LifelineEnv+"="+strconv.Itoa(4))
	cmd.ExtraFiles = []*os.File{socket, line}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = socket.Close(), line.Close()
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	select {
	case err := <-over:
		t.Fatalf("it ended while its agent lives: %v: %s", err, said.String())
	case <-time.After(200 * time.Millisecond):
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-over:
		if err != nil {
			t.Errorf("it ended with %v: %s", err, said.String())
		}
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		t.Error("it goes on")
		<-over
	}
	_ = l.Close()
}
