// Package fleet creates hosts out of network namespaces on one bridge, with a registry
// and real drover processes, for tests. Everything it creates is removed again, also
// after a failed test.
package fleet

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drover/drover/deploy/images"
	"github.com/drover/drover/pkg/testenv"
)

// Fleet is a registry host and some drover hosts.
type Fleet struct {
	Dir      string
	Registry string // host:port
	Hosts    []*Host
	Bin      string // directory of the drover binary

	t      testing.TB
	prefix string // of namespaces and links
	net    string // first three octets
	reg    *exec.Cmd
}

// Host is one network namespace that runs its own drover.
type Host struct {
	Name, Addr, Netns, Dir string
	f                      *Fleet
}

// subnets counts the subnets that fleets of this process have claimed or found taken.
var subnets atomic.Int32

// builtImages builds the images once for all fleets of the process.
var builtImages = sync.OnceValues(func() (images.Set, error) { return images.Build(context.Background()) }) // all fleets share it: no one test may cancel it

// New creates a fleet with the named hosts, without starting drover. If the machine
// can't run it, the test fails rather than being skipped. Fleets share nothing, so that
// tests on different fleets may run in parallel.
func New(t testing.TB, hosts ...string) *Fleet {
	t.Helper()
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	return Of(t, bin, hosts...)
}

// Of is New with the drover in the directory bin.
func Of(t testing.TB, bin string, hosts ...string) *Fleet {
	t.Helper()
	testenv.Root(t)
	if _, err := os.Stat(filepath.Join(bin, "drover")); err != nil {
		t.Fatalf("build drover first (make build): %v", err)
	}
	dir, err := os.MkdirTemp("/var/tmp", "dve2e-") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	f := &Fleet{Dir: dir, Bin: bin, t: t}
	alive.add()
	t.Cleanup(f.destroy)
	f.claim()
	f.must("ip", "addr", "add", f.net+".1/24", "dev", f.prefix)
	f.must("ip", "link", "set", f.prefix, "up")
	f.addHost("reg", f.net+".2")
	for i, h := range hosts {
		f.Hosts = append(f.Hosts, f.addHost(h, fmt.Sprintf("%s.%d", f.net, 11+i)))
	}
	f.startRegistry()
	return f
}

// claim creates the fleet's bridge. It is named after its subnet, so that the kernel
// refuses a subnet that any other fleet on the machine is on.
func (f *Fleet) claim() {
	f.t.Helper()
	const most = 250
	for range most {
		// Never the one just left: the kernel removes its links asynchronously.
		n := (os.Getpid()+int(subnets.Add(1)))%most + 1
		name := fmt.Sprintf("dv%d", n)
		out, err := exec.Command("ip", "link", "add", name, "type", "bridge").CombinedOutput()
		if err == nil {
			f.prefix, f.net = name, fmt.Sprintf("10.89.%d", n)
			return
		}
		if !strings.Contains(string(out), "File exists") {
			f.t.Fatalf("creating the bridge %s: %v: %s", name, err, out)
		}
	}
	f.t.Fatalf("all of 10.89.1.0 to 10.89.%d.0 are taken", most)
}

func (f *Fleet) addHost(name, addr string) *Host {
	h := &Host{Name: name, Addr: addr, Netns: f.prefix + "-" + name, Dir: filepath.Join(f.Dir, name), f: f}
	link := f.prefix + name
	f.must("ip", "netns", "add", h.Netns)
	f.must("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", h.Netns)
	f.must("ip", "link", "set", link, "master", f.prefix, "up")
	f.must("ip", "-n", h.Netns, "addr", "add", addr+"/24", "dev", "eth0")
	f.must("ip", "-n", h.Netns, "link", "set", "eth0", "up")
	f.must("ip", "-n", h.Netns, "link", "set", "lo", "up")
	f.must("ip", "-n", h.Netns, "route", "add", "default", "via", f.net+".1")
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	return h
}

