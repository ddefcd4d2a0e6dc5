package shims

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/failpoint"
)

// Files of a bundle, beside those of the shim itself.
const (
	specFile   = "config.json"
	recordFile = "shim.json"
	logFile    = "shim.log"
	rootfsDir  = "rootfs"
	workDir    = "work"

	socketSuffix = ".sh"
)

const (
	connectWithin = 5 * time.Second
	endWithin     = 3 * time.Second  // from a shim's shutdown to its end
	buryWithin    = 30 * time.Second // for the removal of what a dead shim left
	removeAgain   = 5 * time.Second  // from a removal that failed to the next one
)

// record is what a later agent has to know of a shim besides its socket.
type record struct {
	Version int    `json:"version"`
	Binary  string `json:"binary"`
	Pid     int    `json:"pid"`
	Started string `json:"started"` // in clock ticks since the boot: pids are used again
}

// shim is the shim of a container, if there is one.
type shim struct {
	s  *Shims
	id string

	users int // who hold this or wait for it

	mu     sync.Mutex // guards the fields below, and the bundle; held over no call to the shim but its shutdown
	client *ttrpc.Client
	tasks  taskAPI.TTRPCTaskService // of client
}

func (x *shim) dir() string { return x.s.bundle(x.id) }

func (x *shim) socket() string {
	return filepath.Join(x.s.o.SocketDir, x.id[:min(24, len(x.id))]+socketSuffix)
}

// start starts the process with a new bundle. x.mu must be held, as for all that follow.
func (x *shim) start(runtime shimapi.Choice) error {
	if _, err := x.spawn(runtime); err != nil {
		return err
	}
	return x.connect()
}

// spawn starts the process, which is not connected to. The returned channel is closed
// when it has ended.
func (x *shim) spawn(runtime shimapi.Choice) (_ <-chan struct{}, err error) {
	for _, d := range []string{x.dir(), filepath.Join(x.dir(), rootfsDir), filepath.Join(x.dir(), workDir)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	if err := shimapi.WriteChoice(x.dir(), runtime); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(x.dir(), logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	l, err := x.listen()
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.Close() }()
	//nolint:noctx // it outlives this process
	cmd := exec.Command(x.s.o.Binary, "-namespace", x.s.o.Namespace, "-id", x.id, "-address", "")
	cmd.Dir = x.dir()
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{l}
	if runtime.Native() {
		cmd.ExtraFiles = append(cmd.ExtraFiles, x.s.lifeline)
		cmd.Env = append(cmd.Env, shimapi.LifelineEnv+"=4")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := failpoint.Error("shims.exec.before"); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	failpoint.Here("shims.exec.after")
	over := make(chan struct{})
	go func() { _ = cmd.Wait(); close(over) }() // leaves no zombie; it ends with the shim
	defer func() {
		if err != nil { // it may not be recorded
			_ = cmd.Process.Kill()
			<-over
		}
	}()
	if err := x.record(record{Version: 1, Binary: x.s.o.Binary, Pid: cmd.Process.Pid, Started: startOf(cmd.Process.Pid)}); err != nil {
		return nil, err
	}
	failpoint.Here("shims.record.after")
	if err := yield(cmd.Process.Pid); err != nil {
		return nil, err
	}
	return over, nil
}

// yield makes the kernel end a shim rather than this agent where memory is short, and
// what is in containers rather than both.
func yield(pid int) error {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return err
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return err
	}
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(min(own+1, 1000))), 0o600)
}

// environment is a shim's: this process's, without what only concerns this process.
func environment() []string {
	env := []string{"GOMAXPROCS=4"}
	for _, v := range os.Environ() {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "GOMAXPROCS", "GOGC", "GOMEMLIMIT", "GODEBUG", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "TTRPC_ADDRESS", shimapi.LifelineEnv:
		default:
			env = append(env, v)
		}
	}
	return env
}

// listen returns a new socket as the shim inherits it. So it can be connected to before
// the shim has begun to serve it.
func (x *shim) listen() (*os.File, error) {
	if err := os.Remove(x.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: x.socket(), Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }()
	if err := os.Chmod(x.socket(), 0o600); err != nil {
		return nil, err
	}
	return l.File()
}

