package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/docker/cli/cli"
	"github.com/moby/moby/api/types/system"
	"github.com/spf13/cobra"

	"github.com/drover/drover/agent"
	"github.com/drover/drover/agent/payload"
	"github.com/drover/drover/cli/supervisor"
	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/config"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/logfile"
	"github.com/drover/drover/pkg/timing"
	"github.com/drover/drover/pkg/unixsock"
)

// Timeouts of drover up.
const (
	upWithin    = 2 * time.Minute  // until the host takes part in its fleet
	leftAfter   = 40 * time.Second // after this long with only the rest of the fleet missing, up -d returns
	readyWithin = 8 * time.Second  // for one request: a controller waits 5 s for a leader, or for its log
)

func upCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "up", Short: "Bring drover up on this host: controller, agent and containerd", Args: cli.NoArgs,
		Long: "Bring drover up on this host. The first time it makes a fleet of one host, with its own certificate authority.\nStopping it leaves containers running; the next drover up takes them over.",
	}
	f := addFlags(cmd)
	detach := cmd.Flags().BoolP("detach", "d", false, "Return when drover is up, and leave it running")
	announce := cmd.Flags().Bool("announce", false, "Only wait until drover is up, and say so")
	_ = cmd.Flags().MarkHidden("announce") // it fails for flags that are not there
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := f.load(cmd)
		if err != nil {
			return err
		}
		if *announce {
			if err := waitReady(cmd.Context(), c, nil, math.MaxInt64); err != nil {
				return cmp.Or(cmd.Context().Err(), err)
			}
			printNextSteps(cmd.OutOrStdout(), c)
			return nil
		}
		if os.Geteuid() != 0 {
			return errors.New("drover up needs root: it runs containers")
		}
		if *detach {
			return up(cmd, c, f.file)
		}
		return supervise(cmd, c, f.file)
	}
	return cmd
}

// up starts a detached supervisor, and returns when the host is ready.
func up(cmd *cobra.Command, c *config.Config, file string) error {
	if ready(cmd.Context(), c) == nil {
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "drover is up on %s already\n", c.NodeName)
		return nil
	}
	if err := os.MkdirAll(c.DataDir, 0o711); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	logFile := upLog(c)
	log, err := logfile.Open(logFile)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	child, err := self("up", c, file)
	if err != nil {
		return err
	}
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return fmt.Errorf("starting drover: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	ctx, cancel := context.WithTimeout(cmd.Context(), upWithin)
	defer cancel()
	err = waitReady(ctx, c, ended, leftAfter)
	if errors.Is(err, errElsewhere) {
		return fmt.Errorf("drover runs on %s and keeps trying, but %w", c.NodeName, err)
	}
	if err != nil {
		_ = syscall.Kill(child.Process.Pid, syscall.SIGTERM)
		return fmt.Errorf("%w; %s says:\n%s", err, logFile, tailOf(logFile, from))
	}
	printNextSteps(cmd.OutOrStdout(), c)
	return nil
}

// upLog is where a detached drover logs.
func upLog(c *config.Config) string { return filepath.Join(c.DataDir, "up.log") }

func tailOf(path string, from int64) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	if from <= int64(len(b)) { // else it was rotated meanwhile
		b = b[from:]
	}
	return strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

// printNextSteps prints the next steps and, once, the recovery key.
func printNextSteps(w io.Writer, c *config.Config) {
	_, _ = fmt.Fprintf(w, "drover is up on %s (%s)\n", c.NodeName, c.Advertise)
	key := bootstrap.RecoveryKeyFile(c.RunDir)
	if b, err := os.ReadFile(key); err == nil {
		_, _ = fmt.Fprintf(w, "\nRecovery key of this fleet, shown once; keep it where no host is:\n  %s\n", strings.TrimSpace(string(b)))
		if err := os.Remove(key); err != nil {
			_, _ = fmt.Fprintf(w, "(it could not be removed from %s: %v)\n", key, err)
		}
	}
	sock := unixsock.File(c.RunDir)
	if sock != "/run/drover/drover.sock" {
		_, _ = fmt.Fprintf(w, "\nPoint clients here:\n  export DROVER_HOST=unix://%s\n", sock)
	}
}

// errElsewhere reports that this host's processes answer: what is missing is a leader,
// or any controller at all, or time. The host keeps running: others may be waiting for
// its controller.
var errElsewhere = errors.New("it takes no part in its fleet yet")

