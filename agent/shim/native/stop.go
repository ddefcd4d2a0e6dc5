//go:build cgo

package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/log"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/pkg/failpoint"
)

// killWithin bounds how long a killed process may take to end.
const killWithin = 10 * time.Second

// Stop removes what a dead service has left of its container, which it kills, and returns
// the pid of its first process, 0 if there was none. The bundle must be the current
// directory or its sibling.
func Stop(ctx context.Context, bundle, id string) (pid int, err error) {
	c, err := libcontainer.Load(stateDir(bundle), id)
	switch {
	case err == nil:
		st, serr := c.State()
		if serr == nil {
			pid = st.InitProcessPid
		}
		err = errors.Join(serr, kill(c, pid), c.Destroy())
	case errors.Is(err, libcontainer.ErrNotExist):
		err = removeUnfinished(bundle, id)
	}
	if err != nil {
		log.G(ctx).WithError(err).Warn("what is left of the container can't be removed")
	}
	failpoint.Here("shim.stop.unmount")
	if merr := mount.UnmountRecursive(filepath.Join(bundle, "rootfs"), 0); merr != nil {
		log.G(ctx).WithError(merr).Warn("the container's files can't be unmounted")
	}
	return pid, err
}

// kill kills a container's processes, and blocks until the first one has ended.
func kill(c *libcontainer.Container, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
	}
	// Only now is it certain whose descriptor that is, and that it stays so.
	if s, serr := c.Status(); serr != nil || s == libcontainer.Stopped {
		return serr // Destroy kills what is left in a shared pid namespace
	}
	if err != nil {
		return fmt.Errorf("watching process %d: %w", pid, err)
	}
	if err := c.Signal(unix.SIGKILL); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) {
		return err
	}
	return ended(fd, pid)
}

// ended blocks until the process of a descriptor has ended.
func ended(fd, pid int) error {
	for until := time.Now().Add(killWithin); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(until)).Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("waiting for process %d: %w", pid, err)
		case n == 0:
			return fmt.Errorf("process %d was killed and has not ended after %v", pid, killWithin)
		default:
			return nil
		}
	}
}

// removeUnfinished removes a container whose creation was cut short, of which the library
// has no state: its cgroups, and whoever is in them.
func removeUnfinished(bundle, id string) error {
	_, config, err := readConfig(bundle, id)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := manager.New(config.Cgroups)
	if err != nil {
		return err
	}
	if m.Exists() {
		pids, err := m.GetAllPids()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, pid := range pids {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue // it has ended
			}
			err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			if err == nil {
				err = ended(fd, pid)
			}
			_ = unix.Close(fd)
			if err != nil && err != unix.ESRCH {
				return err
			}
		}
	}
	if err := m.Destroy(); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(stateDir(bundle), id))
}
