package shim_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/fsnotify/fsnotify"

	"github.com/drover/drover/agent/containerd"
	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/life"
	"github.com/drover/drover/pkg/testenv"
)

// world is a real containerd with our shim, and a busybox to run.
type world struct {
	t              *testing.T
	dir, run, shim string
	c              *client.Client
	ctx            context.Context
	ready          chan struct{}
	binary         string // the OCI runtime, "" for the shim itself
}

func TestMain(m *testing.M) { testenv.Main(m) }

func newWorld(t *testing.T) *world {
	t.Helper()
	testenv.Root(t)
	w := &world{t: t, dir: t.TempDir(), ctx: namespaces.WithNamespace(t.Context(), "shimtest"), ready: make(chan struct{}, 8)}
	run, err := os.MkdirTemp("/run", "dvsh")
	if err != nil {
		t.Fatal(err)
	}
	w.run, w.shim = run, filepath.Join(w.dir, "drover-shim")
	daemon := filepath.Join(w.dir, "drover-containerd")
	testenv.BuildShim(t, w.shim)
	testenv.Build(t, daemon, "../containerd/drover-containerd")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	o := containerd.Options{Binary: daemon, Root: w.dir + "/root", State: run + "/st", Socket: run + "/s", LogTo: w.dir + "/log", Log: slog.New(slog.DiscardHandler)}
	go func() { _ = containerd.Supervise(ctx, o, func() { w.ready <- struct{}{} }); close(done) }()
	t.Cleanup(func() {
		cancel()
		<-done
		w.kill("drover-shim")
		w.kill("drover-containerd")
		_ = os.RemoveAll(run)
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/drovertest/*")
		tops, _ := filepath.Glob("/sys/fs/cgroup/*/drovertest")
		for _, g := range append(groups, tops...) {
			_ = os.Remove(g)
		}
	})
	<-w.ready
	if w.c, err = client.New(o.Socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.c.Close() })
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("package busybox-static is needed: %v", err)
	}
	for _, d := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(w.dir, "rootfs", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(w.dir+"/rootfs/bin/sh", box, 0o755); err != nil {
		t.Fatal(err)
	}
	return w
}

// kill ends our processes by name; those of other tests have other folders.
func (w *world) kill(name string) int {
	out, _ := exec.Command("pgrep", "-f", w.dir+"/"+name).Output()
	n := 0
	for _, f := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(f); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
			n++
		}
	}
	return n
}

func (w *world) stdio(id string) shimapi.Stdio {
	return shimapi.Stdio{LogDir: filepath.Join(w.dir, id, "log"), ExitFile: filepath.Join(w.dir, id, "exit.1"), Socket: filepath.Join(w.run, id+".in"), Life: life.First(1)}
}

func (w *world) start(id string, s shimapi.Stdio, script string) client.Task {
	w.t.Helper()
	c, err := w.c.NewContainer(w.ctx, id,
		client.WithRuntime(w.shim, &options.Options{Root: w.run + "/runc", BinaryName: w.binary}),
		client.WithNewSpec(oci.WithRootFSPath(w.dir+"/rootfs"), oci.WithProcessArgs("/bin/sh", "-c", script), oci.WithCgroup("/drovertest/"+id)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Delete(w.ctx) })
	task, err := c.NewTask(w.ctx, func(string) (cio.IO, error) { return address{s}, nil })
	if err != nil {
		w.t.Fatal(err)
	}
	if err := task.Start(w.ctx); err != nil {
		w.t.Fatal(err)
	}
	return task
}

// address hands our stdio to the shim; nothing of it is in this process.
type address struct{ s shimapi.Stdio }

func (a address) Config() cio.Config {
	c := cio.Config{Stdout: a.s.URL(), Terminal: a.s.TTY}
	return c
}
func (address) Cancel()      {}
func (address) Wait()        {}
func (address) Close() error { return nil }

func (w *world) exit(s shimapi.Stdio) shimapi.Exit {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		x, err := shimapi.ReadExit(s.ExitFile)
		if err == nil {
			return x
		}
		if !errors.Is(err, fs.ErrNotExist) || time.Now().After(end) {
			w.t.Fatal(err)
		}
	}
}

func output(t *testing.T, s shimapi.Stdio, stream byte) string {
	t.Helper()
	var b strings.Builder
	for r := logs.NewReader(s.LogDir, 0); ; {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if rec.Stream == stream {
			b.Write(rec.Data)
		}
	}
}

func TestOutputAndExitAreKeptApartAndDurable(t *testing.T) {
	w := newWorld(t)
	s := w.stdio("a")
	task := w.start("a", s, "echo out; echo err >&2; exit 7")
	x := w.exit(s)
	if end, err := logs.End(s.LogDir); err != nil || x.Code != 7 || x.Attempt != 1 || x.LogEnd != end || x.Started.IsZero() {
		t.Fatalf("%+v, the log ends at %d (%v)", x, end, err)
	}
	if o, e := output(t, s, logs.Stdout), output(t, s, logs.Stderr); o != "out\n" || e != "err\n" {
		t.Fatalf("stdout %q, stderr %q", o, e)
	}
	if _, err := task.Delete(w.ctx); err != nil {
		t.Fatal(err)
	}
	if ts, err := shimapi.ReadTimings(s.ExitFile); err != nil || len(ts) != 2 {
		t.Fatalf("timings %v %v", ts, err)
	}
}

// The daemon is killed while the container writes, and the container ends while
// it is down: no line is lost or doubled, and the code is known.
func TestAKilledContainerdLosesNoLineAndNoExit(t *testing.T) {
	w := newWorld(t)
	s := w.stdio("b")
	task := w.start("b", s, "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; exit 3")
	if w.kill("drover-containerd") == 0 {
		t.Fatal("no containerd to kill")
	}
	x := w.exit(s)
	if x.Code != 3 {
		t.Fatalf("%+v", x)
	}
	var want strings.Builder
	for i := range 20000 {
		fmt.Fprintln(&want, i)
	}
	if got := output(t, s, logs.Stdout); got != want.String() {
		t.Fatalf("%d bytes in the log, want %d", len(got), want.Len())
	}
	<-w.ready
	_, _ = task.Delete(w.ctx)
}

// The record can't be written for a while, as on a full disk: it comes when it can.
func TestAnExitThatCannotBeRecordedIsRecordedLater(t *testing.T) {
	w := newWorld(t)
	s := w.stdio("c")
	if err := os.MkdirAll(filepath.Join(s.ExitFile, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	seen, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = seen.Close() }()
	if err := seen.Add(filepath.Dir(s.ExitFile)); err != nil {
		t.Fatal(err)
	}
	task := w.start("c", s, "exit 5")
	for failed := false; !failed; { // the first try takes its file back
		select {
		case ev := <-seen.Events:
			failed = ev.Has(fsnotify.Remove) && strings.HasPrefix(filepath.Base(ev.Name), ".exit.1.")
		case <-time.After(20 * time.Second):
			t.Fatal("no exit was recorded")
		}
	}
	if err := os.RemoveAll(s.ExitFile); err != nil {
		t.Fatal(err)
	}
	if x := w.exit(s); x.Code != 5 {
		t.Fatalf("%+v", x)
	}
	if _, err := task.Delete(w.ctx); err != nil {
		t.Fatal(err)
	}
}
