package resolver

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/resolver/resolverapi"
	"github.com/drover/drover/pkg/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// fleet is what a node was told.
type fleet struct {
	mu    sync.Mutex
	names []resolverapi.Name
}

func (f *fleet) All() ([]resolverapi.Network, []resolverapi.Name) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return []resolverapi.Network{{ID: "r", Name: "red"}}, append([]resolverapi.Name(nil), f.names...)
}

func name(task, ip string) resolverapi.Name {
	return resolverapi.Name{Network: "r", Task: task, Node: "n2", IPs: []netip.Addr{netip.MustParseAddr(ip)}, Names: []string{task}, Running: true}
}

// node is a host without agent at first.
type node struct {
	t     *testing.T
	o     Options
	fleet fleet
}

func newNode(t *testing.T) *node {
	t.Helper()
	testenv.Root(t)
	run, err := os.MkdirTemp("/run", "dvrs") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t}
	n.o = Options{Binary: n.build("one"), Dir: run, LogTo: filepath.Join(t.TempDir(), "log"), Node: "n1", Root: t.TempDir(), Idle: 200 * time.Millisecond,
		Names: &n.fleet, Log: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() {
		for _, pid := range n.pids() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = os.RemoveAll(run)
	})
	return n
}

// build returns a resolver of another build, as payloads of other versions are.
func (n *node) build(version string) string {
	dir := filepath.Join(n.t.TempDir(), version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	testenv.Build(n.t, filepath.Join(dir, "drover-resolver"), "./drover-resolver")
	return filepath.Join(dir, "drover-resolver")
}

// pids returns the resolvers that were started and are alive.
func (n *node) pids() (out []int) {
	files, _ := filepath.Glob(filepath.Join(n.o.Dir, "*.pid"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if pid, err := strconv.Atoi(string(b)); err == nil && alive(pid) {
			out = append(out, pid)
		}
	}
	return out
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(b) > 0 // a zombie's is empty
}

// agent runs an agent's part until its function is called.
func (n *node) agent(o Options) (*Resolver, func()) {
	n.t.Helper()
	r := New(o)
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	end := func() { cancel(); <-done }
	n.t.Cleanup(end)
	return r, end
}

// container makes a namespace, and returns its sandbox.
func (n *node) container(id string) resolverapi.Sandbox {
	n.t.Helper()
	ch := make(chan error)
	var ns netns.NsHandle
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		if ns, err = netns.New(); err == nil {
			var lo netlink.Link
			if lo, err = netlink.LinkByName("lo"); err == nil {
				err = netlink.LinkSetUp(lo)
			}
		}
		ch <- err
	}()
	if err := <-ch; err != nil {
		n.t.Fatal(err)
	}
	path := filepath.Join(n.t.TempDir(), "ns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", int(ns)), path, "", unix.MS_BIND, ""); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH); _ = ns.Close() })
	return resolverapi.Sandbox{ID: id, Netns: path, Networks: []resolverapi.Endpoint{{Network: "r"}}}
}

// ask returns the addresses of a name in a sandbox, or what went wrong.
func ask(s resolverapi.Sandbox, name string) string {
	ch := make(chan string)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.GetFromPath(s.Netns)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			ch <- err.Error()
			return
		}
		c := &dns.Client{Timeout: 300 * time.Millisecond}
		m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), resolverapi.Address+":53")
		if err != nil {
			ch <- "no answer"
			return
		}
		out := dns.RcodeToString[m.Rcode]
		for _, a := range m.Answer {
			out += " " + a.(*dns.A).A.String()
		}
		ch <- out
	}()
	return <-ch
}