func (x *shim) record(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := filepath.Join(x.dir(), recordFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// connect connects to the process.
func (x *shim) connect() error {
	c, err := (&net.Dialer{Timeout: connectWithin}).DialContext(x.s.life, "unix", x.socket())
	if err != nil {
		return err
	}
	closed := make(chan struct{})
	client := ttrpc.NewClient(c, ttrpc.WithOnClose(func() { close(closed) }))
	x.client, x.tasks = client, taskAPI.NewTTRPCTaskClient(client)
	s, id := x.s, x.id
	s.wg.Go(func() {
		<-closed
		s.lost(id, client)
	})
	return nil
}

// lost is called when a connection ended: unless that was this agent's doing, the shim is
// dead, and its container must not go on without one.
func (s *Shims) lost(id string, c *ttrpc.Client) {
	x := s.lock(id)
	defer x.unlock()
	if x.client != c || s.life.Err() != nil {
		return
	}
	x.client, x.tasks = nil, nil
	s.o.Log.Warn("a shim ended before its container was deleted", "task", short(id))
	if !x.remove() {
		s.wg.Go(func() { s.removeLater(id) })
	}
}

// remove removes what a dead shim left, and reports whether that is done.
func (x *shim) remove() bool {
	tasks, err := x.find(x.s.life)
	switch {
	case err != nil:
		if x.s.life.Err() == nil {
			x.s.o.Log.Error("what a dead shim left can't be removed", "task", short(x.id), "err", err)
		}
		return false
	case tasks == nil:
		x.s.o.Gone(x.id)
	}
	return true
}

// removeLater removes what a dead shim left once that can be done: those who wait for its
// container don't ask for it.
func (s *Shims) removeLater(id string) {
	for done := false; !done; {
		select {
		case <-time.After(s.removeAgain):
		case <-s.life.Done():
			return
		}
		x := s.lock(id)
		done = x.remove()
		x.unlock()
	}
}

// find returns the service of the shim, nil if there is none. What a dead one left is
// removed.
func (x *shim) find(ctx context.Context) (taskAPI.TTRPCTaskService, error) {
	if x.tasks != nil {
		return x.tasks, nil
	}
	if !x.s.Has(x.id) {
		return nil, nil
	}
	err := x.connect()
	switch {
	case err == nil:
		return x.tasks, nil
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist): // nobody listens any more
		if err := x.bury(context.WithoutCancel(ctx)); err != nil {
			return nil, err
		}
		x.s.o.Gone(x.id)
		return nil, nil
	}
	return nil, fmt.Errorf("reaching the shim of %s: %w", short(x.id), err)
}

// finish ends a shim without a container: it was deleted, or is not there. The latter may
// be about to change, if an agent died while the shim was creating it.
func (x *shim) finish(ctx context.Context, deleted bool) error {
	c, tasks := x.client, x.tasks
	x.client, x.tasks = nil, nil // so that its end does not count as its death
	if tasks != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), x.s.endWithin)
		defer cancel()
		_, _ = tasks.Shutdown(ctx, &taskAPI.ShutdownRequest{ID: x.id}) // it may end before it answers
		_ = c.Close()
	}
	x.kill(x.s.endWithin)
	failpoint.Here("shims.shutdown.after")
	if !deleted {
		return x.bury(context.WithoutCancel(ctx))
	}
	return x.clear()
}

// bury ends a shim, and its container with it, which is not known to be deleted.
func (x *shim) bury(ctx context.Context) error {
	failpoint.Here("shims.bury.before")
	x.hangUp()
	x.kill(0)
	if !x.begun() {
		return x.clear()
	}
	ctx, cancel := context.WithTimeout(ctx, buryWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, x.binary(), "-namespace", x.s.o.Namespace, "-id", x.id, "-address", "", "-bundle", x.dir(), "delete")
	cmd.Dir, cmd.Env = x.dir(), environment()
	var said strings.Builder
	cmd.Stderr = &said
	failpoint.Here("shims.bury.exec")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("removing what the shim of %s left: %w: %s", short(x.id), err, strings.TrimSpace(said.String()))
	}
	return x.clear()
}

// begun reports whether a shim may have been started with the bundle: one that has
// neither socket nor record was cut short before, or is all but removed, and may be
// damaged.
func (x *shim) begun() bool {
	for _, path := range []string{x.socket(), filepath.Join(x.dir(), recordFile)} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return x.s.Has(x.id)
		}
	}
	return false
}

// hangUp closes the connection, which then counts as this agent's doing.
func (x *shim) hangUp() {
	if c := x.client; c != nil {
		x.client, x.tasks = nil, nil
		_ = c.Close()
	}
}

// binary is the program of the shim, if it is still there: what it left is removed by
// its own kind.
func (x *shim) binary() string {
	if r := x.recorded(); r.Binary != "" {
		if _, err := os.Stat(r.Binary); err == nil {
			return r.Binary
		}
	}
	return x.s.o.Binary
}

func (x *shim) recorded() (r record) {
	b, err := os.ReadFile(filepath.Join(x.dir(), recordFile))
	if err != nil || json.Unmarshal(b, &r) != nil {
		return record{}
	}
	return r
}

// kill ends the process, after a time in which it may end by itself.
func (x *shim) kill(after time.Duration) {
	r := x.recorded()
	if r.Pid <= 1 {
		return
	}
	fd, err := unix.PidfdOpen(r.Pid, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	if at := startOf(r.Pid); at == "" || at != r.Started { // another process
		return
	}
	if ended(fd, after) {
		return
	}
	if after > 0 {
		x.s.o.Log.Warn("a shim does not end, and is killed", "task", short(x.id), "pid", r.Pid)
	}
	if unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil {
		ended(fd, x.s.endWithin)
	}
}

// ended waits for the end of a process.
func ended(fd int, within time.Duration) bool {
	for until := time.Now().Add(within); ; {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(max(0, time.Until(until).Milliseconds())))
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// startOf is when a process was started, in clock ticks since the boot; "" if there is
// none.
func startOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	const afterName = 19 // fields between the name, which may contain anything, and the time
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) <= afterName {
		return ""
	}
	return fields[afterName]
}

// clear removes the socket and then the bundle, by which a later agent knows what is left.
func (x *shim) clear() error {
	root := filepath.Join(x.dir(), rootfsDir)
	if err := mount.UnmountRecursive(root, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting the files of %s: %w", short(x.id), err)
	}
	failpoint.Here("shims.clear.unmounted")
	// Not with its contents: those would be a container's files, were they still mounted.
	if err := os.Remove(root); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the bundle of %s: %w", short(x.id), err)
	}
	if err := os.Remove(x.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the socket of %s: %w", short(x.id), err)
	}
	failpoint.Here("shims.clear.before")
	if err := os.RemoveAll(x.dir()); err != nil {
		return fmt.Errorf("removing the bundle of %s: %w", short(x.id), err)
	}
	return nil
}
