package engine_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/containerd"
	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/life"
)

// Earlier agents started containers through containerd's task service. Those are found,
// reached and ended as all others, and start again without it.
func TestWhatWasStartedThroughContainerdIsTakenOver(t *testing.T) {
	w := newWorld(t)
	before := w.open(t)
	w.pulled(t, before)
	s := w.spec(waits)
	s.Create.HostConfig.NetworkMode = "none"
	w.prepare(t, before, s)
	w.throughContainerd(t, s.ID)

	e := w.open(t)
	all, err := e.List(t.Context())
	if err != nil || len(all) != 1 || !all[0].Running || all[0].Attempt.Life != life.First(1) {
		t.Fatalf("listed are %+v, %v", all, err)
	}
	if exists(w.bundle(s.ID)) {
		t.Fatal("it was not started through containerd")
	}
	exec := strings.Repeat("e", 64)
	if err := e.ExecCreate(t.Context(), s.ID, exec, container.ExecCreateRequest{Cmd: []string{"echo", "within"}, AttachStdout: true}); err != nil {
		t.Fatal(err)
	}
	st, err := e.ExecStart(t.Context(), s.ID, exec, true, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	if out, err := frames(st); err != nil || out != "within\n" {
		t.Errorf("an exec: %q, %v", out, err)
	}
	ends(t, e, s.ID)
	if _, err := e.Start(t.Context(), s.ID, life.First(2), nil); err != nil {
		t.Fatal(err)
	}
	if !exists(w.bundle(s.ID)) {
		t.Error("it was started again through containerd")
	}
	if err := e.Remove(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if left := w.traces(t, s.ID); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
}

// throughContainerd starts a prepared container as an earlier agent did.
func (w *world) throughContainerd(t *testing.T, id string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := filepath.Join(w.dir, "tasks", id)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(err)
	attempt, err := json.Marshal(map[string]any{"version": 1, "number": 1, "try": "once", "at": time.Now(), "boot": strings.TrimSpace(string(boot))})
	must(err)
	must(os.Symlink("exit.1.once", filepath.Join(dir, "exit.1")))
	must(os.WriteFile(filepath.Join(dir, "attempt.json"), attempt, 0o600))
	c, err := containerd.Connect(w.socket)
	must(err)
	defer func() { _ = c.Close() }()
	ctx := namespaces.WithNamespace(t.Context(), containerd.Namespace)
	root, err := c.SnapshotService(images.Snapshotter).Mounts(ctx, id)
	must(err)
	r := &taskspb.CreateTaskRequest{ContainerID: id, Stdout: shimapi.Stdio{LogDir: filepath.Join(dir, "log"), ExitFile: filepath.Join(dir, "exit.1.once"), Life: life.First(1)}.URL()}
	for _, m := range root {
		r.Rootfs = append(r.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	_, err = c.TaskService().Create(ctx, r)
	must(err)
	must(os.WriteFile(filepath.Join(dir, "exit.1.once.begun"), nil, 0o600))
	_, err = c.TaskService().Start(ctx, &taskspb.StartRequest{ContainerID: id})
	must(err)
}

// A preparation that was cut short after its snapshot leaves nothing once it is removed.
func TestASnapshotWithoutAContainerIsRemoved(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	c, err := containerd.Connect(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx := namespaces.WithNamespace(t.Context(), containerd.Namespace)
	all, id := c.SnapshotService(images.Snapshotter), w.spec("").ID
	if _, err := all.Prepare(ctx, id, ""); err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := all.Stat(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("it is left: %v", err)
	}
}
