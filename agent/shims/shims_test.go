package shims

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/testenv"
)

const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// host is a host on which agents come and go.
type host struct {
	t       *testing.T
	dir     string
	deleted string // what shims were told to clean up
}

func newHost(t *testing.T) *host {
	h := &host{t: t, dir: t.TempDir()}
	h.deleted = filepath.Join(h.dir, "deleted")
	t.Setenv(deletedEnv, h.deleted)
	return h
}

// agent returns the shims as an agent has them that starts now.
func (h *host) agent() *Shims {
	h.t.Helper()
	return h.with(func(*Options) {})
}

func (h *host) with(change func(*Options)) *Shims {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	o := Options{Dir: filepath.Join(h.dir, "bundles"), SocketDir: filepath.Join(h.dir, "t"), Binary: self, Namespace: "drover", Next: containerd{t: h.t}, Asks: func(id string) bool { return id == "old" }}
	change(&o)
	s, err := New(o)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = s.Close() })
	return s
}

func (h *host) begin(s *Shims, how string) (int, error) {
	if err := s.Launch(id, shimapi.Choice{}); err != nil {
		return 0, err
	}
	pid, err := s.Begin(h.t.Context(), Container{ID: id, Spec: []byte(`{"ociVersion":"1.2.0"}`), Stdout: how})
	h.t.Cleanup(func() {
		if pid > 0 {
			_ = syscall.Kill(int(pid), syscall.SIGKILL)
		}
	})
	return int(pid), err
}

// nothing fails the test if anything is left of the container.
func (h *host) nothing(s *Shims) {
	h.t.Helper()
	if got, err := s.Get(h.t.Context(), &taskspb.GetRequest{ContainerID: id}); status.Code(err) != codes.NotFound {
		h.t.Errorf("its process is %v, %v", got, err)
	}
	for _, d := range []string{"bundles", "t"} {
		if in, err := os.ReadDir(filepath.Join(h.dir, d)); err != nil || len(in) > 0 {
			h.t.Errorf("%s holds %v, %v", d, in, err)
		}
	}
	records := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.open)
	}
	for end := time.Now().Add(10 * time.Second); records() > 0; time.Sleep(time.Millisecond) { // those who watched it need them
		if time.Now().After(end) {
			h.t.Fatalf("records are left: %v", s.open)
		}
	}
}

// cleaned reports how often a shim was told to remove what another left.
func (h *host) cleaned() int {
	b, err := os.ReadFile(h.deleted)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		h.t.Fatal(err)
	}
	return strings.Count(string(b), "-id "+id)
}

func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// containerd has the task "old", and must be asked for no other.
type containerd struct {
	taskspb.TasksClient
	t *testing.T
}

func (c containerd) Get(_ context.Context, r *taskspb.GetRequest, _ ...grpc.CallOption) (*taskspb.GetResponse, error) {
	if r.ContainerID != "old" {
		c.t.Errorf("containerd was asked for %s", r.ContainerID)
	}
	return &taskspb.GetResponse{Process: &tasktypes.Process{ID: "old", Pid: 1, Status: tasktypes.Status_PAUSED}}, nil
}

func (c containerd) List(context.Context, *taskspb.ListTasksRequest, ...grpc.CallOption) (*taskspb.ListTasksResponse, error) {
	r, err := c.Get(nil, &taskspb.GetRequest{ContainerID: "old"}) //nolint:staticcheck // it needs none
	return &taskspb.ListTasksResponse{Tasks: []*tasktypes.Process{r.GetProcess()}}, err
}

func (h *host) get(s *Shims, want tasktypes.Status) {
	h.t.Helper()
	r, err := s.Get(h.t.Context(), &taskspb.GetRequest{ContainerID: id})
	if err != nil || r.Process.Status != want || r.Process.ContainerID != id {
		h.t.Errorf("its process is %v, %v, want it %v", r, err, want)
	}
}

