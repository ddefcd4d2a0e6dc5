package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

func TestFleet(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c", "d")
	f.Quorum()
	a := f.Hosts[0]
	t.Log("\n" + a.Must("node", "ls") + a.Must("controller", "ls"))
	a.Must("pull", "alpine")
	for _, h := range f.Hosts {
		r := h.Drover("run", "--rm", "alpine", "echo", "hello")
		if r.Code != 0 || strings.TrimSpace(r.Out) != "hello" {
			t.Fatalf("run on %s: %v\n%s", h.Name, r, a.Logs())
		}
	}
}

// Every run ends with its output and code, exactly once, although the leader dies.
func TestLeaderDiesInTheMiddleOfRuns(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a := f.Hosts[0]
	a.Must("pull", "alpine")
	var runs sync.WaitGroup
	var done atomic.Int32
	for n, h := range f.Hosts {
		runs.Go(func() {
			for i := range 34 {
				want := fmt.Sprintf("%s %d", h.Name, i)
				r := h.Drover("run", "--rm", "--name", "again-"+h.Name, "alpine", "/bin/sh", "-c", fmt.Sprintf("echo %s; exit %d", want, (i+n)%7))
				if r.Code != (i+n)%7 || strings.TrimSpace(r.Out) != want {
					t.Errorf("run %d on %s: %v", i, h.Name, r)
				}
				done.Add(1)
			}
		})
	}
	for k := range 3 {
		f.Eventually(time.Minute, "runs go on", func() bool { return int(done.Load()) > 10+25*k })
		l := f.Leader()
		l.Kill("controller", "--data-dir")
		t.Logf("the controller of %s was killed after %d runs", l.Name, done.Load())
	}
	runs.Wait()
	if left := a.Must("ps", "-aq"); left != "" {
		t.Fatalf("left behind: %s", left)
	}
	for _, h := range f.Hosts {
		nothingLeft(t, f, h)
	}
}

