// Package e2e tests real fleets through the product's own interfaces.
package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/drover/drover/e2e/fleet"
)

func TestOneHost(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a")
	h := f.Hosts[0]
	h.Up()
	t.Run("hello-world is pulled once", func(t *testing.T) { helloWorld(t, h) })
	t.Run("images", func(t *testing.T) { imagesAndRmi(t, h) })
	t.Run("ports", func(t *testing.T) { ports(t, h) })
	t.Run("stop, start, files", func(t *testing.T) { stopStart(t, h) })
	t.Run("terminal", func(t *testing.T) { terminal(t, f, h) })
	t.Run("events", func(t *testing.T) { eventsTell(t, h) })
	t.Run("exit codes and bad input", func(t *testing.T) { badInput(t, f, h) })
	t.Run("docker's own client", func(t *testing.T) { dockersClient(t, h) })
	t.Run("exits beside the look of every two seconds", func(t *testing.T) {
		var all sync.WaitGroup
		for range 12 {
			all.Go(func() {
				if r := h.Drover("run", "--rm", "alpine", "/bin/sh", "-c", "sleep 2; exit 7"); r.Code != 7 {
					t.Errorf("it ended with %v", r)
				}
			})
		}
		all.Wait()
	})
	t.Run("nothing is left", func(t *testing.T) { nothingLeft(t, f, h) })
}

func want(t *testing.T, r fleet.Result, code int, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !regexp.MustCompile(`(?s)` + p).MatchString(r.Out + r.Err) {
			t.Fatalf("no %q in %v", p, r)
		}
	}
	if r.Code != code {
		t.Fatalf("want exit code %d, got %v", code, r)
	}
}

func removeAll(t *testing.T, h *fleet.Host) {
	t.Helper()
	if ids := strings.Fields(h.Must("ps", "-aq")); len(ids) > 0 {
		h.Must(append([]string{"rm", "-f"}, ids...)...)
	}
	if out := h.Must("ps", "-aq"); out != "" {
		t.Fatalf("still there after rm -f: %s", out)
	}
}

func helloWorld(t *testing.T, h *fleet.Host) {
	r := h.Drover("run", "hello-world")
	want(t, r, 0, "Unable to find image 'hello-world:latest' locally", "Pulling from library/hello-world",
		"Digest: sha256:[0-9a-f]{64}", "Status: Downloaded newer image for hello-world:latest", "Hello from drover!")
	if strings.Contains(r.Out, "Pulling") {
		t.Fatalf("progress belongs on stderr: %v", r)
	}
	r = h.Drover("run", "hello-world")
	want(t, r, 0, "Hello from drover!")
	if r.Err != "" {
		t.Fatalf("the second run talks: %v", r)
	}
	if out := strings.TrimSpace(h.Must("ps", "-q")); out != "" {
		t.Fatalf("ps shows ended containers: %s", out)
	}
	want(t, h.Drover("ps", "-a"), 0, "NODE", `hello-world .*Exited \(0\) .*second.* ago.*[a-z]+_[a-z]+ +a`)
	want(t, h.Drover("info"), 0, `Containers: 2`, `Running: 0`, `Stopped: 2`, `Images: 1`)
	want(t, h.Drover("images"), 0, "hello-world +latest")
	removeAll(t, h)
}

func imagesAndRmi(t *testing.T, h *fleet.Host) {
	want(t, h.Drover("pull", "alpine"), 0, "latest: Pulling from library/alpine", "Downloaded newer image for alpine:latest", "docker.io/library/alpine:latest")
	want(t, h.Drover("pull", "alpine"), 0, "Image is up to date for alpine:latest")
	want(t, h.Drover("images"), 0, "hello-world", "alpine")
	want(t, h.Drover("rmi", "alpine"), 0, "Untagged: alpine:latest", "Deleted: sha256:")
	want(t, h.Drover("rmi", "alpine"), 1, "No such image: alpine")
	h.Must("run", "--name", "user", "hello-world")
	want(t, h.Drover("rmi", "hello-world"), 1, "unable to (delete|remove)", "conflict")
	removeAll(t, h)
	want(t, h.Drover("run", "nosuch"), 125, "pull access denied|not found")
}