// waitReady waits until the host takes part in its fleet. It waits no longer than left
// for what other hosts must provide.
func waitReady(ctx context.Context, c *config.Config, ended <-chan error, left time.Duration) error {
	var last error
	var elsewhere time.Time
	for {
		err := ready(ctx, c)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, errElsewhere):
			elsewhere = time.Time{}
		case elsewhere.IsZero():
			elsewhere = time.Now()
		case time.Since(elsewhere) > left:
			return err
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case e := <-ended:
			return fmt.Errorf("drover did not come up: %w", errors.Join(e, errors.New("it ended")))
		case <-ctx.Done():
			return fmt.Errorf("drover did not come up within %v: %w", upWithin, last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ready returns nil if the next command can run a container on this host: its agent
// takes part in the fleet, and the controller behind its socket confirms that.
func ready(ctx context.Context, c *config.Config) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	err := agent.Ready(ctx, c.RunDir)
	if errors.Is(err, agent.ErrNoSession) && !identity.HasController(c.DataDir) {
		return fmt.Errorf("%w: %w", errElsewhere, err)
	}
	if err != nil && !errors.Is(err, agent.ErrNoSession) {
		return err
	}
	code, header, i, ierr := info(ctx, c)
	switch {
	case ierr == nil && header.Get(wire.HeaderStale) != "":
		return fmt.Errorf("%w: %w", errElsewhere, fleet.ErrNoLeader)
	case err != nil && ierr == nil && code == http.StatusServiceUnavailable:
		// A log without a snapshot can only be read with a leader.
		return fmt.Errorf("%w: %w", errElsewhere, err)
	case err != nil:
		return err
	case ierr != nil:
		return ierr
	case code == http.StatusForbidden && !identity.HasController(c.DataDir):
		return nil // a controller answered: this host's users just have no role
	case code != http.StatusOK || i.NCPU == 0 || missingHere(header.Get(wire.HeaderMissing), c.NodeName):
		return errors.New("the agent has not reached the controller yet")
	}
	return nil
}

// info queries the host's socket.
func info(ctx context.Context, c *config.Config) (code int, header http.Header, i system.Info, err error) {
	h := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", unixsock.File(c.RunDir))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://drover/info", nil)
	if err != nil {
		return 0, nil, i, err
	}
	resp, err := h.Do(req)
	if err != nil {
		return 0, nil, i, err
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode, resp.Header, i, json.NewDecoder(resp.Body).Decode(&i)
}

// missingHere reports whether this host is among the nodes that did not answer.
func missingHere(header, name string) bool {
	for n := range strings.SplitSeq(header, ",") {
		if n, _, _ := strings.Cut(strings.TrimSpace(n), " "); n == name {
			return true
		}
	}
	return false
}

// self returns a command that runs this program, with the directories as flags.
func self(verb string, c *config.Config, file string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	args := []string{verb, "--data-dir", c.DataDir, "--run-dir", c.RunDir, "--node-name", c.NodeName, "--advertise", c.Advertise, "--log-level", c.LogLevel}
	if file != "" {
		args = append(args, "--config", file)
	}
	return exec.Command(exe, args...), nil //nolint:noctx // a canceled context would kill it before its ordered stop
}

// supervise creates the identities, and becomes the supervisor of controller and agent. Where
// that can't be extracted, as with a full disk, this process does what it does: a host's
// controller may be needed, though its agent lacks its programs, too.
func supervise(cmd *cobra.Command, c *config.Config, file string) error {
	unlock, err := durable.Lock(filepath.Join(c.DataDir, "up"))
	if err != nil {
		return fmt.Errorf("drover is up on this host already: %w", err)
	}
	defer unlock()
	_, port, err := net.SplitHostPort(c.ControllerListen)
	if err != nil {
		return fmt.Errorf("controller-listen: %w", err)
	}
	name := c.ClusterName
	if name == "" {
		name = c.NodeName
	}
	pace, err := timing.Parse(c.RaftTiming)
	if err != nil {
		return fmt.Errorf("raft-timing: %w", err)
	}
	member := identity.IsMember(c.DataDir) && !identity.HasController(c.DataDir)
	if !member {
		if _, err := bootstrap.Up(bootstrap.Options{
			DataDir: c.DataDir, ClusterName: name, NodeName: c.NodeName, Hosts: []string{c.Advertise, c.NodeName, "127.0.0.1", "localhost"},
			Controller: net.JoinHostPort(c.Advertise, port), Pool: c.SubnetPool, NetworkPool: c.NetworkPool, Timing: pace, Now: time.Now(),
		}); err != nil {
			return err
		}
	}
	program, without := payload.Supervisor(filepath.Join(c.DataDir, "bin"))
	if errors.Is(without, payload.ErrMissing) {
		return without
	}
	self, err := self("up", c, file)
	if err != nil {
		return err
	}
	p := supervisor.Plan{Lock: filepath.Join(c.DataDir, "up"), Program: self.Path, Args: self.Args[2:], Log: upLog(c)}
	if !member {
		p.Controller = identity.ControllerFile(c.DataDir)
	}
	if !detached() {
		p.Announce = append(self.Args[1:], "--announce")
	}
	if without == nil {
		return p.Become(cmd.Context(), program) // which takes the lock over
	}
	log := logger(c, "up")
	log.Warn("drover supervises its processes itself, which takes more memory", "err", without)
	unlock()
	return p.Run(cmd.Context(), log)
}

// detached reports whether nobody reads what is printed.
func detached() bool {
	sid, _, errno := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
	return errno == 0 && int(sid) == os.Getpid()
}
