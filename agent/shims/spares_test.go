package shims

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"

	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/testenv"
)

// sparing returns the shims of an agent that keeps n spares.
func (h *host) sparing(n int) *Shims {
	h.t.Helper()
	return h.with(func(o *Options) { o.Spares = n })
}

// waiting blocks until n spares wait, and returns their pids.
func (h *host) waiting(s *Shims, n int) (pids []int) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("%d spares", n), func() bool {
		s.spares.mu.Lock()
		defer s.spares.mu.Unlock()
		pids = nil
		for _, y := range s.spares.waiting {
			pids = append(pids, y.recorded().Pid)
		}
		return len(pids) == n
	})
	return pids
}

func (h *host) eventually(what string, is func() bool) {
	h.t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// bundles returns the names of what is in the directories of bundles and sockets.
func (h *host) bundles() (names []string) {
	h.t.Helper()
	for _, d := range []string{"bundles", "t"} {
		in, err := os.ReadDir(filepath.Join(h.dir, d))
		if err != nil {
			h.t.Fatal(err)
		}
		for _, f := range in {
			names = append(names, f.Name())
		}
	}
	return names
}

// once begins and deletes a container.
func (h *host) once(s *Shims) (pid int) {
	h.t.Helper()
	pid, err := h.begin(s, "")
	if err != nil {
		h.t.Fatal(err)
	}
	h.delete(s, 7)
	return pid
}

func TestASpareIsTakenAndReplaced(t *testing.T) {
	h := newHost(t)
	s := h.sparing(1)
	if left := h.bundles(); len(left) > 0 {
		t.Errorf("before any container there are %v", left)
	}
	h.once(s)
	first := h.waiting(s, 1)[0]
	if r, err := s.List(t.Context(), &taskspb.ListTasksRequest{}); err != nil || len(r.Tasks) != 1 {
		t.Errorf("a spare is listed: %v, %v", r, err)
	}
	pid, err := h.begin(s, "")
	if err != nil || pid != first {
		t.Fatalf("the container's shim is %d, not the spare %d: %v", pid, first, err)
	}
	if spec, err := s.Spec(id); string(spec) != `{"ociVersion":"1.2.0"}` || err != nil {
		t.Errorf("its spec is %s, %v", spec, err)
	}
	second := h.waiting(s, 1)[0]
	if second == first {
		t.Error("it still waits")
	}
	h.get(s, tasktypes.Status_RUNNING)
	h.delete(s, 7)
	if alive(first) {
		t.Error("it goes on")
	}
	if !alive(second) {
		t.Error("its successor ended with it")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if left := h.bundles(); len(left) > 0 || alive(second) {
		t.Errorf("left by the agent are %v, and the spare: %v", left, alive(second))
	}
	if h.cleaned() != 0 {
		t.Errorf("what was deleted was removed %d times", h.cleaned())
	}
}

// A container's shim that was a spare is found by the next agent like all others.
func TestATakenSpareOutlivesItsAgent(t *testing.T) {
	h := newHost(t)
	first := h.sparing(1)
	h.once(first)
	spare := h.waiting(first, 1)[0]
	if pid, err := h.begin(first, ""); err != nil || pid != spare {
		t.Fatalf("the container's shim is %d, not the spare %d: %v", pid, spare, err)
	}
	next := h.waiting(first, 1)[0]
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if !alive(spare) || alive(next) {
		t.Fatalf("the container's shim lives: %v, a spare: %v", alive(spare), alive(next))
	}
	s := h.agent()
	h.get(s, tasktypes.Status_RUNNING)
	if err := syscall.Kill(spare, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.eventually("its container is removed", func() bool { return h.cleaned() == 1 })
	h.nothing(s)
}

func TestThereAreNeverMoreSparesThanConfigured(t *testing.T) {
	for _, n := range []int{0, 1, 3} {
		h := newHost(t)
		s := h.sparing(n)
		for range 3 {
			h.once(s)
			h.waiting(s, n)
		}
		if left := h.bundles(); len(left) != 2*n {
			t.Errorf("with %d spares there are %v", n, left)
		}
	}
}

// Spares are of the default runtime, and stay for it.
func TestASpareIsNotTakenForAnotherRuntime(t *testing.T) {
	h := newHost(t)
	s := h.sparing(1)
	h.once(s)
	spare := h.waiting(s, 1)[0]
	if err := s.Launch(id, shimapi.Choice{Binary: "runc"}); err != nil {
		t.Fatal(err)
	}
	if c, err := shimapi.ReadChoice(s.bundle(id)); c.Binary != "runc" || err != nil {
		t.Errorf("its runtime is %v, %v", c, err)
	}
	if got := h.waiting(s, 1)[0]; got != spare {
		t.Error("the spare was taken")
	}
	h.delete(s, 0)
}

func TestNoSpareIsStartedWhileAContainerIsCreated(t *testing.T) {
	h := newHost(t)
	s := h.sparing(1)
	s.spares.note(1)
	h.once(s)
	s.spares.fill()
	if left := h.bundles(); len(left) > 0 {
		t.Errorf("there are %v", left)
	}
	s.spares.note(-1)
	h.waiting(s, 1)
}

func TestSparesEndWithoutStarts(t *testing.T) {
	h := newHost(t)
	s := h.sparing(2)
	endAfter := func(d time.Duration) { // from the next start on
		s.spares.mu.Lock()
		defer s.spares.mu.Unlock()
		s.spares.endAfter = d
	}
	h.once(s)
	pids := h.waiting(s, 2)
	endAfter(100 * time.Millisecond)
	h.once(s)
	h.eventually("they end", func() bool { return !alive(pids[0]) && !alive(pids[1]) && len(h.bundles()) == 0 })
	endAfter(time.Minute)
	h.once(s)
	h.waiting(s, 2)
}

// A spare that ended is removed, and not replaced before the next start, which does
// without.
func TestASpareThatEnded(t *testing.T) {
	t.Run("is removed", func(t *testing.T) {
		h := newHost(t)
		s := h.sparing(1)
		h.once(s)
		spare := h.waiting(s, 1)[0]
		if err := syscall.Kill(spare, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.eventually("it is removed", func() bool { return len(h.bundles()) == 0 })
		time.Sleep(5 * refillAfter)
		h.waiting(s, 0)
		h.once(s)
		h.waiting(s, 1)
	})
	t.Run("unseen is replaced by a new shim", func(t *testing.T) {
		h := newHost(t)
		s := h.sparing(1)
		h.once(s)
		first := h.waiting(s, 1)[0]
		y := s.spares.pop() // nobody watches it any more
		if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-y.over
		s.spares.mu.Lock()
		s.spares.waiting = append(s.spares.waiting, &spare{shim: y.shim, over: y.over, taken: make(chan struct{})})
		s.spares.mu.Unlock()
		if pid, err := h.begin(s, ""); err != nil || pid == first {
			t.Errorf("the container's shim is %d, %v", pid, err)
		}
		h.delete(s, 7)
		h.waiting(s, 1)
		if err := s.Close(); err != nil || len(h.bundles()) > 0 {
			t.Errorf("left are %v, %v", h.bundles(), err)
		}
	})
}

// Whenever an agent dies, its spares end, and the next agent removes their files.
func TestSparesDoNotOutliveTheirAgent(t *testing.T) {
	for name, died := range map[string]func(s *Shims, y *spare){
		"while it waits":           func(*Shims, *spare) {},
		"before it was recorded":   func(_ *Shims, y *spare) { remove(t, filepath.Join(y.dir(), recordFile)) },
		"while it was removed":     func(_ *Shims, y *spare) { remove(t, y.socket()) },
		"after it was removed":     func(_ *Shims, y *spare) { remove(t, y.dir()) },
		"while it was being taken": func(s *Shims, y *spare) { rename(t, y.dir(), s.bundle(id)) },
		"after it was taken": func(s *Shims, y *spare) {
			rename(t, y.dir(), s.bundle(id))
			rename(t, y.socket(), (&shim{s: s, id: id}).socket())
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			dead := h.sparing(1)
			h.once(dead)
			pid := h.waiting(dead, 1)[0]
			y := dead.spares.pop()
			died(dead, y)
			if err := dead.held.Close(); err != nil { // as the kernel does
				t.Fatal(err)
			}
			h.eventually("it ends", func() bool { return !alive(pid) })
			h.nothing(h.agent())
		})
	}
	t.Run("although it hangs", func(t *testing.T) {
		h := newHost(t)
		dead := h.sparing(1)
		h.once(dead)
		pid := h.waiting(dead, 1)[0]
		dead.spares.pop()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		s := h.agent()
		h.eventually("it ends", func() bool { return !alive(pid) })
		h.nothing(s)
	})
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// What can't be made ahead costs no start, and leaves nothing.
func TestSparesOnAFullDisk(t *testing.T) {
	testenv.Root(t)
	for n := 2; n <= 9; n++ {
		h := newHost(t)
		s := h.sparing(1)
		if err := syscall.Mount("tmpfs", s.o.Dir, "tmpfs", 0, fmt.Sprintf("nr_inodes=%d", n)); err != nil {
			t.Fatal(err)
		}
		s.spares.fill()
		if left := h.bundles(); len(left) != 0 && len(left) != 2 {
			t.Errorf("%d inodes: there are %v", n, left)
		}
		s.spares.end()
		if left := h.bundles(); len(left) > 0 {
			t.Errorf("%d inodes: left are %v", n, left)
		}
		if p := shimOf(sparePrefix); p != "" {
			t.Errorf("%d inodes: %s is left", n, p)
		}
		if err := syscall.Unmount(s.o.Dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
}

// The socket of a spare is its container's afterwards, under which it is found.
func TestTheSocketIsTakenWithTheSpare(t *testing.T) {
	h := newHost(t)
	s := h.sparing(1)
	h.once(s)
	h.waiting(s, 1)
	if err := s.Launch(id, shimapi.Choice{}); err != nil {
		t.Fatal(err)
	}
	x := s.lock(id)
	socket := x.socket()
	x.unlock()
	if !strings.HasPrefix(filepath.Base(socket), id[:8]) {
		t.Errorf("it is %s", socket)
	}
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	h.delete(s, 0)
}
