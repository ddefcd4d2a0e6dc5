package supervisor

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMain is also the program that a supervisor runs, and what becomes a supervisor.
func TestMain(m *testing.M) {
	dir, do := os.Getenv("SUPERVISED_DIR"), os.Getenv("SUPERVISED_DO")
	switch {
	case do == "become":
		self, _ := os.Executable()
		p := Plan{Lock: filepath.Join(dir, "up"), Program: self, Args: []string{"--of", dir}, Log: filepath.Join(dir, "up.log")}
		_ = os.Setenv("SUPERVISED_DO", "supervise")
		_, _ = os.Stderr.WriteString(p.Become(context.Background(), self).Error())
		os.Exit(4)
	case do == "supervise" && os.Getenv(env) != "":
		p, err := Handed()
		if err == nil {
			_ = os.Setenv("SUPERVISED_DO", "")
			err = p.Run(context.Background(), slog.Default())
		}
		_, _ = os.Stderr.WriteString(err.Error())
		os.Exit(1)
	case dir != "" && len(os.Args) > 1:
		child(dir)
	}
	os.Exit(m.Run())
}

// child notes its number under the name of its verb, and does what a file named so says.
func child(dir string) {
	f, err := os.OpenFile(filepath.Join(dir, "ran"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		os.Exit(9)
	}
	_, _ = f.WriteString(strings.Join(os.Args[1:], " ") + " " + strconv.Itoa(os.Getpid()) + "\n")
	do, _ := os.ReadFile(filepath.Join(dir, os.Args[1]))
	switch string(do) {
	case "fail":
		os.Exit(3)
	case "end":
		os.Exit(0)
	}
	for {
		time.Sleep(time.Hour) // until it is told to end
	}
}

func host(t *testing.T) (dir string, p Plan) {
	t.Helper()
	dir = t.TempDir()
	t.Setenv("SUPERVISED_DIR", dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return dir, Plan{Lock: filepath.Join(dir, "up"), Program: self, Args: []string{"--of", dir}, Log: filepath.Join(dir, "up.log")}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ran returns what ran in dir so far, and waits until that satisfies ok.
func ran(t *testing.T, dir string, ok func(all []string) bool) []string {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(filepath.Join(dir, "ran"))
		all := strings.Split(strings.TrimSpace(string(b)), "\n")
		if ok(all) {
			return all
		}
		if time.Now().After(until) {
			t.Fatalf("what ran: %q", all)
		}
	}
}

// count returns how many processes of a verb there were.
func count(all []string, verb string) (n int) {
	for _, line := range all {
		if strings.HasPrefix(line, verb+" ") {
			n++
		}
	}
	return n
}

func pid(t *testing.T, all []string, verb string) int {
	t.Helper()
	for i := len(all) - 1; i >= 0; i-- {
		if strings.HasPrefix(all[i], verb+" ") {
			n, err := strconv.Atoi(all[i][strings.LastIndex(all[i], " ")+1:])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s among %q", verb, all)
	return 0
}

// start runs a plan until the test ends, or stop is called.
func start(t *testing.T, p Plan) (stop func() error, log *bytes.Buffer) {
	t.Helper()
	log = new(bytes.Buffer)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, slog.New(slog.NewTextHandler(log, nil))) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop, log
}

// What ends is run again, with the same arguments, and all end with their supervisor.
func TestProcessesAreKeptRunningUntilTheirSupervisorEnds(t *testing.T) {
	dir, p := host(t)
	p.Controller = filepath.Join(dir, "cert.pem")
	write(t, p.Controller, "")
	stop, _ := start(t, p)
	all := ran(t, dir, func(all []string) bool { return count(all, "agent") == 1 && count(all, "controller") == 1 })
	first := pid(t, all, "agent")
	if !strings.HasPrefix(all[0], "agent --of "+dir) && !strings.HasPrefix(all[0], "controller --of "+dir) {
		t.Errorf("called with %q", all[0])
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	all = ran(t, dir, func(all []string) bool { return count(all, "agent") == 2 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	for _, verb := range []string{"agent", "controller"} {
		if err := syscall.Kill(pid(t, all, verb), 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("the %s goes on: %v", verb, err)
		}
	}
}

// A controller that ends because its host was removed from the quorum is not begun
// again, and the agent is, to serve the socket. One that ends otherwise is.
func TestAHostGoesOnWithoutItsController(t *testing.T) {
	dir, p := host(t)
	p.Controller = filepath.Join(dir, "cert.pem")
	write(t, p.Controller, "")
	write(t, filepath.Join(dir, "controller"), "fail")
	stop, log := start(t, p)
	ran(t, dir, func(all []string) bool { return count(all, "controller") >= 2 && count(all, "agent") == 1 })
	if err := os.Remove(p.Controller); err != nil {
		t.Fatal(err)
	}
	all := ran(t, dir, func(all []string) bool { return count(all, "agent") == 2 })
	was := count(all, "controller")
	if err := stop(); err != nil {
		t.Error(err)
	}
	if all = ran(t, dir, func([]string) bool { return true }); count(all, "controller") != was {
		t.Errorf("the controller was begun again: %q", all)
	}
	if !strings.Contains(log.String(), "continues as an agent") {
		t.Errorf("nothing was said: %s", log)
	}
}

func TestWhatAnnouncesRunsOnce(t *testing.T) {
	dir, p := host(t)
	p.Announce = []string{"up", "--announce"}
	write(t, filepath.Join(dir, "up-"), "")
	write(t, filepath.Join(dir, "agent"), "fail")
	if err := os.MkdirAll(p.Lock, 0o700); err != nil {
		t.Fatal(err)
	}
	stop, _ := start(t, p)
	all := ran(t, dir, func(all []string) bool { return count(all, "agent") >= 3 && count(all, "up") == 1 })
	if err := stop(); err != nil || count(all, "up") != 1 {
		t.Errorf("%v: %q", err, all)
	}
}

// The supervisor has the number of the process that became it, which its callers know.
func TestAProcessBecomesTheSupervisor(t *testing.T) {
	dir, p := host(t)
	c := exec.Command(p.Program, "up")
	c.Env = append(os.Environ(), "SUPERVISED_DO=become")
	lock, err := os.Create(filepath.Join(dir, "its starter's lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	c.ExtraFiles = []*os.File{lock}
	var said bytes.Buffer
	c.Stderr = &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	all := ran(t, dir, func(all []string) bool { return count(all, "agent") == 1 })
	if err := p.Run(t.Context(), slog.Default()); err == nil || !strings.Contains(err.Error(), "drover is up on this host already") {
		t.Errorf("a second one: %v", err)
	}
	if cmdline, err := os.ReadFile("/proc/" + strconv.Itoa(c.Process.Pid) + "/cmdline"); err != nil || !strings.HasSuffix(string(cmdline), "\x00up\x00") {
		t.Errorf("it is shown as %q: %v", cmdline, err)
	}
	agent := pid(t, all, "agent")
	for _, pid := range []int{c.Process.Pid, agent} {
		fds, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
		if err != nil || len(fds) == 0 {
			t.Errorf("its files: %v, %v", fds, err)
		}
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); to == lock.Name() {
				t.Errorf("process %d inherited %s", pid, to)
			}
		}
	}
	if env, err := os.ReadFile("/proc/" + strconv.Itoa(agent) + "/environ"); err != nil || bytes.Contains(env, []byte("SUPERVISOR_PLAN")) {
		t.Errorf("the plan is passed on: %v", err)
	}
	// Killed, it takes its processes along, which are told to end.
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	for until := time.Now().Add(10 * time.Second); syscall.Kill(agent, 0) == nil; time.Sleep(5 * time.Millisecond) {
		if b, _ := os.ReadFile("/proc/" + strconv.Itoa(agent) + "/stat"); bytes.Contains(b, []byte(") Z ")) {
			break // nobody reaps it here
		}
		if time.Now().After(until) {
			t.Fatalf("the agent goes on; said: %s", said.String())
		}
	}
}

func TestWithoutAPlanNothingRuns(t *testing.T) {
	if _, err := Handed(); err == nil {
		t.Error("there was none")
	}
	t.Setenv(env, "{")
	if _, err := Handed(); err == nil {
		t.Error("it was damaged")
	}
	if err := (Plan{}).Become(t.Context(), "/nowhere/drover-supervisor"); err == nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is missing: %v", err)
	}
}

// A process that was told to end meanwhile does so, instead of becoming one that was not.
func TestWhoWasToldToEndBecomesNoSupervisor(t *testing.T) {
	ctx, stop := signal.NotifyContext(t.Context(), Signals...)
	defer stop()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if err := (Plan{}).Become(ctx, "/nowhere/drover-supervisor"); !errors.Is(err, context.Canceled) {
		t.Errorf("it goes on: %v", err)
	}
}
