package engine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/drover/drover/agent/containerd"
	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/agent/task"
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
	w.recorded(t, before, s.ID)
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
	if left := append(w.traces(t, s.ID), w.inContainerd(t, s.ID)...); len(left) > 0 {
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
	c, ctx := w.containerd(t)
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

// recorded makes a prepared container one that an earlier agent prepared: its record in
// containerd has its spec, and alone keeps its snapshot from being collected.
func (w *world) recorded(t *testing.T, e *node, id string) {
	t.Helper()
	spec, err := e.SpecOf(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	c, ctx := w.containerd(t)
	_, err = c.NewContainer(ctx, id, client.WithSnapshotter(images.Snapshotter), client.WithSnapshot(id),
		client.WithRuntime(w.o.ShimPath, &options.Options{Root: filepath.Join(w.run, "runc")}),
		func(_ context.Context, _ *client.Client, r *containers.Container) error {
			r.Spec = &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: spec}
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	// Last, or the garbage collection finds a snapshot that nothing holds.
	if _, err := c.SnapshotService(images.Snapshotter).Update(ctx, snapshots.Info{Name: id}, "labels"); err != nil {
		t.Fatal(err)
	}
}

// containerd returns a client of w's containerd, and the context of its namespace.
func (w *world) containerd(t *testing.T) (*client.Client, context.Context) {
	t.Helper()
	c, err := containerd.Connect(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, namespaces.WithNamespace(t.Context(), containerd.Namespace)
}

// collect has containerd collect its garbage.
func (w *world) collect(t *testing.T) {
	t.Helper()
	c, ctx := w.containerd(t)
	l, err := c.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.LeasesService().Delete(ctx, l, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
}

// inContainerd returns what containerd has of a container.
func (w *world) inContainerd(t *testing.T, id string) (left []string) {
	t.Helper()
	c, ctx := w.containerd(t)
	if _, err := c.ContainerService().Get(ctx, id); !errdefs.IsNotFound(err) {
		left = append(left, fmt.Sprintf("record (%v)", err))
	}
	if _, err := c.SnapshotService(images.Snapshotter).Stat(ctx, id); !errdefs.IsNotFound(err) {
		left = append(left, fmt.Sprintf("snapshot (%v)", err))
	}
	return left
}

// Whatever a preparation left that was cut short, it is done again, the container's
// files outlive containerd's collections and their image, and nothing is left once the
// container is removed.
func TestAPreparationThatWasCutShortIsDoneAgain(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	for _, c := range []struct {
		name string
		cut  func(t *testing.T, s task.Spec)
	}{
		{"not at all", func(*testing.T, task.Spec) {}},
		{"before its record", func(t *testing.T, s task.Spec) {
			remove(t, filepath.Join(w.dir, "tasks", s.ID, "spec.json"))
		}},
		{"in a power cut, which left its record empty", func(t *testing.T, s task.Spec) {
			if err := os.Truncate(filepath.Join(w.dir, "tasks", s.ID, "spec.json"), 0); err != nil {
				t.Fatal(err)
			}
		}},
		{"by an earlier agent, after its record in containerd", func(t *testing.T, s task.Spec) {
			w.recorded(t, e, s.ID)
			remove(t, filepath.Join(w.dir, "tasks", s.ID, "spec.json"))
		}},
		{"by an earlier agent, after its snapshot", func(t *testing.T, s task.Spec) {
			remove(t, filepath.Join(w.dir, "tasks", s.ID, "spec.json"))
			cl, ctx := w.containerd(t)
			if _, err := cl.SnapshotService(images.Snapshotter).Update(ctx, snapshots.Info{Name: s.ID}, "labels"); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := w.spec(waits)
			s.Create.HostConfig.NetworkMode = "none"
			w.prepare(t, e, s)
			c.cut(t, s)
			next := w.open(t)
			if err := next.Prepare(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			w.collect(t)
			if _, err := next.Start(t.Context(), s.ID, life.First(1), nil); err != nil {
				t.Fatal(err)
			}
			ends(t, next, s.ID)
			if err := next.Remove(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
			if left := append(w.traces(t, s.ID), w.inContainerd(t, s.ID)...); len(left) > 0 {
				t.Errorf("left: %s", left)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// A preparation that was cut short after its snapshot leaves nothing once it is removed.
func TestASnapshotWithoutAContainerIsRemoved(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	c, ctx := w.containerd(t)
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
