// Package containerd keeps the embedded containerd daemon running beside an agent, as a
// process of its own that outlives the agent. Using the daemon is up to the engine.
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

	"github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// Namespace holds drover's images and containers in its daemon.
const Namespace = "drover"

// connectWithin bounds one attempt to connect, and the pause before the next one.
const connectWithin = 20 * time.Second

// Connect returns a client of the daemon on socket, which need not be up yet.
func Connect(socket string) (*client.Client, error) {
	c, err := client.New(socket, client.WithDefaultNamespace(Namespace), client.WithTimeout(connectWithin))
	if err != nil {
		return nil, fmt.Errorf("reaching containerd on %s: %w", socket, err)
	}
	return c, nil
}

// Options of a daemon. Socket must be short: it is a unix socket's path.
type Options struct {
	Binary string // as returned by payload.Extract
	Root   string // durable
	State  string // volatile
	Socket string
	LogTo  string // a file; "" discards the log
	Log    *slog.Logger

	// A daemon that does not answer for this long, after its start or later, is killed and
	// replaced. Zero means the default.
	StartWithin, SilentFor time.Duration
}

// Times of the supervisor.
const (
	startWithin = 2 * time.Minute // it loads every container's shim first
	silentFor   = 30 * time.Second
	probes      = 3 // unanswered probes per silentFor: a single one may be due to this machine being stalled
	dyingFor    = 10 * time.Second
	minBackoff  = 50 * time.Millisecond
	maxBackoff  = 5 * time.Second
	steadyAfter = 30 * time.Second // a daemon that ran this long is restarted without delay
)

// Supervise adopts the running daemon or starts one, and starts it again whenever it
// dies, until ctx ends. The daemon and containers keep running then. ready is called
// each time the daemon comes up.
func Supervise(ctx context.Context, o Options, ready func()) error {
	if o.StartWithin == 0 {
		o.StartWithin = startWithin
	}
	if o.SilentFor == 0 {
		o.SilentFor = silentFor
	}
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
		o.Log.Warn("containerd ended and is restarted", "err", err, "in", backoff)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
		}
		backoff = min(maxBackoff, 2*backoff)
	}
	return ctx.Err()
}

// once supervises one daemon until it is dead or ctx ends.
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
		o.Log.Info("adopted a running containerd", "pid", pid)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("watching containerd (pid %d): %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if started == nil {
		if again, err := o.running(); err != nil || again != pid { // fd may refer to another process that got the same pid
			return errors.Join(fmt.Errorf("%w (pid %d)", errDied, pid), err)
		}
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watching containerd: %w", err)
	}
	defer func() { _ = unix.Close(stop) }()
	life, over := context.WithCancelCause(ctx) // ends with the daemon
	watched := make(chan struct{})
	go func() { over(waitDead(fd, stop, pid)); close(watched) }()
	err = o.accompany(life, ready)
	if ctx.Err() == nil && life.Err() == nil { // it runs, but is stuck
		if kerr := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); kerr != nil {
			err = errors.Join(err, fmt.Errorf("killing containerd (pid %d): %w", pid, kerr))
		}
		select {
		case <-life.Done():
		case <-time.After(dyingFor): // stuck in the kernel
		}
	}
	dead := errors.Is(context.Cause(life), errDied)
	_, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-watched
	if started != nil && dead {
		_ = started.Wait()
	}
	return err
}

// accompany returns when the daemon ends or stops answering.
func (o Options) accompany(life context.Context, ready func()) error {
	c, err := grpc.NewClient("unix:"+o.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("reaching containerd: %w", err)
	}
	defer func() { _ = c.Close() }()
	if err := o.answers(life, c); err != nil {
		return err
	}
	ready()
	for missed := 0; ; {
		if missed == 0 {
			select {
			case <-life.Done():
				return context.Cause(life)
			case <-time.After(o.SilentFor / probes): // a hung daemon sends no event
			}
		}
		err := probe(life, c, o.SilentFor/probes)
		switch {
		case life.Err() != nil:
			return context.Cause(life)
		case status.Code(err) != codes.DeadlineExceeded:
			missed = 0
		default:
			if missed++; missed == probes {
				return fmt.Errorf("containerd answers nothing on %s for %v", o.Socket, o.SilentFor)
			}
		}
	}
}

// probe calls the daemon's health service: any answer will do.
func probe(ctx context.Context, c *grpc.ClientConn, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_, err := healthpb.NewHealthClient(c).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	return err
}

var errDied = errors.New("containerd died")

// waitDead returns when the process behind fd is dead (errDied), or when stop is written
// to.
func waitDead(fd, stop, pid int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("watching containerd: %w", err)
		}
		if fds[0].Revents != 0 {
			return fmt.Errorf("%w (pid %d)", errDied, pid)
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
	//nolint:noctx // the daemon outlives this process
	c := exec.Command(o.Binary, "-root", o.Root, "-state", o.State, "-address", o.Socket)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the agent's death must not reach it
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

// running returns the pid of this host's daemon, 0 if there is none. A pid that was
// reused by another program is recognized by its command line.
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

// answers waits until the socket accepts connections and answers a call.
func (o Options) answers(life context.Context, c *grpc.ClientConn) error {
	until, cancel := context.WithTimeout(life, o.StartWithin)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(until, "unix", o.Socket)
		if err == nil {
			_ = conn.Close()
			err = probe(until, c, o.StartWithin)
			if err == nil {
				return nil
			}
		}
		select {
		case <-until.Done():
			if life.Err() != nil {
				return fmt.Errorf("%w while it started (see %s)", context.Cause(life), o.LogTo)
			}
			return fmt.Errorf("containerd does not answer on %s after %v: %w", o.Socket, o.StartWithin, err)
		case <-time.After(5 * time.Millisecond): // nothing reports that a socket begins to listen
		}
	}
}

func (o Options) pidFile() string { return o.Socket + ".pid" }
