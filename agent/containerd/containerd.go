// Package containerd keeps the embedded containerd daemon running beside an
// agent, as a process of its own that outlives it. What is asked of the daemon
// is the engine's.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a daemon. Socket must be short: it is a unix socket's path.
type Options struct {
	Binary string // as payload.Extract gave it
	Root   string // durable
	State  string // volatile
	Socket string
	LogTo  string // file; "" is nowhere
	Log    *slog.Logger
}

// Times of the supervisor.
const (
	startWithin = 20 * time.Second
	minBackoff  = 50 * time.Millisecond
	maxBackoff  = 5 * time.Second
	steadyAfter = 30 * time.Second // a daemon that lived so long starts anew at once
)

// Supervise adopts the daemon that runs, or starts one, and does so again when
// it dies, until ctx ends: then the daemon goes on, and containers with it.
// ready is called each time that it answers.
func Supervise(ctx context.Context, o Options, ready func()) error {
	backoff := minBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := o.once(ctx, ready)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) > steadyAfter {
			backoff = minBackoff
		}
		o.Log.Warn("containerd ended; it is started again", "err", err, "in", backoff)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
		}
		backoff = min(maxBackoff, 2*backoff)
	}
	return ctx.Err()
}

// once sees one daemon through: until it is dead or ctx ends.
func (o Options) once(ctx context.Context, ready func()) error {
	pid, err := o.running()
	if err != nil {
		return err
	}
	var started *exec.Cmd
	if pid == 0 {
		if started, err = o.start(); err != nil {
			return err
		}
		pid = started.Process.Pid
	} else {
		o.Log.Info("containerd runs already", "pid", pid)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("watching containerd (pid %d): %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	dead := make(chan error, 1)
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watching containerd: %w", err)
	}
	defer func() { _ = unix.Close(stop) }()
	go func() { dead <- waitDead(fd, stop) }()
	defer func() {
		_, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		if err := <-dead; err != nil {
			o.Log.Debug("watching containerd ended", "err", err)
		}
		if started != nil && ctx.Err() == nil {
			_ = started.Wait()
		}
	}()
	if err := o.answers(ctx, dead); err != nil {
		return err
	}
	ready()
	select {
	case err := <-dead:
		dead <- nil
		if err == nil {
			err = fmt.Errorf("pid %d died", pid)
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// waitDead returns when the process behind fd is dead, or stop is written to.
func waitDead(fd, stop int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("watching containerd: %w", err)
		}
		return nil
	}
}

func (o Options) start() (*exec.Cmd, error) {
	for _, d := range []string{o.Root, o.State, filepath.Dir(o.Socket)} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("starting containerd: %w", err)
		}
	}
	c := exec.Command(o.Binary, "-root", o.Root, "-state", o.State, "-address", o.Socket)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an agent's death must not reach it
	if o.LogTo != "" {
		f, err := os.OpenFile(o.LogTo, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("starting containerd: %w", err)
		}
		defer func() { _ = f.Close() }()
		c.Stdout, c.Stderr = f, f
	}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("starting containerd: %w", err)
	}
	if err := os.WriteFile(o.pidFile(), []byte(strconv.Itoa(c.Process.Pid)), 0o600); err != nil {
		_ = c.Process.Kill()
		_ = c.Wait()
		return nil, fmt.Errorf("starting containerd: %w", err)
	}
	o.Log.Info("containerd started", "pid", c.Process.Pid)
	return c, nil
}

// running gives the pid of this host's daemon, 0 if there is none. A pid that
// another program got meanwhile is told by its command line.
func (o Options) running() (int, error) {
	b, err := os.ReadFile(o.pidFile())
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking for containerd: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, nil
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(line), o.Socket+"\x00") {
		return 0, nil
	}
	return pid, nil
}

// answers waits until the socket takes connections.
func (o Options) answers(ctx context.Context, dead chan error) error {
	for end := time.Now().Add(startWithin); ; {
		c, err := (&net.Dialer{}).DialContext(ctx, "unix", o.Socket)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(end) {
			return fmt.Errorf("containerd does not answer on %s after %v: %w", o.Socket, startWithin, err)
		}
		select {
		case derr := <-dead:
			dead <- nil
			return errors.Join(fmt.Errorf("containerd died while it started (its words are in %s)", o.LogTo), derr)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond): // nobody tells of a socket that begins to listen
		}
	}
}

func (o Options) pidFile() string { return o.Socket + ".pid" }
