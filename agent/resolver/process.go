package resolver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/resolver/resolverapi"
)

// Run keeps a resolver running as long as there are sandboxes, until ctx ends: it takes
// over the one that is there, starts one when it is needed, and another one when that
// dies. What runs then goes on.
func (r *Resolver) Run(ctx context.Context) error {
	if err := os.MkdirAll(r.o.Dir, 0o700); err != nil {
		return fmt.Errorf("creating the resolver's directory: %w", err)
	}
	backoff := minBackoff
	// One that is there is told what there is, even if that is nothing.
	for adopt := r.running(ctx); ctx.Err() == nil; adopt = false {
		if !adopt && !r.needed() {
			select {
			case <-r.wake:
			case <-ctx.Done():
			}
			continue
		}
		began := time.Now()
		err := r.once(ctx)
		r.forget()
		if ctx.Err() != nil || err == nil {
			continue
		}
		if time.Since(began) > steadyAfter {
			backoff = minBackoff
		}
		r.o.Log.Warn("the resolver ended and is restarted", "err", err, "in", backoff)
		t := time.NewTimer(backoff)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		backoff = min(maxBackoff, 2*backoff)
	}
	return ctx.Err()
}

// socket is of this build: one of another build is replaced, not asked.
func (r *Resolver) socket() string {
	return filepath.Join(r.o.Dir, filepath.Base(filepath.Dir(r.o.Binary))+".sock")
}

func (r *Resolver) running(ctx context.Context) bool {
	all, err := filepath.Glob(filepath.Join(r.o.Dir, "*.sock"))
	if err != nil {
		return false
	}
	for _, s := range all {
		if c, err := dial(ctx, s); err == nil {
			_ = c.Close()
			return true
		}
	}
	return false
}

func dial(ctx context.Context, socket string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", socket)
}

// once talks to one process until that ends or ctx does; nil if it ended because nobody
// needed it.
func (r *Resolver) once(ctx context.Context) error {
	conn, started, err := r.connect(ctx)
	if err != nil {
		return err
	}
	err = r.talk(ctx, conn)
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), conn.Close())
	}
	if errors.Is(err, errStuck) {
		// Whether or not it is found, the next one has a socket of its own.
		err = errors.Join(err, r.kill(), os.Remove(r.socket()))
	}
	_ = conn.Close()
	if started != nil {
		_ = started.Process.Kill() // if it only closed the connection
		_ = started.Wait()
	}
	if errors.Is(err, errEnded) && !r.needed() {
		return nil
	}
	return err
}