// What users do on a fleet, from any host.
func TestWalkThroughOfAFleet(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c", "d")
	f.Quorum()
	a, b, c, d := f.Hosts[0], f.Hosts[1], f.Hosts[2], f.Hosts[3]

	t.Run("one published port a host, and then no more", func(t *testing.T) {
		on := map[string]bool{}
		for _, h := range f.Hosts {
			id := strings.TrimSpace(h.Must("run", "-d", "-p", "8080:80", "web"))
			on[strings.TrimSpace(a.Must("inspect", "-f", `{{index .Config.Labels "io.drover.node"}}`, id))] = true
		}
		if len(on) != 4 {
			t.Errorf("four of them are on %v", on)
		}
		for _, h := range f.Hosts {
			if r := a.In(nil, "curl", "-sS", "-m5", "http://"+h.Addr+":8080/"); r.Code != 0 {
				t.Errorf("curl %s: %v", h.Name, r)
			}
		}
		r := c.Drover("run", "-d", "-p", "8080:80", "web")
		if r.Code != 125 || !strings.Contains(r.Err, "port is already allocated") || !strings.Contains(r.Err, "on 4 of 4 nodes: a (by ") {
			t.Errorf("the fifth: %v", r)
		}
		b.Must(append([]string{"rm", "-f"}, strings.Fields(d.Must("ps", "-aq"))...)...)
	})

	t.Run("each and on", func(t *testing.T) {
		lines := strings.Split(strings.TrimSpace(d.Must("run", "--each", "--rm", "alpine", "/bin/sh", "-c", "echo on $DROVER_NODE")), "\n")
		slices.Sort(lines)
		if want := "a | on a,b | on b,c | on c,d | on d"; strings.Join(lines, ",") != want {
			t.Errorf("run --each gave %q", lines)
		}
		if r := a.Drover("run", "--each", "--rm", "alpine", "/bin/sh", "-c", "[ $DROVER_NODE != b ] || exit 4"); r.Code != 1 || !strings.Contains(r.Err, "failed on 1 of 4 nodes: b") {
			t.Errorf("one of four fails: %v", r)
		}
		for _, h := range f.Hosts {
			if out := h.Must("run", "--on", "node==c", "--rm", "alpine", "/bin/sh", "-c", "echo $DROVER_NODE"); strings.TrimSpace(out) != "c" {
				t.Errorf("run --on node==c from %s ran on %q", h.Name, out)
			}
		}
		if r := b.Docker(nil, "run", "--rm", "-l", "io.drover.on=node==c", "alpine", "/bin/sh", "-c", "echo $DROVER_NODE"); strings.TrimSpace(r.Out) != "c" {
			t.Errorf("docker run -l io.drover.on=node==c: %v", r)
		}
		if r := a.Drover("run", "--on", "disk==ssd", "--rm", "alpine", "true"); r.Code != 125 || !strings.Contains(r.Err, "0 of 4 nodes fit") {
			t.Errorf("no node fits: %v", r)
		}
		a.Must("node", "label", "b", "disk=ssd")
		if out := d.Must("run", "--on", "disk==ssd", "--rm", "alpine", "/bin/sh", "-c", "echo $DROVER_NODE"); strings.TrimSpace(out) != "b" {
			t.Errorf("run --on disk==ssd ran on %q", out)
		}
		a.Must("node", "drain", "a", "c", "d")
		if out := a.Must("run", "--rm", "alpine", "/bin/sh", "-c", "echo $DROVER_NODE"); strings.TrimSpace(out) != "b" {
			t.Errorf("with the others drained it ran on %q", out)
		}
		a.Must("node", "activate", "a", "c", "d")
		a.Must("run", "-d", "--each", "--name", "s", "alpine", "sleep", "1000")
		if out := c.Must("exec", "--each", "s", "/bin/sh", "-c", "echo in $DROVER_NODE"); strings.Count(out, " | in ") != 4 {
			t.Errorf("exec --each: %s", out)
		}
		if out := a.Must("ps", "-q", "--filter", "node=d"); len(strings.Fields(out)) != 1 {
			t.Errorf("ps --filter node=d: %s", out)
		}
		a.Must("rm", "-f", "s-1", "s-2", "s-3", "s-4")
	})

	t.Run("another host's container through every host", func(t *testing.T) {
		a.Must("run", "-d", "--on", "node==d", "--name", "far", "alpine", "/bin/sh", "-c", "echo up; while read l; do echo got $l; done; sleep 1000")
		for _, h := range f.Hosts {
			if out := h.Must("exec", "far", "/bin/sh", "-c", "echo $DROVER_NODE"); strings.TrimSpace(out) != "d" {
				t.Errorf("exec through %s: %q", h.Name, out)
			}
			if r := h.Docker([]byte("piped"), "exec", "-i", "far", "cat"); r.Out != "piped" {
				t.Errorf("docker exec -i through %s: %v", h.Name, r)
			}
			if r := h.Docker(nil, "logs", "far"); r.Out != "up\n" {
				t.Errorf("docker logs through %s: %v", h.Name, r)
			}
			if out := h.Must("inspect", "-f", "{{.State.Status}}", "far"); strings.TrimSpace(out) != "running" {
				t.Errorf("inspect through %s: %q", h.Name, out)
			}
			if r := h.Docker([]byte("line\n"), "run", "--rm", "-i", "-l", "io.drover.on=node!="+h.Name, "alpine", "cat"); r.Out != "line\n" {
				t.Errorf("docker run -i through %s: %v", h.Name, r)
			}
		}
		c.Must("stop", "-t", "0", "far")
		if out := b.Must("ps", "-q"); out != "" {
			t.Errorf("after stop ps shows %s", out)
		}
		d.Must("rm", "far")
	})

	t.Run("an image that one host holds, without its registry", func(t *testing.T) {
		for _, h := range f.Hosts { // on no node
			_ = h.Drover("rmi", "-f", "ubuntu")
		}
		a.Must("pull", "ubuntu")
		f.StopRegistry()
		for _, h := range f.Hosts {
			if out := a.Must("run", "--rm", "--on", "node=="+h.Name, "ubuntu", "/bin/sh", "-c", "echo $DROVER_NODE"); strings.TrimSpace(out) != h.Name {
				t.Errorf("run on %s: %q", h.Name, out)
			}
		}
		r := d.In(nil, "curl", "-sS", "-m5", "-H", "Accept: application/vnd.oci.image.index.v1+json", "http://127.0.0.1:5000/v2/library/ubuntu/manifests/latest")
		if r.Code != 0 || !strings.Contains(r.Out, "sha256:") {
			t.Errorf("the mirror on d: %v", r)
		}
		if r := d.In(nil, "curl", "-sS", "-m5", "-o/dev/null", "-w%{http_code}", "-XPUT", "http://127.0.0.1:5000/v2/library/ubuntu/manifests/mine"); r.Out != "405" {
			t.Errorf("a push to the mirror: %v", r)
		}
		f.StartRegistry()
	})

	t.Run("one trace through two controllers", func(t *testing.T) {
		l := f.Leader()
		for _, h := range f.Hosts[:3] {
			if h == l {
				continue
			}
			h.Must("run", "--rm", "--on", "node==d", "alpine", "true")
			out := h.Must("trace", "last")
			for _, want := range []string{"drover@", "controller@" + h.Name, "controller@" + l.Name, "agent@d", "raft propose"} {
				if !strings.Contains(out, want) {
					t.Errorf("the trace at %s has no %s:\n%s", h.Name, want, out)
				}
			}
		}
	})
}

