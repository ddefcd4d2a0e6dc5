package engine_test

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/drover/drover/agent/containerd"
	"github.com/drover/drover/agent/engine"
	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/task/enginetest"
	"github.com/drover/drover/agent/volume"
	testimages "github.com/drover/drover/deploy/images"
	upstream "github.com/drover/drover/pkg/registry"
	"github.com/drover/drover/pkg/testenv"
)

// world is a real containerd, network and registry.
type world struct {
	t         *testing.T
	dir, run  string
	socket    string // of containerd
	o         engine.Options
	images    images.Options
	told      *told
	ref, dgst string
	ready     chan struct{} // gets a token each time that containerd is up
}

func TestMain(m *testing.M) { testenv.Main(m) }

// seq numbers the worlds' bridges, apart from those of tests that run beside these.
var seq = 100 + os.Getpid()%150

func newWorld(t *testing.T) *world {
	t.Helper()
	testenv.Root(t)
	w := &world{t: t, dir: t.TempDir(), ready: make(chan struct{}, 8)}
	run, err := os.MkdirTemp("/run", "dven")
	if err != nil {
		t.Fatal(err)
	}
	w.run = run
	testenv.BuildShim(t, w.dir+"/drover-shim")
	testenv.Build(t, w.dir+"/drover-containerd", "../containerd/drover-containerd")
	testenv.Build(t, w.dir+"/drover-resolver", "../resolver/drover-resolver")
	testenv.Build(t, w.dir+"/drover-archive", "../archive/drover-archive")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	co := containerd.Options{Binary: w.dir + "/drover-containerd", Root: w.dir + "/root", State: run + "/st", Socket: run + "/s", LogTo: w.dir + "/log", Log: slog.New(slog.DiscardHandler)}
	go func() { _ = containerd.Supervise(ctx, co, func() { w.ready <- struct{}{} }); close(done) }()
	seq++
	net, err := network.Open(t.Context(), network.Options{Dir: w.dir + "/net", NetnsDir: run + "/ns", Bridge: "dvent" + strconv.Itoa(seq), Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 199, byte(seq), 0}), 24),
		Prefix: "e" + strconv.Itoa(seq) + "n", Tunnel: "e" + strconv.Itoa(seq) + "x"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		<-done
		w.kill("drover-shim")
		w.kill("drover-containerd")
		w.kill("drover-resolver")
		if err := net.Destroy(context.Background()); err != nil {
			t.Error(err)
		}
		w.unmount()
		_ = os.RemoveAll(run)
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/drover/enginetest" + strconv.Itoa(seq))
		for _, g := range groups {
			subs, _ := filepath.Glob(g + "/*")
			for _, s := range append(subs, g) {
				_ = os.Remove(s)
			}
		}
	})
	w.up()
	srv := httptest.NewServer(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0))))
	t.Cleanup(srv.Close)
	w.ref, w.dgst = pushBusybox(t, strings.TrimPrefix(srv.URL, "http://"))
	reg, err := upstream.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	w.o = engine.Options{DataDir: w.dir, RunDir: run, NodeID: "enginetest" + strconv.Itoa(seq), HostName: "h", ClusterID: "c",
		ShimPath: w.dir + "/drover-shim", ArchivePath: func() (string, error) { return w.dir + "/drover-archive", nil }, Network: net, Spares: 1}
	w.tell(net)
	w.socket, w.images.Registry = co.Socket, reg
	return w
}

func pushBusybox(t *testing.T, host string) (ref, dgst string) {
	t.Helper()
	img, err := testimages.Busybox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, err := name.ParseReference(host + "/box:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img); err != nil {
		t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return host + "/box:1", h.String()
}

// up waits for containerd to come up.
func (w *world) up() {
	w.t.Helper()
	select {
	case <-w.ready:
	case <-time.After(30 * time.Second):
		w.t.Fatal("containerd does not come up")
	}
}

func (w *world) kill(name string) int {
	out, _ := exec.Command("pgrep", "-f", w.dir+"/"+name).Output()
	n := 0
	for _, f := range strings.Fields(string(out)) {
		if pid, err := strconv.Atoi(f); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
			n++
		}
	}
	return n
}

func (w *world) unmount() {
	b, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && (strings.HasPrefix(f[1], w.run+"/") || strings.HasPrefix(f[1], w.dir+"/")) {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
}

// node is what an agent has of its node: an engine and its images.
type node struct {
	*engine.Engine
	images  *images.Store
	volumes *volume.Store
}

func (w *world) open(t *testing.T) *node {
	t.Helper()
	c, err := containerd.Connect(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	from, o := w.images, w.o
	from.Containerd, o.Containerd = c, c
	o.Images = images.New(from)
	if o.Volumes, err = volume.Open(volume.Options{Dir: w.dir + "/volumes", RunDir: w.run + "/volumes", Node: o.NodeID}); err != nil {
		t.Fatal(err)
	}
	e, err := engine.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return &node{Engine: e, images: o.Images, volumes: o.Volumes}
}

func TestConformance(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	var said []string
	img, err := e.images.Pull(t.Context(), w.ref, w.dgst, nil, func(p task.Progress) { said = append(said, p.Status) })
	if err != nil {
		t.Fatal(err)
	}
	if img.Digest != w.dgst || img.Size == 0 || len(img.Layers) != 1 {
		t.Fatalf("pulled %v", img)
	}
	if s := strings.Join(said, ","); !strings.HasPrefix(s, "Pulling fs layer,") || !strings.HasSuffix(s, "Pull complete") {
		t.Fatalf("progress was %s", s)
	}
	subject := func(t *testing.T) enginetest.Subject {
		e := w.open(t)
		return enginetest.Subject{Runtime: e, Streams: e, Images: e.images, Image: w.ref, Digest: w.dgst, Reopen: func() task.Runtime { return w.open(t) }}
	}
	enginetest.Runtime(t, subject)
	enginetest.Streams(t, subject)
	enginetest.Images(t, subject)
	if left, err := e.List(t.Context()); err != nil || len(left) != 0 {
		t.Fatalf("left: %v, %v", left, err)
	}
	if err := e.images.Remove(t.Context(), w.dgst); err != nil {
		t.Fatal(err)
	}
	if all, err := e.images.List(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("images left: %v, %v", all, err)
	}
}
