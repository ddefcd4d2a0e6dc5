// Package supervisor keeps a host's controller and agent running. It is a program of its
// own, which `drover up` becomes once it has decided what to run: the whole of drover
// only to wait for two processes would be a fifth of what an idle host needs.
package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/logfile"
)

// Times of processes.
const (
	stopWithin = 10 * time.Second // until one that was told to stop is killed
	minPause   = 100 * time.Millisecond
	maxPause   = 5 * time.Second
	steady     = 30 * time.Second // one that ran this long is restarted without delay
)

// Signals end a supervisor.
var Signals = []os.Signal{syscall.SIGTERM, syscall.SIGINT}

// Plan is what to run.
type Plan struct {
	Lock    string   // directory that only one supervisor uses
	Program string   // drover itself
	Args    []string // of each process, behind its verb
	// Controller is a file that exists as long as the host has a controller; "" if it never
	// had one.
	Controller string
	Log        string   // file that the processes log to if nobody reads their output; its size is bounded
	Announce   []string // arguments of a process that runs once, and says that the host is up; nil: none
}

// env hands the plan over from the program that becomes the supervisor.
const env = "DROVER_SUPERVISOR_PLAN"

// Become replaces the calling process by the supervisor at path, with p to run. It
// returns only if that fails, or if ctx has ended: the signals that end it end the process
// from then on, for nobody would take them until the supervisor does. To whoever looks at
// the host's processes it stays what it is.
func (p Plan) Become(ctx context.Context, path string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encoding what to run: %w", err)
	}
	signal.Reset(Signals...)
	err = ctx.Err()
	if err == nil {
		err = closeOnExec()
	}
	if err == nil {
		err = syscall.Exec(path, os.Args, append(os.Environ(), env+"="+string(b)))
	}
	return fmt.Errorf("starting %s: %w", path, err)
}

// closeOnExec keeps the files that this process was started with from what it executes:
// containerd and the shims would hold the lock of a script that ran `drover up` for as long
// as they live.
func closeOnExec() error {
	const firstOther = 3 // behind the standard streams
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("looking for inherited files: %w", err)
	}
	for _, f := range fds {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd >= firstOther {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// Handed returns the plan that this process was started with.
func Handed() (p Plan, err error) {
	b, ok := os.LookupEnv(env)
	if !ok {
		return p, errors.New("this program is started by drover up")
	}
	if err := json.Unmarshal([]byte(b), &p); err != nil {
		return p, fmt.Errorf("reading what to run: %w", err)
	}
	return p, os.Unsetenv(env)
}

// Run runs the processes until ctx ends, and restarts those that end. They end with it.
func (p Plan) Run(ctx context.Context, log *slog.Logger) error {
	unlock, err := durable.Lock(p.Lock)
	if err != nil {
		return fmt.Errorf("drover is up on this host already: %w", err)
	}
	defer unlock()
	alone, handOver := context.WithCancel(ctx) // until this host has no controller
	defer handOver()
	var all sync.WaitGroup
	all.Go(func() {
		if p.Controller != "" {
			p.keep(alone, "agent", log)
		}
		p.keep(ctx, "agent", log) // now it serves the socket, too
	})
	if p.Controller != "" {
		all.Go(func() {
			p.keep(ctx, "controller", log)
			handOver()
		})
	}
	all.Go(func() {
		logfile.Watch(ctx, p.Log, logfile.MaxSize, func(err error) { log.Warn("the log can't be rotated", "err", err) })
	})
	if p.Announce != nil {
		all.Go(func() {
			if err := p.once(ctx, p.Announce); err != nil && ctx.Err() == nil {
				log.Warn("it is not known whether this host is up", "err", err)
			}
		})
	}
	all.Wait()
	return nil
}

// keep runs a process and restarts it whenever it ends, until ctx ends.
func (p Plan) keep(ctx context.Context, verb string, log *slog.Logger) {
	for pause := minPause; ctx.Err() == nil; {
		began := time.Now()
		err := p.once(ctx, append([]string{verb}, p.Args...))
		if ctx.Err() != nil {
			return
		}
		if verb == "controller" && !exists(p.Controller) {
			log.Warn("this host is no longer a controller of its fleet, and continues as an agent", "err", err)
			return
		}
		if time.Since(began) > steady {
			pause = minPause
		}
		log.Warn("a process ended and is restarted", "process", verb, "err", err, "in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, maxPause)
	}
}

// once runs the program until it ends, or is told to because ctx ended.
func (p Plan) once(ctx context.Context, args []string) error {
	runtime.LockOSThread() // Pdeathsig refers to the parent thread
	defer runtime.UnlockOSThread()
	child := exec.Command(p.Program, args...) //nolint:noctx // a canceled context would kill it before its ordered stop
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := child.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", args[0], err)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = child.Process.Signal(syscall.SIGTERM)
		time.AfterFunc(stopWithin, func() { _ = child.Process.Kill() })
	})
	defer stop()
	return child.Wait()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