// A host that is cut off for a while becomes silent, then returns with nothing lost.
func TestAHostIsCutOff(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c", "d")
	f.Quorum()
	a, d := f.Hosts[0], f.Hosts[3]
	for _, h := range f.Hosts {
		a.Must("run", "-d", "--name", "on-"+h.Name, "--on", "node=="+h.Name, "alpine", "/bin/sh", "-c", "i=0; while true; do echo $i; i=$((i+1)); sleep 0.1; done")
	}
	for _, victim := range []*fleet.Host{d, f.Hosts[2], f.Leader()} {
		name := "on-" + victim.Name
		var from *fleet.Host
		for _, h := range f.Hosts[:3] {
			if h != victim {
				from = h
			}
		}
		started := from.Must("inspect", "-f", "{{.State.StartedAt}} {{.State.Pid}}", name)
		victim.Link(false)
		f.Eventually(10*time.Second, "ps says that "+victim.Name+" is silent", func() bool {
			return strings.Contains(from.Drover("ps", "--filter", "name="+name).Out, "node silent")
		})
		if r := from.Drover("exec", name, "true"); r.Code == 0 || !strings.Contains(r.Err, "has not answered") {
			t.Errorf("exec on a silent node: %v", r)
		}
		if out := from.Must("run", "--rm", "alpine", "echo", "meanwhile"); strings.TrimSpace(out) != "meanwhile" {
			t.Errorf("a run meanwhile: %q", out)
		}
		time.Sleep(3 * time.Second)
		victim.Link(true)
		f.Eventually(20*time.Second, victim.Name+" is back", func() bool {
			out := from.Drover("node", "ls").Out
			return !strings.Contains(out, "silent") && strings.Count(out, "ready") == 4
		})
		if now := from.Must("inspect", "-f", "{{.State.StartedAt}} {{.State.Pid}}", name); now != started {
			t.Errorf("%s was %s, is %s", name, started, now)
		}
		logs := strings.Fields(from.Must("logs", name))
		for i, x := range logs {
			if x != fmt.Sprint(i) {
				t.Fatalf("line %d of %s is %q", i, name, x)
			}
		}
	}
}

