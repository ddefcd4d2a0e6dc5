package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// partEnv tells a child process which part of the simulation to run, with its options.
const partEnv = "DROVER_SIM_PART"

// startWithin bounds how long a part may take to become ready.
const startWithin = 2 * time.Minute

// lowestPriority is the nice value that yields to all others.
const lowestPriority = 19

// part is what a child process does until ctx ends.
type part interface {
	run(ctx context.Context, ready func()) error
}

// runPart is the whole of a child process; it returns false in other processes.
func runPart() bool {
	kind, conf, is := strings.Cut(os.Getenv(partEnv), " ")
	if !is {
		return false
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var err error
	switch kind {
	case "controller":
		err = runAs[controllerPart](ctx, conf)
	case "agents":
		err = runAs[agentsPart](ctx, conf)
	default:
		err = fmt.Errorf("%q is no part of the simulation", kind)
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, kind+":", err)
		os.Exit(1)
	}
	return true
}

func runAs[P part](ctx context.Context, conf string) error {
	var p P
	if err := json.Unmarshal([]byte(conf), &p); err != nil {
		return err
	}
	return p.run(ctx, func() { _, _ = fmt.Println("ready") })
}

// process is a child that runs a part. It dies with its parent.
type process struct {
	cmd *exec.Cmd
	out io.Closer
}

// startPart returns once the part is ready.
func startPart(kind string, p part) (*process, error) {
	conf, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), partEnv+"="+kind+" "+string(conf))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &process{cmd, out}
	if kind == "agents" {
		// On hosts of their own, agents do not take the controllers' processors.
		if err := unix.Setpriority(unix.PRIO_PGRP, cmd.Process.Pid, lowestPriority); err != nil {
			return nil, errors.Join(fmt.Errorf("lowering the priority of the agents: %w", err), c.stop())
		}
	}
	late := time.AfterFunc(startWithin, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("starting a %s: it said %q: %w", kind, line, err), c.stop())
	}
	return c, nil
}

// cpu returns the CPU time that the process has used so far.
func (c *process) cpu() (time.Duration, error) {
	// MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of the kernel's posix-timers.h.
	clock := int32(^c.cmd.Process.Pid)<<3 | 2
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("reading the CPU time of process %d: %w", c.cmd.Process.Pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// stop ends the process and waits for it.
func (c *process) stop() error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(20*time.Second, func() { _ = c.cmd.Process.Kill() })
	defer late.Stop()
	return c.wait()
}

// kill stands for a power cut.
func (c *process) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.wait()
}

func (c *process) wait() error {
	_ = c.out.Close()
	return c.cmd.Wait()
}