func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(end) {
			n.t.Fatalf("not in time: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (n *node) served(s resolverapi.Sandbox, name, want string) {
	n.t.Helper()
	got := ""
	n.eventually(name+" is "+want, func() bool { got = ask(s, name); return got == want })
}

func TestTheResolverRunsWhileThereAreSandboxes(t *testing.T) {
	n := newNode(t)
	n.fleet.names = []resolverapi.Name{name("web", "10.0.0.1")}
	r, _ := n.agent(n.o)
	if got := n.pids(); len(got) != 0 {
		t.Errorf("without a sandbox, %v run", got)
	}
	a, b := n.container("a"), n.container("b")
	for _, s := range []resolverapi.Sandbox{a, b} {
		if err := r.Serve(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if got := ask(s, "web."); got != "NOERROR 10.0.0.1" { // as soon as Serve returned
			t.Errorf("in %s: %s", s.ID, got)
		}
	}
	r.Changed(nil, nil, []resolverapi.Name{name("web", "10.0.0.2")})
	r.Changed(nil, []resolverapi.Network{{ID: "b", Name: "blue"}}, nil)
	r.Changed(nil, nil, []resolverapi.Name{name("db", "10.0.0.3")})
	n.served(b, "db.", "NOERROR 10.0.0.3")
	n.served(b, "web.", "NOERROR 10.0.0.2")
	r.Drop("a")
	r.Drop("a")
	n.eventually("the sandbox is left", func() bool { return ask(a, "web.") == "no answer" })
	n.served(b, "web.", "NOERROR 10.0.0.2")
	r.Drop("b")
	n.eventually("it ends", func() bool { return len(n.pids()) == 0 })

	if err := r.Serve(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	n.served(a, "web.", "NOERROR 10.0.0.1") // it was told everything anew
	bad := resolverapi.Sandbox{ID: "bad", Netns: "/nowhere"}
	if err := r.Serve(t.Context(), bad); err == nil {
		t.Error("a sandbox that is nowhere is served")
	}
	n.served(a, "web.", "NOERROR 10.0.0.1")
}

func TestNamesAreAnsweredWithoutAnAgentAndTheNextOneTakesOver(t *testing.T) {
	n := newNode(t)
	n.fleet.names = []resolverapi.Name{name("web", "10.0.0.1")}
	a, b := n.container("a"), n.container("b")
	r, end := n.agent(n.o)
	for _, s := range []resolverapi.Sandbox{a, b} {
		if err := r.Serve(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	was := n.pids()
	end()
	if got := ask(a, "web."); got != "NOERROR 10.0.0.1" {
		t.Errorf("without an agent: %s", got)
	}
	// b ended while there was no agent.
	n.fleet.names = []resolverapi.Name{name("web", "10.0.0.2")}
	r = New(n.o)
	r.Restore([]resolverapi.Sandbox{a})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	n.served(a, "web.", "NOERROR 10.0.0.2")
	n.eventually("what ended is left", func() bool { return ask(b, "web.") == "no answer" })
	if got := n.pids(); fmt.Sprint(got) != fmt.Sprint(was) {
		t.Errorf("the resolver was %v, now it is %v", was, got)
	}
	cancel()
	<-done

	// Nothing is left for the one after that.
	n.agent(n.o)
	n.eventually("it ends", func() bool { return len(n.pids()) == 0 })
}

// On a full disk there is neither a log nor a file that says which process it is.
func TestAResolverRunsWithoutItsFiles(t *testing.T) {
	n := newNode(t)
	n.fleet.names = []resolverapi.Name{name("web", "10.0.0.1")}
	n.o.LogTo = t.TempDir()
	r := New(n.o)
	if err := os.MkdirAll(r.pidFile(), 0o700); err != nil {
		t.Fatal(err)
	}
	r, _ = n.agent(n.o)
	a := n.container("a")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := r.Serve(ctx, a); err != nil {
		t.Fatal(err)
	}
	n.served(a, "web.", "NOERROR 10.0.0.1")
	r.Drop("a")
	n.eventually("it ends", func() bool { return ask(a, "web.") == "no answer" })
}

func TestADeadResolverIsReplaced(t *testing.T) {
	n := newNode(t)
	n.fleet.names = []resolverapi.Name{name("web", "10.0.0.1")}
	r, _ := n.agent(n.o)
	a, b := n.container("a"), n.container("b")
	for _, s := range []resolverapi.Sandbox{a, b} {
		if err := r.Serve(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	was := n.pids()
	began := time.Now()
	if err := syscall.Kill(was[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.eventually("there is another one", func() bool { p := n.pids(); return len(p) == 1 && p[0] != was[0] })
	n.served(a, "web.", "NOERROR 10.0.0.1")
	n.served(b, "web.", "NOERROR 10.0.0.1")
	t.Logf("answered again after %v", time.Since(began).Round(time.Millisecond))
}

// One that hangs is replaced, also if an agent died before it wrote down which process it
// had started.
func TestAStuckResolverIsReplaced(t *testing.T) {
	for _, known := range []bool{true, false} {
		n := newNode(t)
		n.fleet.names = []resolverapi.Name{name("web", "10.0.0.1")}
		a := n.container("a")
		r, end := n.agent(n.o)
		if err := r.Serve(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		end()
		was := n.pids()
		defer func() { _ = syscall.Kill(was[0], syscall.SIGKILL) }()
		if err := syscall.Kill(was[0], syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if _, err := syscall.Wait4(was[0], nil, syscall.WUNTRACED, nil); err != nil { // until all of it has stopped
			t.Fatal(err)
		}
		if !known {
			if err := os.Remove(r.pidFile()); err != nil {
				t.Fatal(err)
			}
		}
		r = New(n.o) // another agent, whose child it is not
		r.ackWithin = 200 * time.Millisecond
		r.Restore([]resolverapi.Sandbox{a})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = r.Run(ctx) }()
		n.served(a, "web.", "NOERROR 10.0.0.1")
		if known && alive(was[0]) {
			t.Error("the one that hangs is still there")
		}
		cancel()
		<-done
	}
}

func TestAResolverOfAnotherBuildIsReplaced(t *testing.T) {
	n := newNode(t)
	n.fleet.names = []resolverapi.Name{name("web", "10.0.0.1")}
	a := n.container("a")
	r, end := n.agent(n.o)
	if err := r.Serve(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	was := n.pids()
	end()
	newer := n.o
	newer.Binary = n.build("two")
	r = New(newer)
	r.Restore([]resolverapi.Sandbox{a})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	defer func() { cancel(); <-done }()
	for alive(was[0]) { // it answers all the time
		if got := ask(a, "web."); got != "NOERROR 10.0.0.1" {
			t.Fatalf("while it is replaced: %s", got)
		}
	}
	if got := ask(a, "web."); got != "NOERROR 10.0.0.1" {
		t.Errorf("afterwards: %s", got)
	}
}

// Serving ends with its context; the resolver does it once it can.
func TestNobodyWaitsForAResolverThatDoesNotStart(t *testing.T) {
	n := newNode(t)
	o := n.o
	o.Binary = filepath.Join(t.TempDir(), "missing")
	r, _ := n.agent(o)
	a := n.container("a")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Serve(ctx, a); ctx.Err() == nil || err == nil {
		t.Errorf("serving by nobody: %v", err)
	}
	if err := os.Symlink(n.o.Binary, o.Binary); err != nil {
		t.Fatal(err)
	}
	n.fleet.mu.Lock()
	n.fleet.names = []resolverapi.Name{name("web", "10.0.0.1")}
	n.fleet.mu.Unlock()
	n.served(a, "web.", "NOERROR 10.0.0.1")
}

func TestManyChangesAreToldAsAWhole(t *testing.T) {
	r := New(Options{Names: &fleet{}})
	if m := r.next(); !m.Full {
		t.Fatal("the first message does not say everything")
	}
	for range 3 { // one message, as nothing is between them
		r.Changed(nil, nil, []resolverapi.Name{name("web", "10.0.0.1")})
	}
	if m := r.next(); m.Full || len(m.Names) != 3 {
		t.Errorf("three changes are %+v", m)
	}
	for i := range maxPending + 1 {
		r.Changed(nil, []resolverapi.Network{{ID: strconv.Itoa(i)}}, nil)
	}
	if m := r.next(); !m.Full {
		t.Errorf("after very many changes comes %+v", m)
	}
	if m := r.next(); m != nil {
		t.Errorf("and then %+v", m)
	}
}