// With all controllers cut off from each other, reads are stale, writes fail with the
// reason, and a foreground run ends with its code.
func TestTheQuorumIsLost(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a := f.Hosts[0]
	a.Must("run", "-d", "--name", "stays", "--on", "node==a", "alpine", "sleep", "1000")
	result := make(chan fleet.Result, 1)
	go func() {
		result <- a.Drover("run", "--rm", "--name", "fore", "--on", "node==a", "alpine", "/bin/sh", "-c", "echo begun; sleep 6; echo done; exit 5")
	}()
	f.Eventually(10*time.Second, "it runs", func() bool { return strings.Contains(a.Drover("ps").Out, "fore") })
	for _, h := range f.Hosts {
		h.Link(false)
	}
	f.Eventually(10*time.Second, "ps answers as stale", func() bool {
		r := a.Drover("ps")
		return r.Code == 0 && strings.Contains(r.Out, "stays") && strings.Contains(r.Err, "no leader")
	})
	if r := a.Drover("run", "-d", "alpine", "true"); r.Code == 0 || !strings.Contains(r.Err, "no leader") {
		t.Errorf("a write without a quorum: %v", r)
	}
	if r := a.Drover("exec", "stays", "echo", "still here"); strings.TrimSpace(r.Out) != "still here" {
		t.Errorf("exec without a quorum: %v", r)
	}
	r := <-result
	if r.Code != 5 || r.Out != "begun\ndone\n" || !strings.Contains(r.Err, "no leader") {
		t.Errorf("a foreground run without a quorum: %v", r)
	}
	for _, h := range f.Hosts {
		h.Link(true)
	}
	f.Eventually(20*time.Second, "writes again", func() bool { return a.Drover("run", "--rm", "alpine", "true").Code == 0 })
	f.Eventually(20*time.Second, "what ended meanwhile is recorded", func() bool {
		return strings.TrimSpace(a.Drover("ps", "-a", "--format", "{{.Names}}").Out) == "stays"
	})
}

// Everything is killed everywhere at once, and restarted in some order.
func TestAllHostsDieAtOnce(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a := f.Hosts[0]
	for _, shims := range []bool{false, true} {
		for _, h := range f.Hosts {
			a.Must("run", "-d", "--name", "on-"+h.Name, "--on", "node=="+h.Name, "alpine", "sleep", "1000")
		}
		a.Must("run", "--name", "ended", "alpine", "true")
		for _, h := range f.Hosts {
			for _, what := range []string{"up", "controller", "agent", "drover-containerd"} {
				h.Kill(what, "--data-dir")
				h.Kill(what)
			}
			if shims {
				h.Kill("drover-shim")
				h.Kill("sleep")
			}
		}
		for _, h := range []*fleet.Host{f.Hosts[2], f.Hosts[0], f.Hosts[1]} {
			h.Start()
		}
		f.Eventually(40*time.Second, "all nodes are back", func() bool {
			out := a.Drover("node", "ls").Out
			return strings.Count(out, "ready") == 3 && !strings.Contains(out, "silent")
		})
		want, state := 3, "running"
		if shims {
			want, state = 0, "exited"
		}
		f.Eventually(20*time.Second, "ps is as it should be", func() bool {
			return len(strings.Fields(a.Drover("ps", "-q").Out)) == want
		})
		for _, h := range f.Hosts {
			if got := strings.TrimSpace(h.Must("inspect", "-f", "{{.State.Status}}", "on-"+h.Name)); got != state {
				t.Errorf("on-%s is %s, not %s", h.Name, got, state)
			}
		}
		a.Must("rm", "-f", "ended", "on-a", "on-b", "on-c")
		if out := a.Must("ps", "-aq"); out != "" {
			t.Errorf("left: %s", out)
		}
	}
	for _, h := range f.Hosts {
		nothingLeft(t, f, h)
	}
}

// Controllers are started one after another, as by a person: the first one has no leader
// until there is a majority, and must still be running then.
func TestControllersAreStartedOneAfterAnother(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	for _, h := range f.Hosts {
		for _, what := range []string{"up", "controller", "agent", "drover-containerd"} {
			h.Kill(what, "--data-dir")
			h.Kill(what)
		}
	}
	first, second := f.Hosts[0], f.Hosts[1]
	want(t, first.TryUp(), 1, "drover runs on a", "takes no part in its fleet yet")
	want(t, second.TryUp(), 0, "drover is up on b")
	f.Eventually(20*time.Second, "both do their part", func() bool {
		return first.Drover("run", "--rm", "--on", "node==a", "hello-world").Code == 0
	})
	second.Must("run", "--rm", "--on", "node==b", "hello-world")
}

