//go:build cgo

package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/pkg/failpoint"
)

// container is the one container of a shim.
type container struct {
	id, bundle, rootfs string
	lc                 *libcontainer.Container
	init               *process
	shared             bool           // its pid namespace is not its own
	active             sync.WaitGroup // execs that run

	// freeze is held shared while an exec starts, which can't in a frozen cgroup, and
	// exclusively to pause and to update.
	freeze sync.RWMutex

	mu     sync.Mutex // guards the fields below
	execs  map[string]*process
	paused bool
	ended  bool // its first process has ended: no exec may start
	oom    bool // an OOM was published
}

// stateDir is where runc's library keeps a container's state: it goes with the bundle.
func stateDir(bundle string) string { return filepath.Join(bundle, "native") }

// create mounts the container's files, and creates its first process, which then waits.
func (s *Service) create(ctx context.Context, r *taskAPI.CreateTaskRequest) (_ *container, err error) {
	c := &container{id: r.ID, bundle: r.Bundle, execs: map[string]*process{}}
	io, err := s.o.Stdio(r.ID, "")
	if err != nil {
		return nil, err
	}
	created := false
	defer func() {
		if !created {
			io.close()
		}
	}()
	if len(r.Rootfs) > 0 {
		c.rootfs = filepath.Join(r.Bundle, "rootfs")
		if err := os.Mkdir(c.rootfs, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("creating the directory of the files: %w", err)
		}
		var mounts []mount.Mount
		for _, m := range r.Rootfs {
			mounts = append(mounts, mount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
		}
		defer func() {
			if err == nil {
				return
			}
			if err := mount.UnmountMounts(mounts, c.rootfs, 0); err != nil {
				log.G(ctx).WithError(err).Warn("the container's files can't be unmounted")
			}
		}()
		if err := mount.All(mounts, c.rootfs); err != nil {
			return nil, fmt.Errorf("failed to mount rootfs component: %w", err)
		}
	}
	failpoint.Here("shim.mount.after")
	spec, config, err := readConfig(r.Bundle, r.ID)
	if err != nil {
		return nil, failed("create", err)
	}
	config.Seccomp = s.compiled(ctx, config.Seccomp)
	c.shared = !config.Namespaces.IsPrivate(configs.NEWPID)
	c.init = &process{spec: spec.Process, stdin: r.Stdin, stdout: r.Stdout, stderr: r.Stderr, terminal: r.Terminal,
		exited: make(chan struct{}), st: state{status: task.Status_CREATED}}
	failpoint.Here("shim.library.before")
	if c.lc, err = libcontainer.Create(stateDir(r.Bundle), r.ID, config); err != nil {
		return nil, failed("create", err)
	}
	created = true // create closes io
	if err := c.init.create(c.lc, s.orphans, io); err != nil {
		if c.init.pid() > 0 {
			_ = c.init.signal(unix.SIGKILL)
			c.init.wait(s.orphans)
		}
		if derr := c.lc.Destroy(); derr != nil {
			log.G(ctx).WithError(derr).Warn("what is left of the container can't be removed")
		}
		return nil, failed("create", err)
	}
	return c, nil
}

// start lets the first process go.
func (c *container) start() error {
	switch c.init.state().status {
	case task.Status_RUNNING:
		return failed("start", errors.New("cannot start a running process"))
	case task.Status_STOPPED:
		return failed("start", errors.New("cannot start a container that has stopped"))
	}
	if err := c.lc.Exec(); err != nil {
		c.unblock()
		return failed("start", err)
	}
	c.init.set(task.Status_RUNNING)
	return nil
}

// unblock ends the library's wait for a first process that died before it was started.
func (c *container) unblock() {
	path := filepath.Join(stateDir(c.bundle), c.id, "exec.fifo")
	if fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
		_ = unix.Close(fd)
	}
}

// watchInit accompanies the first process to its end, which is published last.
func (s *Service) watchInit(c *container) {
	code, at := c.init.wait(s.orphans)
	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	c.init.starting.Lock() // until its start was published
	defer c.init.starting.Unlock()
	if c.shared { // nothing has died along with it
		if err := c.lc.Signal(unix.SIGKILL); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) {
			log.L.WithError(err).Error("the container's other processes can't be killed")
		}
	}
	c.active.Wait()
	if c.killedByOOM() {
		s.send(&eventstypes.TaskOOM{ContainerID: c.id})
	}
	c.init.stopped(code, at)
	s.send(&eventstypes.TaskExit{ContainerID: c.id, ID: c.id, Pid: uint32(c.init.pid()), ExitStatus: code, ExitedAt: protobuf.ToTimestamp(at)})
}