func (h *host) delete(s *Shims, code uint32) {
	h.t.Helper()
	r, err := s.Delete(h.t.Context(), &taskspb.DeleteTaskRequest{ContainerID: id})
	if err != nil || r.ExitStatus != code {
		h.t.Errorf("deleting: %v, %v", r, err)
	}
}

func TestAShimFromItsStartToItsEnd(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	pid, err := h.begin(s, "")
	if err != nil || !alive(pid) {
		t.Fatalf("pid %d, %v", pid, err)
	}
	if spec, err := s.Spec(id); string(spec) != `{"ociVersion":"1.2.0"}` || err != nil {
		t.Errorf("its spec is %s, %v", spec, err)
	}
	h.get(s, tasktypes.Status_RUNNING)
	if _, err := h.begin(s, ""); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second one: %v", err)
	}
	h.get(s, tasktypes.Status_RUNNING) // the first one is as it was
	h.delete(s, 7)
	if alive(pid) {
		t.Error("the shim goes on")
	}
	h.nothing(s)
	if n := h.cleaned(); n != 0 {
		t.Errorf("it was cleaned up %d times, although it was deleted", n)
	}
	if _, err := s.Delete(t.Context(), &taskspb.DeleteTaskRequest{ContainerID: id}); status.Code(err) != codes.NotFound {
		t.Errorf("deleting again: %v", err)
	}
}