// A frozen leader is no leader: the others continue without it, and it rejoins when it
// thaws.
func TestTheLeaderIsFrozen(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	f.Hosts[0].Must("pull", "alpine")
	l := f.Leader()
	var from *fleet.Host
	for _, h := range f.Hosts {
		if h != l {
			from = h
		}
	}
	stop := func(sig syscall.Signal) {
		for _, pid := range l.Pids("controller", "--data-dir") {
			_ = syscall.Kill(pid, sig)
		}
	}
	t.Cleanup(func() { stop(syscall.SIGCONT) })
	done := make(chan fleet.Result, 1)
	go func() {
		done <- from.Drover("run", "--rm", "alpine", "/bin/sh", "-c", "echo one; sleep 2; echo two")
	}()
	time.Sleep(500 * time.Millisecond)
	stop(syscall.SIGSTOP)
	if r := from.Drover("run", "--rm", "--on", "node=="+from.Name, "alpine", "echo", "written"); strings.TrimSpace(r.Out) != "written" {
		t.Errorf("with the leader frozen: %v", r)
	}
	if r := l.Drover("ps", "-q"); r.Code != 0 {
		t.Errorf("on the frozen controller's own host: %v", r)
	}
	if r := <-done; r.Code != 0 || r.Out != "one\ntwo\n" {
		t.Errorf("the run in progress: %v", r)
	}
	stop(syscall.SIGCONT)
	for i := range 10 { // it has heard nobody for long, and must not report the others as silent
		if r := from.Drover("create", "alpine", "true"); r.Code != 0 {
			t.Errorf("create %d after the thaw: %v", i, r)
		}
	}
	f.Eventually(20*time.Second, "the thawed one follows", func() bool {
		out := l.Drover("node", "ls").Out
		return strings.Count(out, "ready") == 3 && !strings.Contains(out, "silent")
	})
	l.Must("run", "--rm", "alpine", "true")
}

// A host that may not join is told why, and nothing changes.
func TestJoinsThatAreRefused(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	a, b, c := f.Hosts[0], f.Hosts[1], f.Hosts[2]
	a.Up()
	token := strings.TrimSpace(a.Must("token", "create", "-q"))
	refused := func(h *fleet.Host, at *fleet.Host, token, words string, more ...string) {
		t.Helper()
		r := h.TryJoin(at, token, more...)
		if r.Code == 0 || !strings.Contains(r.Err, words) {
			t.Errorf("join: %v, want %q", r, words)
		}
	}
	refused(b, a, "nonsense", "no join token")
	refused(b, a, token[:len(token)-4]+"aaaa", "not one of this fleet's")
	other := strings.TrimSpace(a.Must("token", "create", "-q"))
	a.Must("token", "revoke", strings.Split(other, "-")[2])
	refused(b, a, other, "revoked")
	short := strings.TrimSpace(a.Must("token", "create", "-q", "--ttl", "1ms"))
	refused(b, a, short, "expired")
	c.Up() // another fleet
	refused(b, c, token, "authority is another one")
	refused(b, a, token, "node name \"a\" is taken", "--node-name", "a")
	refused(c, a, token, "in a fleet already")
	if out := a.Must("node", "ls", "-q"); strings.TrimSpace(out) != "a" {
		t.Errorf("nodes: %q", out)
	}
	b.Join(a, token)
	if out := a.Must("node", "ls", "-q"); strings.TrimSpace(out) != "a\nb" {
		t.Errorf("nodes: %q", out)
	}
	// A token for agents admits no controller, and the socket of such a host grants no
	// rights by itself.
	if out := a.Must("controller", "ls"); strings.Count(out, "\n") != 2 {
		t.Errorf("controllers: %s", out)
	}
	if r := b.Drover("ps"); r.Code == 0 || !strings.Contains(r.Err, "drover node grant b") {
		t.Errorf("ps on an agent's host: %v", r)
	}
	a.Must("node", "grant", "b", "--role", "user")
	b.Must("run", "--rm", "alpine", "true")
	if r := b.Drover("token", "create"); r.Code == 0 || !strings.Contains(r.Err, "not an admin") {
		t.Errorf("a token made by a user: %v", r)
	}
	if r := a.Drover("node", "rm", "b"); r.Code == 0 || !strings.Contains(r.Err, "is up") {
		t.Errorf("rm of a node that is up: %v", r)
	}
	a.Must("node", "rm", "-f", "b")
	f.Eventually(10*time.Second, "b is refused", func() bool { return strings.Contains(b.Drover("ps").Err, "no longer a node of the fleet") })
}