// watchMemory publishes when the container runs out of memory, until its cgroup is gone.
func (s *Service) watchMemory(c *container) {
	events, err := c.lc.NotifyOOM()
	if err != nil {
		log.L.WithError(err).Warn("OOM events can't be watched")
		return
	}
	for range events {
		c.mu.Lock()
		c.oom = true
		c.mu.Unlock()
		s.send(&eventstypes.TaskOOM{ContainerID: c.id})
	}
}

// killedByOOM reports whether the kernel killed a process for want of memory which was
// not published: the notification may come after the exit that it caused.
func (c *container) killedByOOM() bool {
	c.mu.Lock()
	published := c.oom
	c.mu.Unlock()
	if published {
		return false
	}
	st, err := c.lc.State()
	if err != nil {
		return false
	}
	m, err := manager.NewWithPaths(st.Config.Cgroups, st.CgroupPaths)
	if err != nil {
		return false
	}
	n, err := m.OOMKillCount()
	return err == nil && n > 0
}

// delete removes a container that does not run.
func (s *Service) delete(ctx context.Context, c *container) error {
	switch c.init.state().status {
	case task.Status_RUNNING:
		return fmt.Errorf("cannot delete a running process: %w", errdefs.ErrFailedPrecondition)
	case task.Status_CREATED:
		_ = c.init.signal(unix.SIGKILL)
		select {
		case <-c.init.exited:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	started := s.orphans.starting() // hooks
	err := c.lc.Destroy()
	started(0)
	if err != nil {
		return fmt.Errorf("failed to delete task: %w", err)
	}
	failpoint.Here("shim.destroy.after")
	if c.rootfs != "" {
		if err := mount.UnmountRecursive(c.rootfs, 0); err != nil {
			return fmt.Errorf("failed rootfs umount: %w", err)
		}
	}
	return nil
}

// register adds an exec, which is yet to be started.
func (c *container) register(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended:
		return errors.New("cannot exec in a stopped state")
	case c.paused:
		return errors.New("cannot exec in a paused state")
	case c.execs[p.id] != nil:
		return fmt.Errorf("id %s: %w", p.id, errdefs.ErrAlreadyExists)
	}
	c.execs[p.id] = p
	return nil
}

// startExec starts a registered exec.
func (s *Service) startExec(c *container, p *process) error {
	if p.state().status != task.Status_CREATED {
		return fmt.Errorf("exec %s was started before: %w", p.id, errdefs.ErrFailedPrecondition)
	}
	io, err := s.o.Stdio(c.id, p.id)
	if err != nil {
		return err
	}
	err = s.runExec(c, p, io)
	if err != nil && p.pid() == 0 {
		p.stopped(255, time.Now())
	}
	return err
}

func (s *Service) runExec(c *container, p *process, io Stdio) error {
	c.freeze.RLock()
	defer c.freeze.RUnlock()
	c.mu.Lock()
	paused, ended := c.paused, c.ended
	if !ended && !paused {
		c.active.Add(1)
	}
	c.mu.Unlock()
	switch {
	case ended:
		io.close()
		return fmt.Errorf("container %s init process is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	case paused:
		io.close()
		return failed("exec", errors.New("cannot exec in a paused container (use --ignore-paused to override)"))
	}
	err := p.create(c.lc, s.orphans, io)
	if p.pid() == 0 {
		c.active.Done()
		return failed("exec", err)
	}
	if err != nil { // its terminal is lost
		_ = p.signal(unix.SIGKILL)
	}
	p.set(task.Status_RUNNING)
	go func() {
		defer c.active.Done() // watchInit waits for it
		code, at := p.wait(s.orphans)
		p.starting.Lock()
		defer p.starting.Unlock()
		p.stopped(code, at)
		s.send(&eventstypes.TaskExit{ContainerID: c.id, ID: p.id, Pid: uint32(p.pid()), ExitStatus: code, ExitedAt: protobuf.ToTimestamp(at)})
	}()
	if err != nil {
		return failed("exec", err)
	}
	return nil
}

// deleteExec forgets an exec that does not run.
func (c *container) deleteExec(p *process) error {
	if p.state().status == task.Status_RUNNING {
		return fmt.Errorf("cannot delete a running process: %w", errdefs.ErrFailedPrecondition)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, p.id)
	return nil
}

// failed reports what could not be done as runc does, on whose words callers depend.
func failed(step string, err error) error {
	switch step {
	case "create":
		return fmt.Errorf("OCI runtime create failed: runc create failed: %w", err)
	case "exec":
		return fmt.Errorf("OCI runtime exec failed: exec failed: %w", err)
	}
	return fmt.Errorf("OCI runtime %s failed: %w", step, err)
}
