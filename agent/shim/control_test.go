package shim_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/shim/shimapi"
)

// group returns the paths of a container's cgroup file in all hierarchies that have it.
func group(id, file string) []string {
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/drovertest/" + id + "/" + file)
	v2, _ := filepath.Glob("/sys/fs/cgroup/drovertest/" + id + "/" + file)
	return append(v1, v2...)
}

// What containerd's task service does by runc, ours does alike: with the same states,
// the same events in the same order, and the same refusals.
func TestTheTaskServiceIsTheSameWhateverRunsTheContainer(t *testing.T) {
	w := newWorld(t)
	seen := map[string][]string{}
	for _, binary := range []string{"", "runc"} {
		w.binary = binary
		id := filepath.Base(w.run) + binary
		events, _ := w.c.Subscribe(w.ctx, `topic~="^/tasks/"`)
		s := w.stdio(id)
		task := w.start(id, s, "sleep 1000 & sleep 1000")
		ended, err := task.Wait(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if pids, err := task.Pids(w.ctx); err != nil || !slices.ContainsFunc(pids, func(p client.ProcessInfo) bool { return p.Pid == task.Pid() }) {
			t.Errorf("%q: pids %v (%v), want %d", binary, pids, err, task.Pid())
		}
		if m, err := task.Metrics(w.ctx); err != nil || !strings.Contains(m.Data.GetTypeUrl(), ".Metrics") {
			t.Errorf("%q: metrics %v (%v)", binary, m, err)
		}
		limit := int64(64 << 20)
		if err := task.Update(w.ctx, client.WithResources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})); err != nil {
			t.Errorf("%q: updating: %v", binary, err)
		}
		for _, f := range append(group(id, "memory.limit_in_bytes"), group(id, "memory.max")...) {
			if b, err := os.ReadFile(f); err != nil || strings.TrimSpace(string(b)) != strconv.FormatInt(limit, 10) {
				t.Errorf("%q: %s is %s (%v)", binary, f, b, err)
			}
		}
		status := func(want client.ProcessStatus) {
			t.Helper()
			if st, err := task.Status(w.ctx); err != nil || st.Status != want {
				t.Errorf("%q: it is %s (%v), want %s", binary, st.Status, err, want)
			}
		}
		status(client.Running)
		if err := task.Pause(w.ctx); err != nil {
			t.Fatal(err)
		}
		defer func() { // where the test has failed: nothing stays frozen
			for _, f := range group(id, "freezer.state") {
				_ = os.WriteFile(f, []byte("THAWED"), 0)
			}
		}()
		status(client.Paused)
		if _, err := w.exec(task, id+"x", "true"); err == nil || !strings.Contains(err.Error(), "cannot exec in a paused state") {
			t.Errorf("%q: an exec in a paused container: %v", binary, err)
		}
		if err := task.Resume(w.ctx); err != nil {
			t.Fatal(err)
		}
		status(client.Running)
		exec, err := w.exec(task, id+"y", "exit 4")
		if err != nil {
			t.Fatal(err)
		}
		done, err := exec.Wait(w.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := exec.Start(w.ctx); err != nil {
			t.Fatal(err)
		}
		if x := <-done; x.ExitCode() != 4 {
			t.Errorf("%q: the exec ended with %d (%v)", binary, x.ExitCode(), x.Error())
		}
		if _, err := exec.Delete(w.ctx); err != nil {
			t.Error(err)
		}
		if _, err := w.c.TaskService().Delete(w.ctx, &taskspb.DeleteTaskRequest{ContainerID: id}); err == nil {
			t.Errorf("%q: a running container was deleted", binary)
		}
		if err := task.Kill(w.ctx, syscall.SIGTERM); err != nil { // which a first process ignores
			t.Error(err)
		}
		if err := task.Pause(w.ctx); err != nil {
			t.Fatal(err)
		}
		if err := task.Kill(w.ctx, syscall.SIGKILL); err != nil { // also while it is frozen
			t.Error(err)
		}
		if binary != "" { // runc 1.1 does not thaw it by itself
			_ = task.Resume(w.ctx)
		}
		if x := <-ended; x.ExitCode() != 137 {
			t.Errorf("%q: it ended with %d (%v)", binary, x.ExitCode(), x.Error())
		}
		status(client.Stopped)
		if err := task.Kill(w.ctx, syscall.SIGKILL); !errdefs.IsNotFound(err) {
			t.Errorf("%q: killing it again: %v", binary, err)
		}
		if _, err := task.Delete(w.ctx); err != nil {
			t.Error(err)
		}
		if left := group(id, ""); len(left) > 0 {
			t.Errorf("%q: left %v", binary, left)
		}
		for over := false; !over; {
			select {
			case e := <-events:
				v, err := typeurl.UnmarshalAny(e.Event)
				if err != nil {
					t.Fatal(err)
				}
				over = fmt.Sprintf("%T", v) == fmt.Sprintf("%T", &eventstypes.TaskDelete{})
				if _, resumed := v.(*eventstypes.TaskResumed); resumed && len(seen[binary]) > 9 {
					continue // the test's own, above
				}
				seen[binary] = append(seen[binary], fmt.Sprintf("%T", v))
			case <-time.After(20 * time.Second):
				t.Fatalf("%q: the events end with %v", binary, seen[binary])
			}
		}
	}
	if !slices.Equal(seen[""], seen["runc"]) {
		t.Errorf("our events are\n%v, runc's\n%v", seen[""], seen["runc"])
	}
}

func (w *world) exec(task client.Task, id, script string) (client.Process, error) {
	sock := filepath.Join(w.run, id+".ex")
	return task.Exec(w.ctx, id, &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}}, func(string) (cio.IO, error) {
		return execAddress{shimapi.ExecIO{Socket: sock}}, nil
	})
}

type execAddress struct{ e shimapi.ExecIO }

func (a execAddress) Config() cio.Config { return cio.Config{Stdout: a.e.URL()} }
func (execAddress) Cancel()              {}
func (execAddress) Wait()                {}
func (execAddress) Close() error         { return nil }

// A shim that was killed while it created its container has left cgroups and a process
// of which runc's library knows nothing yet.
func TestACreationThatWasCutShortLeavesNothing(t *testing.T) {
	w := newWorld(t)
	const id = "cut"
	bundle := filepath.Join(w.dir, "bundles", id)
	if err := os.MkdirAll(filepath.Join(bundle, "native", id), 0o700); err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: w.dir + "/rootfs"}, Process: &specs.Process{Args: []string{"x"}, Cwd: "/"},
		Linux: &specs.Linux{CgroupsPath: "/drovertest/" + id, Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"config.json": string(spec), "drover-runtime": "{}"} {
		if err := os.WriteFile(filepath.Join(bundle, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tops, _ := filepath.Glob("/sys/fs/cgroup/*/devices.allow")
	if len(tops) == 0 {
		tops = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	in := filepath.Join(filepath.Dir(tops[0]), "drovertest", id)
	if err := os.MkdirAll(in, 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill() }()
	if err := os.WriteFile(filepath.Join(in, "cgroup.procs"), []byte(strconv.Itoa(c.Process.Pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	stop := exec.Command(w.shim, "-namespace", "shimtest", "-id", id, "-address", w.run+"/s", "-bundle", bundle, "delete")
	stop.Dir = bundle
	if said, err := stop.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	var x *exec.ExitError
	if err := <-ended; !errors.As(err, &x) {
		t.Errorf("the process ended with %v", err)
	}
	if left := group(id, ""); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	if _, err := os.Stat(filepath.Join(bundle, "native", id)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the library's state: %v", err)
	}
}