func TestAShimThatCannotBeginLeavesNothing(t *testing.T) {
	for how, want := range map[string]string{"refuses": "no such program", "dies": "closed"} {
		h := newHost(t)
		s := h.agent()
		if pid, err := h.begin(s, how); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: pid %d, %v", how, pid, err)
		}
		h.nothing(s)
		if h.cleaned() != 1 {
			t.Errorf("%s: what it left was removed %d times", how, h.cleaned())
		}
	}
	h := newHost(t)
	s := h.agent()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.Launch(id, shimapi.Choice{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Begin(ctx, Container{ID: id, Stdout: "hangs"}); err == nil {
		t.Error("a shim that never answers began")
	}
	h.nothing(s)
}

// A shim that was launched for a container that can't be planned goes with it.
func TestAShimWithoutAContainerIsDeleted(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	if err := s.Launch(id, shimapi.Choice{}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(t.Context(), &taskspb.GetRequest{ContainerID: id}); status.Code(err) != codes.NotFound {
		t.Errorf("its process is %v, %v", got, err)
	}
	h.delete(s, 0)
	h.nothing(s)
	if _, err := s.Begin(t.Context(), Container{ID: id}); err == nil {
		t.Error("a container began without a shim")
	}
	h.nothing(s)
}

// The next agent finds what the one before started, with a new program as well.
func TestAShimOutlivesItsAgent(t *testing.T) {
	h := newHost(t)
	first := h.agent()
	pid, err := h.begin(first, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if !alive(pid) {
		t.Fatal("it ended with its agent")
	}
	s := h.agent()
	s.o.Binary = "/nowhere/of/a/later/build"
	r, err := s.List(t.Context(), &taskspb.ListTasksRequest{})
	if err != nil || len(r.Tasks) != 2 || r.Tasks[1].ID != id || int(r.Tasks[1].Pid) != pid {
		t.Errorf("listed are %v, %v", r, err)
	}
	h.delete(s, 7)
	h.nothing(s)
}

// A container does not go on without its shim, whoever watches.
func TestADeadShimsContainerIsRemoved(t *testing.T) {
	t.Run("while its agent runs", func(t *testing.T) {
		h := newHost(t)
		s := h.agent()
		pid, err := h.begin(s, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); h.cleaned() == 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		h.nothing(s)
		if h.cleaned() != 1 {
			t.Errorf("it was removed %d times", h.cleaned())
		}
	})
	t.Run("while no agent runs", func(t *testing.T) {
		h := newHost(t)
		first := h.agent()
		pid, err := h.begin(first, "")
		if err != nil {
			t.Fatal(err)
		}
		_ = first.Close()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for alive(pid) {
			time.Sleep(time.Millisecond)
		}
		h.nothing(h.agent())
		if h.cleaned() != 1 {
			t.Errorf("it was removed %d times", h.cleaned())
		}
	})
	t.Run("over a call", func(t *testing.T) {
		h := newHost(t)
		s := h.agent()
		if _, err := h.begin(s, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Kill(t.Context(), &taskspb.KillRequest{ContainerID: id, Signal: uint32(syscall.SIGQUIT)}); status.Code(err) != codes.Unavailable {
			t.Errorf("the call that killed it: %v", err)
		}
		h.nothing(s)
	})
}

// What an agent left that was killed before its shim had begun is removed.
func TestABundleWithoutAShimIsRemoved(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	if err := os.MkdirAll(filepath.Join(s.bundle(id), rootfsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	h.nothing(s)
}

func TestAShimThatDoesNotEndIsKilled(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	s.endWithin = 100 * time.Millisecond
	pid, err := h.begin(s, "stays")
	if err != nil {
		t.Fatal(err)
	}
	h.delete(s, 7)
	if alive(pid) {
		t.Error("it goes on")
	}
	h.nothing(s)
}

// Files that are still mounted are not removed with the bundle.
func TestABundleIsNotRemovedWithItsFiles(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	file := filepath.Join(s.bundle(id), rootfsDir, "precious")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Get(t.Context(), &taskspb.GetRequest{ContainerID: id}); err == nil {
		t.Errorf("it is said to be %v", r)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

func TestWhatContainerdStartedIsAskedOfIt(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	r, err := s.Get(t.Context(), &taskspb.GetRequest{ContainerID: "old"})
	if err != nil || r.Process.Status != tasktypes.Status_PAUSED {
		t.Errorf("%v, %v", r, err)
	}
}

// A pid that was used again is not taken for the shim.
func TestAnotherProcessIsNotKilled(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	if err := os.MkdirAll(s.bundle(id), 0o700); err != nil {
		t.Fatal(err)
	}
	x := s.lock(id)
	defer x.unlock()
	if err := x.record(record{Pid: os.Getpid(), Started: "1"}); err != nil {
		t.Fatal(err)
	}
	x.kill(0)
	if at := startOf(os.Getpid()); at == "" || at == "1" {
		t.Errorf("this process started at %q", at)
	}
	if at := startOf(1 << 30); at != "" {
		t.Errorf("no process started at %q", at)
	}
}

// A shim that is stopped keeps neither a list nor other calls from their ends.
func TestAStoppedShimHoldsUpNobody(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	pid, err := h.begin(s, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := func() bool {
		threads, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/stat")
		return !slices.ContainsFunc(threads, func(f string) bool {
			b, err := os.ReadFile(f)
			return err == nil && !strings.Contains(string(b), ") T ")
		})
	}
	for !stopped() {
		time.Sleep(time.Millisecond)
	}
	deleted := make(chan error, 1)
	go func() {
		_, err := s.Delete(t.Context(), &taskspb.DeleteTaskRequest{ContainerID: id})
		deleted <- err
	}()
	r, err := s.List(t.Context(), &taskspb.ListTasksRequest{})
	if err != nil || len(r.Tasks) != 2 || r.Tasks[1].Status != tasktypes.Status_UNKNOWN {
		t.Errorf("listed are %v, %v", r, err)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	h.nothing(s)
}

// What can't be written, as where the disk is full, leaves neither a shim nor a bundle.
func TestAStartOnAFullDiskLeavesNothing(t *testing.T) {
	testenv.Root(t)
	full := func(option string, upTo int) {
		for n := 1; n <= upTo; n++ {
			h := newHost(t)
			s := h.agent()
			if err := syscall.Mount("tmpfs", s.o.Dir, "tmpfs", 0, fmt.Sprintf("%s=%d", option, n)); err != nil {
				t.Fatal(err)
			}
			pid, err := h.begin(s, "")
			if err == nil {
				t.Errorf("%s=%d: it began, with pid %d", option, n, pid)
			}
			if p := shimOf(id); p != "" {
				t.Errorf("%s=%d: %s is left", option, n, p)
			}
			h.nothing(s)
			if err := syscall.Unmount(s.o.Dir, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
	full("nr_inodes", 7) // one more is enough
	full("nr_blocks", 2)
}

// shimOf returns a process of this program that is a container's shim, "" if there is
// none.
func shimOf(id string) string {
	self, _ := os.Readlink("/proc/self/exe")
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range all {
		args, _ := os.ReadFile(p + "/cmdline")
		if exe, _ := os.Readlink(p + "/exe"); exe == self && strings.Contains(string(args), "-id\x00"+id) {
			return p
		}
	}
	return ""
}

// An agent may have died at any moment of writing a bundle, or of removing one.
func TestABundleThatWasNotFinishedIsRemoved(t *testing.T) {
	for name, files := range map[string][]string{
		"empty":                {},
		"with a spec":          {specFile},
		"with half a choice":   {specFile, "drover-runtime"},
		"whose record is left": {recordFile},
	} {
		h := newHost(t)
		s := h.agent()
		if err := os.Mkdir(s.bundle(id), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(s.bundle(id), f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		t.Log(name)
		h.nothing(s)
	}
}

// An agent may die while a shim creates a container, which then is nobody's until the
// shim is done. It does not outlive its deletion.
func TestAContainerThatIsBeingCreatedIsRemovedWithItsShim(t *testing.T) {
	h := newHost(t)
	first := h.agent()
	if err := first.Launch(id, shimapi.Choice{}); err != nil {
		t.Fatal(err)
	}
	x := first.lock(id)
	tasks := x.tasks
	x.unlock()
	created := make(chan error, 1)
	go func() {
		_, err := tasks.Create(t.Context(), &taskAPI.CreateTaskRequest{ID: id, Stdout: "creates"})
		created <- err
	}()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(first.bundle(id), "creating")); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no creation began")
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-created; err == nil {
		t.Fatal("it was created")
	}
	s := h.agent()
	s.endWithin = 100 * time.Millisecond
	h.delete(s, 0)
	h.nothing(s)
	if h.cleaned() != 1 {
		t.Errorf("what the shim was creating was removed %d times", h.cleaned())
	}
}

// What is in the way of a dead shim's removal may pass, and is not asked for by anybody.
func TestTheRemovalOfADeadShimIsRepeated(t *testing.T) {
	h := newHost(t)
	s := h.agent()
	s.removeAgain = time.Millisecond
	gone := make(chan string, 1)
	s.o.Gone = func(id string) { gone <- id }
	pid, err := h.begin(s, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(h.deleted, 0o700); err != nil { // fails the fake's delete
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
		t.Fatal("it was removed")
	case <-time.After(100 * time.Millisecond):
	}
	if err := os.Remove(h.deleted); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("it is left")
	}
	h.nothing(s)
}

// A socket is not left by an agent that dies while it removes a bundle.
func TestASocketGoesBeforeItsBundle(t *testing.T) {
	testenv.Root(t)
	h := newHost(t)
	s := h.agent()
	if _, err := h.begin(s, ""); err != nil {
		t.Fatal(err)
	}
	x := s.lock(id)
	socket := x.socket()
	x.unlock()
	stuck := filepath.Join(s.bundle(id), "stuck") // a mount point can't be removed
	if err := os.Mkdir(stuck, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", stuck, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	_, err := s.Delete(t.Context(), &taskspb.DeleteTaskRequest{ContainerID: id})
	if uerr := syscall.Unmount(stuck, syscall.MNT_DETACH); uerr != nil {
		t.Fatal(uerr)
	}
	if _, serr := os.Lstat(socket); err == nil || !errors.Is(serr, os.ErrNotExist) {
		t.Errorf("the bundle is removed (%v), or the socket is left", err)
	}
	h.nothing(s)
}
