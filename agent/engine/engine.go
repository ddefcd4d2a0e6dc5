// Package engine runs containers in shims, on containerd's images and snapshots: it
// implements task.Runtime, task.Streams and task.Files. When a task should run is up to the
// reconciler, images are up to agent/images, and what becomes of a container's output is
// up to its shim.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/drover/drover/agent/archive"
	"github.com/drover/drover/agent/cgroup"
	"github.com/drover/drover/agent/containerd"
	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/agent/shims"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/volume"
	"github.com/drover/drover/pkg/life"
)

// Labels of a container's snapshot: what keeps it from being collected, and whose it is.
const (
	labelRoot    = "containerd.io/gc.root"
	labelCluster = "io.drover.cluster"
	labelTask    = "io.drover.task"
	labelName    = "io.drover.name"
	labelSpec    = "io.drover.spec"
)

// Options of an engine. DataDir is durable, RunDir volatile and short.
type Options struct {
	DataDir, RunDir  string
	NodeID, HostName string
	ClusterID        string
	Containerd       *client.Client
	ShimPath         string
	ArchivePath      func() (string, error) // of drover-archive; called when it is needed first
	Network          *network.Network
	Fleet            Fleet
	Resolver         Resolver
	Images           *images.Store
	Spares           int // shims that wait for a container, once there was one
	Volumes          *volume.Store
	// Event is called with events that only the engine sees; nil: they are dropped.
	Event func(taskID, action string, attributes map[string]string)
	// VolumeEvent is called with events of volumes that a task mounts; nil: they are dropped.
	VolumeEvent func(taskID, volume, action string, attributes map[string]string)
	Log         *slog.Logger
}

// Engine implements task.Runtime, task.Streams and task.Files. Safe for concurrent use.
type Engine struct {
	o      Options
	c      *client.Client
	tasks  tasks
	follow *follower
	files  *archive.Archive
	copies copies

	groups       cgroup.Host
	boot         string
	recordWithin time.Duration
	node         func() (spec.Node, error) // read once

	life context.Context // until Close
	end  context.CancelFunc
	wg   sync.WaitGroup // goroutines that accompany execs

	mu    sync.Mutex // guards the fields below
	execs map[string]*execution
}

// tasks is the containers' processes, in shims.
type tasks interface {
	taskspb.TasksClient
	Launch(id string, runtime shimapi.Choice) error
	Begin(ctx context.Context, c shims.Container) (pid uint32, err error)
	Has(id string) bool
	Spec(id string) ([]byte, error)
	Rootfs(id string) string
	Close() error
}

var (
	_ task.Runtime = (*Engine)(nil)
	_ task.Streams = (*Engine)(nil)
	_ task.Files   = (*Engine)(nil)
)

// Open returns the engine of o.Containerd, which need not answer yet. Close stops the
// engine; containers keep running.
func Open(o Options) (*Engine, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Event == nil {
		o.Event = func(string, string, map[string]string) {}
	}
	if o.VolumeEvent == nil {
		o.VolumeEvent = func(string, string, string, map[string]string) {}
	}
	for _, d := range []string{o.tasks(), filepath.Join(o.RunDir, "t")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("opening the engine: %w", err)
		}
	}
	files, err := archive.New(archive.Options{Binary: o.ArchivePath, At: filepath.Join(o.RunDir, "files")})
	if err != nil {
		return nil, err
	}
	f, err := newFollower()
	if err != nil {
		return nil, err
	}
	e := &Engine{o: o, c: o.Containerd, follow: f, files: files, groups: cgroups(), boot: bootID(), recordWithin: recordWithin, execs: map[string]*execution{}}
	e.life, e.end = context.WithCancel(context.Background()) //nolint:forbidigo // it ends with Close
	e.node = sync.OnceValues(func() (spec.Node, error) { return readNode(e.life, o) })
	if err := errors.Join(e.sweep(), e.holdVolumes()); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	runtime, err := e.runtimeOptions(nil)
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	e.tasks, err = newTasks(shims.Options{Dir: filepath.Join(o.RunDir, "shims"), SocketDir: filepath.Join(o.RunDir, "t"), Binary: o.ShimPath,
		Namespace: containerd.Namespace, Next: o.Containerd.TaskService(), Asks: e.throughContainerd,
		Spares: o.Spares, Runtime: shimapi.ChoiceOf(runtime), Gone: func(id string) { f.tell(o.dir(id)) }, Log: o.Log})
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

// newTasks is replaced by tests that disturb calls.
var newTasks = func(o shims.Options) (tasks, error) { return shims.New(o) }

// sweep removes directories of tasks whose removal or preparation was interrupted, and
// sockets of execs that an earlier agent was about to start, which only that agent knew.
func (e *Engine) sweep() error {
	socks, err := filepath.Glob(e.o.execSocket("*"))
	if err != nil {
		return fmt.Errorf("looking for sockets of execs: %w", err)
	}
	for _, sock := range socks {
		if err := os.Remove(sock); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing what an exec left: %w", err)
		}
	}
	ids, err := os.ReadDir(e.o.tasks())
	if err != nil {
		return fmt.Errorf("reading tasks: %w", err)
	}
	for _, d := range ids {
		if _, err := os.Stat(filepath.Join(e.o.dir(d.Name()), specFile)); errors.Is(err, os.ErrNotExist) {
			if err := os.RemoveAll(e.o.dir(d.Name())); err != nil {
				return fmt.Errorf("removing the remains of %s: %w", d.Name(), err)
			}
		}
	}
	return nil
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Close stops following logs and execs, which keep running.
func (e *Engine) Close() error {
	e.end()
	e.wg.Wait()
	var err error
	if e.tasks != nil {
		err = e.tasks.Close()
	}
	return errors.Join(err, e.follow.Close())
}

func (e *Engine) ctx(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, containerd.Namespace)
}

func (o Options) tasks() string { return filepath.Join(o.DataDir, "tasks") }

// Files of a task. Sockets are in RunDir, since their paths must be short.
func (o Options) dir(id string) string    { return filepath.Join(o.tasks(), id) }
func (o Options) logDir(id string) string { return filepath.Join(o.dir(id), "log") }

const exitPrefix = "exit."

// exitFile is a link to the exit record of a life's last try: exit.1 for the first life
// of attempt 1, exit.1-1 for its second.
func (o Options) exitFile(id string, l life.Life) string {
	return filepath.Join(o.dir(id), exitPrefix+l.String())
}

// recordFile is where the shim of one try writes its exit record.
func (o Options) recordFile(id string, a attempt) string {
	if a.Try == "" { // written by an agent that did not distinguish tries
		return o.exitFile(id, a.life())
	}
	return o.exitFile(id, a.life()) + "." + a.Try
}

// privilegedFile marks a task in which an exec had all capabilities.
func (o Options) privilegedFile(id string) string { return filepath.Join(o.dir(id), "privileged") }

func (o Options) stdinSocket(id string) string {
	return filepath.Join(o.RunDir, "t", id[:min(24, len(id))]+".in")
}
func (o Options) execSocket(id string) string {
	return filepath.Join(o.RunDir, "t", id[:min(24, len(id))]+".ex")
}
func (o Options) cgroup() string { return "/drover/" + o.NodeID }

func short(id string) string { return id[:min(12, len(id))] }
