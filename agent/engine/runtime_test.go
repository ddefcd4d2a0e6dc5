package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/task/enginetest"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/life"
)

// runc is the path of the peer that tests compare our runtime with.
func runc(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("runc")
	if err != nil {
		t.Fatalf("package runc is needed: %v", err)
	}
	return path
}

// by is a task whose containers a runtime runs.
func (w *world) by(runtime, script string) task.Spec {
	s := w.spec(script)
	s.Create.HostConfig.Runtime = runtime
	return s
}

func (w *world) bundle(id string) string {
	return filepath.Join(w.run, "shims", id)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Our runtime is the default, any other one that the host has is chosen by name or path,
// and what it does not have is refused in docker's words.
func TestARuntimeIsChosen(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	for runtime, native := range map[string]bool{"": true, "drover": true, "runc": false, runc(t): false} {
		s := w.by(runtime, waits)
		w.prepare(t, e, s)
		if _, err := e.Start(t.Context(), s.ID, life.First(1), nil); err != nil {
			t.Fatalf("runtime %q: %v", runtime, err)
		}
		if own, other := exists(filepath.Join(w.bundle(s.ID), "native", s.ID)), exists(filepath.Join(w.run, "runc/drover", s.ID)); own != native || other == native {
			t.Errorf("runtime %q: our state %v, runc's %v", runtime, own, other)
		}
		ends(t, e, s.ID)
	}
	for _, runtime := range []string{"kata", "/no/such/runtime", "bin/runc", "/etc/passwd"} {
		err := e.Prepare(t.Context(), w.by(runtime, "true"))
		if err == nil || !strings.Contains(err.Error(), "unknown or invalid runtime name: "+runtime) {
			t.Errorf("runtime %q: %v", runtime, err)
		}
	}
}

// Containers that another OCI runtime runs do all that ours do.
func TestConformanceWithRunc(t *testing.T) {
	path := runc(t)
	w := newWorld(t)
	w.pulled(t, w.open(t))
	subject := func(t *testing.T) enginetest.Subject {
		e := w.open(t)
		return enginetest.Subject{Runtime: e, Streams: e, Images: e.images, Image: w.ref, Digest: w.dgst, Reopen: func() task.Runtime { return w.open(t) },
			Change: func(c *container.CreateRequest) { c.HostConfig.Runtime = path }}
	}
	enginetest.Runtime(t, subject)
	enginetest.Streams(t, subject)
}

// shims returns the pids of a task's shims: their directory is its bundle, also after
// that was removed. Single threads, of which the first may be one, are elsewhere.
func shims(t *testing.T, id string) (pids []int) {
	t.Helper()
	out, _ := exec.Command("pgrep", "-f", "drover-shim -namespace").Output()
	for _, f := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		threads, _ := filepath.Glob("/proc/" + f + "/task/*/cwd")
		if slices.ContainsFunc(threads, func(cwd string) bool {
			dir, _ := os.Readlink(cwd)
			return filepath.Base(strings.TrimSuffix(dir, " (deleted)")) == id
		}) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// traces returns what is left of a task on its host.
func (w *world) traces(t *testing.T, id string) (left []string) {
	t.Helper()
	for _, p := range []string{"/sys/fs/cgroup/*/drover/" + w.o.NodeID + "/" + id, "/sys/fs/cgroup/drover/" + w.o.NodeID + "/" + id, w.bundle(id), filepath.Join(w.run, "runc/drover", id)} {
		found, err := filepath.Glob(p)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, id) {
			left = append(left, line)
		}
	}
	for _, pid := range shims(t, id) { // it ends behind the answer
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n == 0 {
			left = append(left, fmt.Sprintf("shim %d (%v)", pid, err))
		}
		_ = unix.Close(fd)
	}
	return left
}

func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// A shim is killed at any time: its container's processes die, its exit is known, and
// nothing of it stays.
func TestAKilledShimLeavesNothing(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	for name, pids := range map[string]container.PidMode{"own pid namespace": "", "the host's pid namespace": "host"} {
		t.Run(name, func(t *testing.T) {
			s := w.spec("sleep 1000 & echo $!; wait")
			s.Create.HostConfig.PidMode = pids
			w.prepare(t, e, s)
			a, err := e.Start(t.Context(), s.ID, life.First(1), nil)
			if err != nil {
				t.Fatal(err)
			}
			killed := shims(t, s.ID)
			if len(killed) != 1 {
				t.Fatalf("shims %v", killed)
			}
			if err := syscall.Kill(killed[0], syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if x, err := e.Wait(ctx, s.ID, life.First(1)); err != nil || x.Code != 137 {
				t.Fatalf("exit %v (%v)", x, err)
			}
			if err := e.Release(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
			if left := w.traces(t, s.ID); len(left) > 0 || alive(a.Pid) {
				t.Errorf("left: %s, alive %v", left, alive(a.Pid))
			}
			if _, err := e.Start(t.Context(), s.ID, life.First(2), nil); err != nil {
				t.Errorf("starting again: %v", err)
			}
			if err := e.Remove(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			}
			if left := w.traces(t, s.ID); len(left) > 0 {
				t.Errorf("left: %s", left)
			}
		})
	}
}

// It is killed before the process was let go: the start fails, or begins anew.
func TestAShimKilledBetweenCreateAndStart(t *testing.T) {
	w := newWorld(t)
	var killed atomic.Bool
	var id atomic.Value
	between(t, func(m moment) error {
		if m == (moment{startTask, m.id, false}) && !killed.Swap(true) {
			for _, pid := range shims(t, id.Load().(string)) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return nil
	})
	e := w.open(t)
	w.pulled(t, e)
	s := w.spec(waits)
	id.Store(s.ID)
	w.prepare(t, e, s)
	if _, err := e.Start(t.Context(), s.ID, life.First(1), nil); err == nil {
		t.Fatal("a container without a shim was started")
	}
	// containerd takes a moment to notice, as it says; the reconciler tries again.
	_, err := e.Start(t.Context(), s.ID, life.First(2), nil)
	for end := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		_, err = e.Start(t.Context(), s.ID, life.First(2), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Signal(t.Context(), s.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if x, err := e.Wait(t.Context(), s.ID, life.First(2)); err != nil || x.Code != 137 {
		t.Fatalf("exit %v (%v)", x, err)
	}
	if err := e.Remove(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if left := w.traces(t, s.ID); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
}

// What can't be started is reported in docker's words and codes, whatever runs it, and
// leaves nothing.
func TestTheRuntimesWords(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	prefix := "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
	for _, runtime := range []string{"drover", "runc"} {
		for _, c := range []struct {
			change func(*container.CreateRequest)
			code   int
			words  string
		}{
			{func(r *container.CreateRequest) { r.Cmd = []string{"nothing"} }, 127, `exec: "nothing": executable file not found in $PATH`},
			{func(r *container.CreateRequest) { r.Cmd = []string{"/bin/nothing"} }, 127, `exec: "/bin/nothing": stat /bin/nothing: no such file or directory`},
			{func(r *container.CreateRequest) { r.Cmd = []string{"/etc"} }, 126, `exec: "/etc": `},
			{func(r *container.CreateRequest) { r.Cmd = []string{"/etc/hosts"} }, 126, `exec: "/etc/hosts": permission denied`},
			{func(r *container.CreateRequest) { r.WorkingDir = "/bin/sh" }, 127, "not a directory"},
			{func(r *container.CreateRequest) {
				r.Cmd, r.HostConfig.Sysctls = []string{"/bin/true"}, map[string]string{"net.no.such": "1"}
			}, 125, "no such file or directory"},
		} {
			s := w.by(runtime, "true")
			c.change(&s.Create)
			if err := e.Prepare(t.Context(), s); err != nil {
				t.Errorf("%s: %s: preparing: %v", runtime, c.words, err)
				continue
			}
			_, err := e.Start(t.Context(), s.ID, life.First(1), nil)
			var se *task.StartError
			if !errors.As(err, &se) || se.Code != c.code || !strings.HasPrefix(se.Message, prefix) || !strings.Contains(se.Message, c.words) {
				t.Errorf("%s: %s: %v", runtime, c.words, err)
			}
			if err := e.Remove(t.Context(), s.ID); err != nil {
				t.Error(err)
			}
			if left := w.traces(t, s.ID); len(left) > 0 {
				t.Errorf("%s: %s: left: %s", runtime, c.words, left)
			}
		}
		s := w.by(runtime, waits)
		w.prepare(t, e, s)
		if _, err := e.Start(t.Context(), s.ID, life.First(1), nil); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			cmd   string
			code  int
			words string
		}{
			{"nothing", 127, `OCI runtime exec failed: exec failed: unable to start container process: exec: "nothing": executable file not found in $PATH`},
			{"/etc/hosts", 126, `OCI runtime exec failed: exec failed: unable to start container process: exec: "/etc/hosts": permission denied`},
		} {
			id := "exec" + strconv.Itoa(c.code) + runtime
			if err := e.ExecCreate(t.Context(), s.ID, id, container.ExecCreateRequest{Cmd: []string{c.cmd}}); err != nil {
				t.Fatal(err)
			}
			_, err := e.ExecStart(t.Context(), s.ID, id, true, 0, 0)
			var se *task.StartError
			if !errors.As(err, &se) || se.Code != c.code || se.Message != c.words {
				t.Errorf("%s: exec %s: %v", runtime, c.cmd, err)
			}
		}
	}
}

// A container that runs out of memory says so, whatever runs it, and docker's smallest
// limit suffices for a container to start.
func TestLittleMemory(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	for _, runtime := range []string{"drover", "runc"} {
		for script, want := range map[string]struct {
			code int32
			oom  bool
		}{"exit 3": {3, false}, "exec tail /dev/zero": {137, true}} {
			s := w.by(runtime, script)
			s.Create.HostConfig.Memory, s.Create.HostConfig.MemorySwap = 6<<20, 6<<20
			w.prepare(t, e, s)
			if _, err := e.Start(t.Context(), s.ID, life.First(1), nil); err != nil {
				t.Errorf("%s: %s: %v", runtime, script, err)
				continue
			}
			if x, err := e.Wait(t.Context(), s.ID, life.First(1)); err != nil || x.Code != want.code || x.Oom != want.oom {
				t.Errorf("%s: %s: exit %v (%v)", runtime, script, x, err)
			}
		}
	}
}

// What a container leaves in the host's pid namespace dies with its first process, and
// is reaped.
func TestNothingOutlivesTheFirstProcess(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	for _, runtime := range []string{"drover", "runc"} {
		s := w.by(runtime, "(sleep 1000 & sleep 1000 & echo $!) ; true & exec sleep 0.2")
		s.Create.HostConfig.PidMode = "host"
		w.prepare(t, e, s)
		if _, err := e.Start(t.Context(), s.ID, life.First(1), nil); err != nil {
			t.Fatal(err)
		}
		shim := shims(t, s.ID)[0]
		if x, err := e.Wait(t.Context(), s.ID, life.First(1)); err != nil || x.Code != 0 {
			t.Fatalf("%s: exit %v (%v)", runtime, x, err)
		}
		out, err := w.output(t.Context(), e, s.ID)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(out))
		if err != nil {
			t.Fatalf("%s: %q: %v", runtime, out, err)
		}
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", shim, shim))
			all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", shim))
			for _, c := range all {
				b, _ := os.ReadFile(c)
				children = append(children, b...)
			}
			if strings.TrimSpace(string(children)) == "" && !alive(pid) {
				break
			}
			if time.Now().After(end) {
				t.Errorf("%s: the shim's children are %q (%v), %d is alive: %v", runtime, children, err, pid, alive(pid))
				break
			}
		}
	}
}

// A profile is compiled once, and holds for every process: when its filter is compiled,
// when it was kept, and when what was kept is damaged.
func TestSeccompFiltersAreKept(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}`
	kept := func() (files []string) {
		files, _ = filepath.Glob(filepath.Join(w.run, "seccomp", "*"))
		return files
	}
	for n, c := range []struct {
		options []string
		script  string
		want    string
		files   int
	}{
		{nil, "grep -w Seccomp /proc/self/status; unshare -U true 2>&1", "Seccomp:\t2\nunshare: unshare(0x10000000): Operation not permitted\n", 1},
		{nil, "grep -w Seccomp /proc/self/status; unshare -U true 2>&1", "Seccomp:\t2\nunshare: unshare(0x10000000): Operation not permitted\n", 1},
		{[]string{"seccomp=" + profile}, "mkdir /tmp/x", "mkdir: can't create directory '/tmp/x': Function not implemented\n", 2},
		{[]string{"seccomp=" + profile}, "mkdir /tmp/x", "mkdir: can't create directory '/tmp/x': Function not implemented\n", 2},
		{[]string{"seccomp=unconfined"}, "grep -w Seccomp /proc/self/status", "Seccomp:\t0\n", 2},
	} {
		for _, damaged := range []bool{false, true} {
			if damaged {
				for _, f := range kept() {
					if err := os.Truncate(f, 50); err != nil {
						t.Fatal(err)
					}
				}
			}
			s := w.spec(c.script)
			s.Create.HostConfig.SecurityOpt = c.options
			w.prepare(t, e, s)
			if _, err := e.Start(t.Context(), s.ID, life.First(1), nil); err != nil {
				t.Fatal(err)
			}
			if _, err := e.Wait(t.Context(), s.ID, life.First(1)); err != nil {
				t.Fatal(err)
			}
			if out, err := w.output(t.Context(), e, s.ID); err != nil || out != c.want {
				t.Errorf("%d, damaged %v: %q (%v), want %q", n, damaged, out, err, c.want)
			}
			if files := kept(); len(files) != c.files {
				t.Errorf("%d: kept %v", n, files)
			}
		}
	}
}

// A container and an exec with a terminal have one: with its size, with what is typed
// echoed, and with its end when an exec's client leaves.
func TestTerminals(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	for _, runtime := range []string{"drover", "runc"} {
		s := w.by(runtime, "tty; read line; stty size; echo got $line; read line; exit 5")
		s.Create.Tty, s.Create.OpenStdin = true, true
		s.Create.HostConfig.ConsoleSize = [2]uint{30, 90}
		w.prepare(t, e, s)
		if _, err := e.Start(t.Context(), s.ID, life.First(1), nil); err != nil {
			t.Fatal(err)
		}
		st, err := e.Attach(t.Context(), s.ID, task.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true, FromStart: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Resize(t.Context(), s.ID, 100, 40); err != nil {
			t.Errorf("%s: %v", runtime, err)
		}
		if _, err := st.Write([]byte("typed\n")); err != nil {
			t.Fatal(err)
		}
		fr := bulk.NewFrameReader(st)
		var out strings.Builder
		for !strings.Contains(out.String(), "got typed\r\n") {
			kind, p, err := fr.Next()
			if err != nil {
				t.Fatalf("%s: %q: %v", runtime, out.String(), err)
			}
			if kind == bulk.FrameStderr {
				t.Errorf("%s: stderr of a terminal: %q", runtime, p)
			}
			if kind == bulk.FrameStdout {
				out.Write(p)
			}
		}
		for _, want := range []string{"/dev/pts/0\r\n", "typed\r\n", "40 100\r\n"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q has no %q", runtime, out.String(), want)
			}
		}
		// An exec of its own terminal ends with its client, in the order of a hang-up.
		if err := e.ExecCreate(t.Context(), s.ID, "exec"+runtime, container.ExecCreateRequest{Cmd: []string{"sh", "-c", "stty size; sleep 1000"}, Tty: true, AttachStdin: true, AttachStdout: true}); err != nil {
			t.Fatal(err)
		}
		x, err := e.ExecStart(t.Context(), s.ID, "exec"+runtime, true, 77, 22)
		if err != nil {
			t.Fatal(err)
		}
		var size []byte // which may come in pieces
		for frames := bulk.NewFrameReader(x); len(size) < len("22 77\r\n"); {
			kind, p, err := frames.Next()
			if size = append(size, p...); err != nil || kind != bulk.FrameStdout {
				t.Fatalf("%s: the exec's output is %q, then %d (%v)", runtime, size, kind, err)
			}
		}
		if string(size) != "22 77\r\n" {
			t.Errorf("%s: the exec's output is %q", runtime, size)
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			state, err := e.ExecInspect(t.Context(), s.ID, "exec"+runtime)
			if err != nil {
				t.Fatal(err)
			}
			if !state.Running {
				if state.ExitCode == nil || *state.ExitCode != 129 {
					t.Errorf("%s: the exec's exit is %v", runtime, *state.ExitCode)
				}
				break
			}
			if time.Now().After(end) {
				t.Errorf("%s: the exec outlives its client", runtime)
				break
			}
		}
		if _, err := st.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		if x, err := e.Wait(t.Context(), s.ID, life.First(1)); err != nil || x.Code != 5 {
			t.Errorf("%s: exit %v (%v)", runtime, x, err)
		}
		_ = st.Close()
	}
}

// What ignores signals where an agent is started from, as nohup does, has no say in containers.
func TestNoSignalIsIgnoredInAContainer(t *testing.T) {
	ignored := []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU}
	signal.Ignore(ignored...)
	defer signal.Reset(ignored...)
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	for _, runtime := range []string{"drover", "runc"} {
		const show = "grep -E 'Sig(Blk|Ign)' /proc/self/status; " // forked: what ash becomes ignores SIGQUIT
		s := w.by(runtime, show+waits)
		w.prepare(t, e, s)
		if _, err := e.Start(t.Context(), s.ID, life.First(1), nil); err != nil {
			t.Fatal(err)
		}
		const none = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
		if said := w.printed(t, e, s.ID, "began\n"); said != none+"began\n" {
			t.Errorf("%s: a container has %q", runtime, said)
		}
		_, st := execIn(t, e, s.ID, show+"true", true)
		if said, _ := rest(t, st); said != none {
			t.Errorf("%s: an exec has %q", runtime, said)
		}
	}
}

// Who waits for a container after its shim was killed does not wait for the next look at it.
func TestAWaitAfterTheDeathOfAShimEndsAtOnce(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	id := w.prepared(t, e, waits)
	if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(shimOf(t, id), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); exists(w.bundle(id)); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("its bundle is left")
		}
	}
	began := time.Now()
	x, err := e.Wait(t.Context(), id, life.First(1))
	if took := time.Since(began); err != nil || x.Code != 137 || took > time.Second {
		t.Errorf("after %v: %v, %v", took, x, err)
	}
}