func ports(t *testing.T, h *fleet.Host) {
	h.Must("run", "-d", "--name", "web", "-p", "8080:80", "web")
	get(t, "http://"+h.Addr+":8080/", "on node")
	want(t, h.Drover("ps"), 0, `0\.0\.0\.0:8080->80/tcp`)
	want(t, h.Drover("run", "-d", "-p", "8080:80", "web"), 125, "port is already allocated")
	want(t, h.Drover("run", "--rm", "-p", "8080:80", "web"), 125, "port is already allocated")
	l := exec.Command("nsenter", "--net=/var/run/netns/"+h.Netns, "busybox", "nc", "-l", "-p", "8099")
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Process.Kill(); _ = l.Wait() }()
	time.Sleep(200 * time.Millisecond) // a foreign process doesn't report when it listens
	want(t, h.Drover("run", "-d", "-p", "8099:80", "web"), 125, "address already in use")
	want(t, h.Drover("run", "-d", "-p", "99999:80", "web"), 125, "[Ii]nvalid|range")
	removeAll(t, h)
	if _, err := (&http.Client{Timeout: time.Second}).Get("http://" + h.Addr + ":8080/"); err == nil {
		t.Fatal("the port answers though its container is gone")
	}
}

func get(t *testing.T, url, part string) {
	t.Helper()
	var r *http.Response
	var err error
	for range 50 { // run returns when the process has started, not when it listens
		if r, err = (&http.Client{Timeout: 5 * time.Second}).Get(url); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if b, _ := io.ReadAll(r.Body); !strings.Contains(string(b), part) {
		t.Fatalf("%s answers %q", url, b)
	}
}

func stopStart(t *testing.T, h *fleet.Host) {
	id := strings.TrimSpace(h.Must("run", "-d", "--name", "keeper", "alpine", "sh", "-c", "echo x >> /f; exec sleep 1000"))
	want(t, h.Drover("exec", "keeper", "cat", "/f"), 0, "x")
	h.Must("stop", "-t", "1", "keeper")
	want(t, h.Drover("ps", "-a"), 0, `Exited \(137\).*keeper`)
	h.Must("start", "keeper")
	if got := strings.TrimSpace(h.Must("inspect", "-f", "{{.Id}}", "keeper")); got != id {
		t.Fatalf("start gave another id: %s, was %s", got, id)
	}
	if r := h.Drover("exec", "keeper", "wc", "-l", "/f"); !strings.HasPrefix(strings.TrimSpace(r.Out), "2") {
		t.Fatalf("files were lost: %v", r)
	}
	want(t, h.Drover("run", "--name", "keeper", "alpine"), 125, `The container name "/keeper" is already in use`)
	removeAll(t, h)
}

func terminal(t *testing.T, f *fleet.Fleet, h *fleet.Host) {
	typed := "sleep 1; printf 'tty\\n'; sleep 0.5; printf 'exit 3\\n'"
	r := h.In(nil, "sh", "-c", fmt.Sprintf("(%s) | script -qec '%s/drover run -it --rm alpine /bin/sh' /dev/null", typed, f.Bin))
	want(t, r, 3, "/ # ", "/dev/pts/0")
	// After detaching by keys the container keeps running; attached again, attach ends
	// with its code.
	typed = "sleep 1; printf 'echo first\\n'; sleep 0.5; printf '\\020\\021'; sleep 1"
	r = h.In(nil, "sh", "-c", fmt.Sprintf("(%s) | script -qec '%s/drover run -it --name left alpine /bin/sh' /dev/null", typed, f.Bin))
	want(t, r, 0, "first")
	want(t, h.Drover("ps"), 0, "Up .*left")
	typed = "sleep 1; printf 'exit 4\\n'"
	want(t, h.In(nil, "sh", "-c", fmt.Sprintf("(%s) | script -qec '%s/drover attach left' /dev/null", typed, f.Bin)), 4)
	want(t, h.In(nil, "sh", "-c", fmt.Sprintf("(sleep 1; printf 'exit 6\\n'; sleep 0.5) | script -qec '%s/drover start -ai left' /dev/null", f.Bin)), 6)
	removeAll(t, h)
}

// eventsTell checks what docker's clients read from the event stream.
func eventsTell(t *testing.T, h *fleet.Host) {
	since := fmt.Sprint(time.Now().Unix())
	h.Must("pull", "busybox")
	h.Must("run", "-d", "--name", "ev", "busybox", "sleep", "1000")
	h.Must("exec", "ev", "true")
	h.Must("rm", "-f", "ev")
	h.Must("rmi", "busybox")
	var out string
	var missing []string
	for range 50 { // an agent's own events arrive later, and until is in whole seconds
		out, missing = h.Must("events", "--since", since, "--until", fmt.Sprint(time.Now().Unix()), "--format", "{{.Type}} {{.Action}}"), nil
		for _, e := range []string{"image pull", "image tag", "container create", "container start", "container exec_create: true", "container exec_start: true", "container exec_die", "container die", "container destroy", "image untag", "image delete"} {
			if !strings.Contains(out, e+"\n") {
				missing = append(missing, e)
			}
		}
		if len(missing) == 0 {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Errorf("no %q among\n%s", missing, out)
}

func badInput(t *testing.T, f *fleet.Fleet, h *fleet.Host) {
	want(t, h.Drover("run", "--rm", "alpine", "sh", "-c", "exit 7"), 7)
	want(t, h.Drover("run", "--rm", "alpine", "nope"), 127, "executable file not found")
	want(t, h.Drover("run", "--rm", "alpine", "/etc"), 126, "permission denied|is a directory")
	want(t, h.Drover("run", "--nope", "alpine"), 125, "unknown flag: --nope")
	want(t, h.Drover("pss"), 1, "ps")
	want(t, h.Drover("stop", "nosuch"), 1, "No such container: nosuch")
	f.StopRegistry()
	want(t, h.Drover("pull", "ubuntu"), 1, "registry|connect")
	f.StartRegistry()
	if out := h.Must("ps", "-aq"); out != "" {
		t.Fatalf("bad input left containers: %s", out)
	}
}

func dockersClient(t *testing.T, h *fleet.Host) {
	if _, err := exec.LookPath("docker"); err != nil {
		t.Log("no docker client on this machine: the Go client's tests stand for it")
		return
	}
	if r := h.Docker([]byte("through\n"), "run", "--rm", "-i", "alpine", "cat"); r.Code != 0 || r.Out != "through\n" {
		t.Fatalf("docker run -i: %v", r)
	}
	want(t, h.DroverIn(make([]byte, 1<<20), "run", "--rm", "-i", "-a", "stdin", "alpine", "sh", "-c", "test $(wc -c) = 1048576"), 0)
	pki := h.Dir + "/data/admin/"
	tls := []string{"docker", "-H", "tcp://" + h.Addr + ":7443", "--tlsverify", "--tlscacert", pki + "ca.pem", "--tlscert", pki + "cert.pem", "--tlskey", pki + "key.pem"}
	if r := h.In([]byte("over tls\n"), append(tls, "run", "--rm", "-i", "alpine", "cat")...); r.Code != 0 || r.Out != "over tls\n" {
		t.Fatalf("docker run -i over mTLS: %v", r)
	}
	h.Must("run", "-d", "--name", "talker", "alpine", "sh", "-c", "echo one; sleep 1; echo two")
	if r := h.Docker(nil, "logs", "-f", "talker"); r.Out != "one\ntwo\n" {
		t.Fatalf("docker logs -f: %v", r)
	}
	want(t, h.Docker(nil, "ps", "-a"), 0, "talker")
	want(t, h.Docker(nil, "images"), 0, "alpine")
	removeAll(t, h)
}

func TestAHundredRunsInARow(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a")
	h := f.Hosts[0]
	h.Up()
	for i := range 100 {
		text := fmt.Sprintf("run %d %s", i, strings.Repeat("x", 3000))
		if r := h.Drover("run", "--rm", "--name", "x", "alpine", "echo", text); r.Code != 0 || r.Out != text+"\n" {
			t.Fatalf("run %d: %v", i, r)
		}
	}
	nothingLeft(t, f, h)
}

// A process that stops responding for a while costs no container and no answered request.
func TestAProcessIsFrozen(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a")
	h := f.Hosts[0]
	h.Up()
	for _, victim := range []string{"controller", "agent", "drover-containerd"} {
		t.Run(victim, func(t *testing.T) {
			name := "fz-" + strings.TrimPrefix(victim, "drover-")
			h.Must("run", "-d", "--name", name, "alpine", "sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done")
			pids := h.Pids(victim)
			if len(pids) == 0 {
				t.Fatalf("no %s", victim)
			}
			for _, p := range pids {
				_ = syscall.Kill(p, syscall.SIGSTOP)
			}
			time.Sleep(4 * time.Second) // longer than leases and the intervals of beats and silence
			for _, p := range pids {
				_ = syscall.Kill(p, syscall.SIGCONT)
			}
			f.Eventually(20*time.Second, "exec works", func() bool { return h.Drover("exec", name, "echo", "in").Out == "in\n" })
			h.Must("stop", "-t", "1", name)
			out := strings.Fields(h.Must("logs", name))
			for i, l := range out {
				if l != fmt.Sprint(i) {
					t.Fatalf("line %d says %s", i, l)
				}
			}
			if len(out) < 100 {
				t.Fatalf("only %d lines", len(out))
			}
			h.Must("rm", name)
		})
	}
	nothingLeft(t, f, h)
}

// When processes of drover are killed, containers keep running, no line is lost or
// duplicated, and every command works afterwards.
func TestKills(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a")
	h := f.Hosts[0]
	h.Up()
	const lines = 1_000_000
	for _, victim := range [][]string{{"agent"}, {"drover-containerd"}, {"controller"}} {
		t.Run(victim[0], func(t *testing.T) {
			name := "w-" + victim[0]
			h.Must("run", "-d", "--name", name, "alpine", "sh", "-c", fmt.Sprintf("seq 1 %d; exec sleep 1000", lines))
			if n := h.Kill(victim...); n == 0 {
				t.Fatalf("no %s to kill", victim[0])
			}
			verbsWork(t, f, h, name, lines)
		})
	}
	t.Run("everything but the shims", func(t *testing.T) {
		h.Must("run", "-d", "--name", "w-all", "alpine", "sh", "-c", fmt.Sprintf("seq 1 %d; exec sleep 1000", lines))
		h.Kill("up")
		h.Kill("controller")
		h.Kill("agent")
		h.Kill("drover-containerd")
		h.Up()
		verbsWork(t, f, h, "w-all", lines)
	})
	nothingLeft(t, f, h)
}

func verbsWork(t *testing.T, f *fleet.Fleet, h *fleet.Host, name string, lines int) {
	t.Helper()
	f.Eventually(30*time.Second, "all lines are in the log of "+name, func() bool {
		return strings.HasSuffix(h.Drover("logs", "--tail", "1", name).Out, fmt.Sprintf("%d\n", lines))
	})
	seq, err := exec.Command("seq", "1", fmt.Sprint(lines)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := h.Must("logs", name); got != string(seq) {
		t.Fatalf("the log differs from what was written: %d bytes, want %d", len(got), len(seq))
	}
	f.Eventually(20*time.Second, "exec works", func() bool { return h.Drover("exec", name, "echo", "in").Out == "in\n" })
	h.Must("stop", "-t", "1", name)
	want(t, h.Drover("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name), 0, "exited 137")
	h.Must("rm", name)
}

func nothingLeft(t *testing.T, f *fleet.Fleet, h *fleet.Host) {
	removeAll(t, h)
	const spare = "spare-" // begins the names of what a shim has that waits for a container
	f.Eventually(45*time.Second, "shims, mounts and control groups are gone", func() bool {
		spares, _ := filepath.Glob(h.Dir + "/run/shims/" + spare + "*")
		return len(spares) <= 1 && len(h.Pids("drover-shim")) == len(spares) && len(f.Mounts()) == 0 && len(h.Cgroups()) == 0
	})
	out, err := exec.Command("nsenter", "--net=/var/run/netns/"+h.Netns, "ip", "-o", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(out), "veth") > 1 { // its own eth0 is one end of a veth
		t.Fatalf("links are left:\n%s", out)
	}
	for _, dir := range []string{"/run/netns", "/run/shims", "/data/tasks", "/data/network", "/run/t"} {
		f.Eventually(40*time.Second, dir+" is empty", func() bool {
			e, _ := os.ReadDir(h.Dir + dir)
			return !slices.ContainsFunc(e, func(e os.DirEntry) bool { return !strings.HasPrefix(e.Name(), spare) })
		})
	}
	c, err := client.New(h.Dir+"/run/containerd.sock", client.WithDefaultNamespace("drover"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := namespaces.WithNamespace(t.Context(), "drover")
	if cs, err := c.Containers(ctx); err != nil || len(cs) > 0 {
		t.Fatalf("containers are left in containerd: %v %v", cs, err)
	}
	if ls, err := c.LeasesService().List(ctx); err != nil || len(ls) > 0 {
		t.Fatalf("leases are left: %v %v", ls, err)
	}
	err = c.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind != snapshots.KindCommitted {
			return fmt.Errorf("snapshot %s is left", i.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	rules, err := exec.Command("nsenter", "--net=/var/run/netns/"+h.Netns, "nft", "list", "map", "inet", "drover_drover0", "any_tcp").CombinedOutput()
	if err != nil || strings.Contains(string(rules), "elements") {
		t.Fatalf("published ports are left (%v):\n%s", err, rules)
	}
}