// connect returns a connection to the process, which it starts if there is none.
func (r *Resolver) connect(ctx context.Context) (net.Conn, *exec.Cmd, error) {
	if c, err := dial(ctx, r.socket()); err == nil {
		return c, nil, nil
	}
	if err := os.Remove(r.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("starting the resolver: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", r.socket())
	if err != nil {
		return nil, nil, fmt.Errorf("starting the resolver: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	defer func() { _ = l.Close() }()
	started, err := r.start(l.(*net.UnixListener))
	if err != nil {
		return nil, nil, fmt.Errorf("starting the resolver: %w", err)
	}
	c, err := dial(ctx, r.socket())
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("reaching the resolver: %w", err), started.Process.Kill(), started.Wait())
	}
	return c, started, nil
}

// start starts the process with its socket listening already, so that nobody waits for
// it to begin.
func (r *Resolver) start(l *net.UnixListener) (*exec.Cmd, error) {
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	args := []string{"-socket", r.socket()}
	if r.o.Root != "" {
		args = append(args, "-root", r.o.Root)
	}
	if r.o.Idle != 0 {
		args = append(args, "-idle", r.o.Idle.String())
	}
	c := exec.Command(r.o.Binary, args...) //nolint:noctx // it outlives this process
	c.ExtraFiles = []*os.File{f}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the agent's death must not reach it
	if r.o.LogTo != "" {
		log, err := os.OpenFile(r.o.LogTo, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil { // names are answered on a full disk, too
			r.o.Log.Warn("the resolver's log is dropped", "err", err)
		} else {
			defer func() { _ = log.Close() }()
			c.Stdout, c.Stderr = log, log
		}
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(r.pidFile(), []byte(strconv.Itoa(c.Process.Pid)), 0o600); err != nil {
		r.o.Log.Warn("the resolver can't be killed by another agent, should it hang", "err", err)
	}
	return c, nil
}

var (
	errEnded = errors.New("the resolver closed its connection")
	errStuck = errors.New("the resolver does not answer")
)

// talk tells the process all that there is, then what changes, one message at a time.
func (r *Resolver) talk(ctx context.Context, conn net.Conn) error {
	c := resolverapi.NewConn(conn)
	acks := make(chan *resolverapi.Ack)
	over := make(chan struct{})
	read := make(chan struct{}) // closed when the connection ended
	defer func() { close(over); _ = conn.SetReadDeadline(time.Unix(1, 0)); <-read }()
	go func() {
		defer close(read)
		for {
			a := new(resolverapi.Ack)
			if c.Read(a) != nil {
				return
			}
			select {
			case acks <- a:
			case <-over:
				return
			}
		}
	}()
	probe := time.NewTimer(probeEvery)
	defer probe.Stop()
	for n := uint64(1); ; n++ {
		m := r.next()
		for m == nil {
			select {
			case <-r.wake:
				m = r.next()
			case <-probe.C:
				m = &message{}
			case <-read:
				return errEnded
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		m.Number = n
		if err := r.say(ctx, conn, c, m, acks, read); err != nil {
			return err
		}
		if m.Full {
			r.replace(ctx)
		}
		probe.Reset(probeEvery)
	}
}

// say sends a message and waits for its acknowledgement.
func (r *Resolver) say(ctx context.Context, conn net.Conn, c *resolverapi.Conn, m *message, acks <-chan *resolverapi.Ack, read <-chan struct{}) error {
	within := r.ackWithin + time.Duration(len(m.Sandboxes))*perSandbox
	late := time.NewTimer(within)
	defer late.Stop()
	_ = conn.SetWriteDeadline(time.Now().Add(within))
	if err := c.Write(&m.Update); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return errStuck
		}
		return errEnded
	}
	select {
	case a := <-acks:
		if a.Number != m.Number {
			return fmt.Errorf("the resolver acknowledged %d, not %d", a.Number, m.Number)
		}
		r.said(m, a.Errors)
		return nil
	case <-late.C:
		return errStuck
	case <-read:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// replace ends resolvers of other builds, once this one answers everywhere.
func (r *Resolver) replace(ctx context.Context) {
	all, err := filepath.Glob(filepath.Join(r.o.Dir, "*.sock"))
	if err != nil {
		return
	}
	for _, s := range all {
		if s == r.socket() {
			continue
		}
		if c, err := dial(ctx, s); err == nil {
			err = resolverapi.NewConn(c).Write(&resolverapi.Update{Quit: true})
			if err = errors.Join(err, c.Close()); err != nil {
				r.o.Log.Warn("the resolver of another version goes on", "socket", s, "err", err)
				continue
			}
		}
		_, _ = os.Remove(s), os.Remove(s+".pid")
	}
}

// kill kills the process, if it is there. Who created the socket does not say who it is:
// that was an agent.
func (r *Resolver) kill() error {
	b, err := os.ReadFile(r.pidFile())
	if err != nil {
		return fmt.Errorf("looking for the resolver: %w", err)
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil || pid <= 1 {
		return fmt.Errorf("looking for the resolver: %s says %q", r.pidFile(), b)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("killing the resolver (pid %d): %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	// Another process may have got the same pid.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(line, []byte(r.socket()+"\x00")) {
		return nil
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

func (r *Resolver) pidFile() string { return r.socket() + ".pid" }