// When a follower that relays an attach dies, the output continues without a gap at
// another controller, and so does the container.
func TestARelayingControllerDies(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a := f.Hosts[0]
	a.Must("pull", "alpine")
	for _, victim := range []string{"follower", "leader"} {
		l := f.Leader()
		from := l
		for _, h := range f.Hosts {
			if victim == "follower" && h != l {
				from = h
			}
		}
		result := make(chan fleet.Result, 1)
		go func() {
			result <- from.Drover("run", "--rm", "--name", "long", "--on", "node!="+from.Name, "alpine", "/bin/sh", "-c", "i=0; while [ $i -lt 40 ]; do echo $i; echo e$i >&2; i=$((i+1)); sleep 0.1; done; exit 9")
		}()
		f.Eventually(10*time.Second, "it runs", func() bool { return strings.Contains(from.Drover("ps").Out, "long") })
		time.Sleep(time.Second)
		from.Kill("controller", "--data-dir")
		r := <-result
		var want, errs strings.Builder
		for i := range 40 {
			fmt.Fprintln(&want, i)
			fmt.Fprintf(&errs, "e%d\n", i)
		}
		if r.Code != 9 || r.Out != want.String() || r.Err != errs.String() {
			t.Errorf("the %s died: %v", victim, r)
		}
		f.Voters(3)
	}
}

// The host of a removed controller continues as an agent and says so; a spare controller
// votes in its place.
func TestAControllerIsRemoved(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c", "d")
	a := f.Hosts[0]
	a.Up()
	for _, h := range f.Hosts[1:] {
		h.Join(a, a.Must("token", "create", "-q", "--role", "controller"))
	}
	f.Voters(3) // of four
	l := f.Leader()
	l.Must("run", "-d", "--name", "stays", "--on", "node=="+l.Name, "alpine", "sleep", "1000")
	var from *fleet.Host
	for _, h := range f.Hosts {
		if h != l {
			from = h
		}
	}
	// An identity copied off the host is no longer accepted anywhere, and its connections
	// are cut: otherwise an idle one would live for fifteen seconds.
	stolen := t.TempDir()
	for _, n := range []string{"cert.pem", "key.pem"} {
		b, err := os.ReadFile(filepath.Join(l.Dir, "data", "controller", "pki", n))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(stolen, n), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := func(patience string) fleet.Result {
		return from.In(nil, "timeout", patience, "openssl", "s_client", "-ign_eof", "-quiet", "-connect", from.Addr+":7444", "-alpn", "drover-bulk/1", "-cert", stolen+"/cert.pem", "-key", stolen+"/key.pem")
	}
	if r := at("1"); r.Code != 124 {
		t.Fatalf("a controller's certificate at an agent's port: %v", r)
	}
	open := make(chan time.Time, 1)
	go func() { _ = at("30"); open <- time.Now() }()
	f.Eventually(10*time.Second, "it is connected", func() bool {
		return from.In(nil, "ss", "-Htn", "state", "established", "src", from.Addr, "dst", from.Addr+":7444").Out != ""
	})
	l.Must("controller", "rm", l.Name)
	removed := time.Now()
	if took := (<-open).Sub(removed); took > 8*time.Second {
		t.Errorf("the removed controller's connection lived for %v", took)
	}
	if r := at("5"); r.Code == 124 {
		t.Error("the removed controller's certificate is let in")
	}
	f.Eventually(30*time.Second, "three of three vote", func() bool {
		out := from.Drover("controller", "ls").Out
		return strings.Count(out, " voter ")+strings.Count(out, " leader ") == 3 && strings.Count(out, "\n") == 4
	})
	f.Eventually(20*time.Second, "its host's socket is an agent's", func() bool { return strings.Contains(l.Drover("ps").Err, "drover node grant "+l.Name) })
	from.Must("node", "grant", l.Name, "--role", "user")
	f.Eventually(20*time.Second, "it serves the fleet as before", func() bool { return strings.Contains(l.Drover("ps").Out, "stays") })
	if out := from.Must("inspect", "-f", "{{.State.Status}}", "stays"); strings.TrimSpace(out) != "running" {
		t.Errorf("its container is %s", out)
	}
}