func (f *Fleet) startRegistry() {
	f.Registry = f.net + ".2:5000"
	conf := filepath.Join(f.Dir, "registry.yml")
	yml := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/registry}, delete: {enabled: true}}\nhttp: {addr: %q}\n", f.Dir, f.Registry)
	if err := os.WriteFile(conf, []byte(yml), 0o644); err != nil {
		f.t.Fatal(err)
	}
	f.StartRegistry()
	all, err := builtImages()
	if err == nil {
		err = all.Push(f.t.Context(), f.Registry)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// StartRegistry starts the registry host's registry and waits until it answers.
func (f *Fleet) StartRegistry() {
	f.t.Helper()
	log, err := os.OpenFile(f.registryLog(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	f.reg = exec.Command("nsenter", "--net=/var/run/netns/"+f.prefix+"-reg", "docker-registry", "serve", filepath.Join(f.Dir, "registry.yml"))
	f.reg.Stdout, f.reg.Stderr = log, log
	if err := f.reg.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.Eventually(20*time.Second, "the registry answers", func() bool {
		r, err := http.Get("http://" + f.Registry + "/v2/")
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

func (f *Fleet) registryLog() string { return filepath.Join(f.Dir, "registry.log") }

// StopRegistry kills the registry.
func (f *Fleet) StopRegistry() {
	if f.reg != nil {
		_ = f.reg.Process.Kill()
		_ = f.reg.Wait()
		f.reg = nil
	}
}

// Eventually polls for what no event reports: the state of other processes.
func (f *Fleet) Eventually(d time.Duration, what string, ok func() bool) {
	f.t.Helper()
	for end := time.Now().Add(d); ; time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("not within %v: %s", d, what)
		}
	}
}

// Up starts drover on the host, as a user does.
func (h *Host) Up() {
	h.f.t.Helper()
	if r := h.TryUp(); r.Code != 0 {
		h.f.t.Fatalf("drover up on %s: %v\n%s", h.Name, r, h.Logs())
	}
}

// TryUp is Up that may fail.
func (h *Host) TryUp() Result {
	h.configure()
	return h.In(nil, filepath.Join(h.f.Bin, "drover"), "up", "--detach", "--config", filepath.Join(h.Dir, "config.yaml"))
}

// Join joins the host to another one's fleet, as a user does.
func (h *Host) Join(at *Host, token string) {
	h.f.t.Helper()
	if r := h.TryJoin(at, token); r.Code != 0 {
		h.f.t.Fatalf("drover join on %s: %v\n%s", h.Name, r, h.Logs())
	}
}

// TryJoin is Join that may fail.
func (h *Host) TryJoin(at *Host, token string, more ...string) Result {
	h.f.t.Helper()
	h.configure()
	return h.In(nil, append([]string{filepath.Join(h.f.Bin, "drover"), "join", at.Addr, "--token", strings.TrimSpace(token), "--detach", "--config", filepath.Join(h.Dir, "config.yaml")}, more...)...)
}

func (h *Host) configure() {
	h.f.t.Helper()
	conf := fmt.Sprintf("data-dir: %[1]s/data\nrun-dir: %[1]s/run\nnode-name: %[2]s\nadvertise: %[3]s\nregistries:\n  - name: docker.io\n    endpoint: %[4]s\n    plain-http: true\n",
		h.Dir, h.Name, h.Addr, h.f.Registry)
	if err := os.WriteFile(filepath.Join(h.Dir, "config.yaml"), []byte(conf), 0o644); err != nil {
		h.f.t.Fatal(err)
	}
}

// Quorum brings up drover on the first host, joins the next two as controllers and the
// others as agents, whose root may use the fleet.
func (f *Fleet) Quorum() {
	f.t.Helper()
	first := f.Hosts[0]
	first.Up()
	for i, h := range f.Hosts[1:] {
		role := []string{"--role", "controller"}
		if i >= 2 {
			role = []string{"--role", "agent", "--socket-role", "admin"}
		}
		h.Join(first, first.Must(append([]string{"token", "create", "-q"}, role...)...))
	}
	f.Voters(min(3, len(f.Hosts)))
}

// Voters waits until this many controllers vote.
func (f *Fleet) Voters(n int) {
	f.t.Helper()
	f.Eventually(30*time.Second, fmt.Sprint(n, " controllers vote"), func() bool {
		out := f.Hosts[0].Drover("controller", "ls").Out
		return strings.Count(out, " voter ")+strings.Count(out, " leader ") == n
	})
}

// Logs returns what the host's processes logged, for failed tests.
func (h *Host) Logs() string {
	var b strings.Builder
	_ = filepath.WalkDir(h.Dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(p, ".log") {
			if s, err := os.ReadFile(p); err == nil {
				fmt.Fprintf(&b, "--- %s\n%s\n", p, s[max(0, len(s)-4000):])
			}
		}
		return nil
	})
	return b.String()
}

// Result is that of a command.
type Result struct {
	Out, Err string
	Code     int
}

func (r Result) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", r.Code, r.Out, r.Err)
}

// Socket is where the host's API listens.
func (h *Host) Socket() string { return filepath.Join(h.Dir, "run", "drover.sock") }

// Drover runs the CLI against the host.
func (h *Host) Drover(args ...string) Result { return h.DroverIn(nil, args...) }

// DroverIn is Drover with standard input.
func (h *Host) DroverIn(stdin []byte, args ...string) Result {
	return h.In(stdin, append([]string{filepath.Join(h.f.Bin, "drover")}, args...)...)
}

// Docker runs docker's own client against the host's socket.
func (h *Host) Docker(stdin []byte, args ...string) Result {
	return h.In(stdin, append([]string{"docker", "-H", "unix://" + h.Socket()}, args...)...)
}

// Must is Drover that has to succeed; it returns stdout.
func (h *Host) Must(args ...string) string {
	h.f.t.Helper()
	r := h.Drover(args...)
	if r.Code != 0 {
		h.f.t.Fatalf("drover %s: %v\n%s", strings.Join(args, " "), r, h.Logs())
	}
	return r.Out
}

// In runs a command inside the host's network namespace, for a minute at most.
func (h *Host) In(stdin []byte, args ...string) Result {
	h.f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "nsenter", append([]string{"--net=/var/run/netns/" + h.Netns, "--"}, args...)...)
	c.Env = h.Env()
	c.WaitDelay = 5 * time.Second
	var out, errb bytes.Buffer
	c.Stdout, c.Stderr = &out, &errb
	if stdin != nil {
		c.Stdin = bytes.NewReader(stdin)
	}
	err := c.Run()
	r := Result{Out: out.String(), Err: errb.String(), Code: c.ProcessState.ExitCode()}
	if ctx.Err() != nil {
		r.Err += "\n(timed out)"
	} else if err != nil && r.Code == -1 {
		r.Err += "\n" + err.Error()
	}
	return r
}

// Env is the environment of commands that are to reach the host.
func (h *Host) Env() []string {
	return append(os.Environ(), "DROVER_HOST=unix://"+h.Socket(), "DOCKER_CONFIG="+filepath.Join(h.f.Dir, "docker"))
}

func (f *Fleet) must(args ...string) {
	f.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		f.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// Leader returns the host whose controller leads.
func (f *Fleet) Leader() (leader *Host) {
	f.t.Helper()
	f.Eventually(10*time.Second, "there is a leader", func() bool {
		for _, h := range f.Hosts {
			for line := range strings.Lines(h.Drover("controller", "ls").Out) {
				w := strings.Fields(line)
				for _, l := range f.Hosts {
					if len(w) > 1 && w[1] == "leader" && w[0] == l.Name {
						leader = l
						return true
					}
				}
			}
		}
		return false
	})
	return leader
}

// Link sets the host's network link down, or up again.
func (h *Host) Link(up bool) {
	h.f.t.Helper()
	state := "down"
	if up {
		state = "up"
	}
	h.f.must("ip", "link", "set", h.f.prefix+h.Name, state)
}

// Command returns a command of drover's that is to run on the host, with its configuration.
func (h *Host) Command(args ...string) *exec.Cmd {
	words := append([]string{"--net=/var/run/netns/" + h.Netns, "--", filepath.Join(h.f.Bin, "drover")}, args...)
	return exec.Command("nsenter", append(words, "--config", filepath.Join(h.Dir, "config.yaml"))...)
}

// Start starts drover on the host without waiting for it.
func (h *Host) Start() {
	h.f.t.Helper()
	c := exec.Command("nsenter", "--net=/var/run/netns/"+h.Netns, "--", "setsid", filepath.Join(h.f.Bin, "drover"), "up", "--config", filepath.Join(h.Dir, "config.yaml"))
	log, err := os.OpenFile(filepath.Join(h.Dir, "data", "up.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		h.f.t.Fatal(err)
	}
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		h.f.t.Fatal(err)
	}
	_ = log.Close()
	go func() { _ = c.Wait() }() // it is killed at the end of the fleet
}
