// Package shims starts the shims of containers and calls them: one process per
// container, which outlives the agent. To their callers they are containerd's task
// service, which also has the tasks that were started through containerd.
package shims

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

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	taskspb "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/drover/drover/agent/shim/shimapi"
)

// Options of New.
type Options struct {
	// Dir holds one bundle per shim. It is volatile: what is there began in this boot.
	Dir       string
	SocketDir string // of the sockets; its path must be short
	Binary    string // the shim
	Namespace string // containerd's, under which shims run
	// Next may have the tasks that have no bundle here; Asks reports whether it does for one.
	Next taskspb.TasksClient
	Asks func(id string) bool
	// Spares is how many shims of the default runtime, Runtime, wait for a container.
	Spares  int
	Runtime shimapi.Choice
	Gone    func(id string) // is called after a shim was found dead, and what it left was removed; may be nil
	Log     *slog.Logger
}

// Shims are the shims of a host. Safe for concurrent use.
type Shims struct {
	o    Options
	life context.Context // until Close
	end  context.CancelFunc
	wg   sync.WaitGroup // goroutines that watch shims, and bury them

	// lifeline is a pipe of which this process has the other end: it ends with the agent.
	// Shims have it, so that none is left that has no container yet.
	lifeline, held *os.File
	spares         *spares
	migration      *migration

	endWithin   time.Duration
	removeAgain time.Duration // pause after a removal that failed

	mu   sync.Mutex // guards the field below, and the users of each
	open map[string]*shim
}

var _ taskspb.TasksClient = (*Shims)(nil)

// New returns the shims of a host, including those that an earlier agent started. Close
// leaves all of them running.
func New(o Options) (*Shims, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Gone == nil {
		o.Gone = func(string) {}
	}
	// The containers' files are mounted in bundles: no other account of the host may get
	// at them, and run the setuid programs among them.
	err := errors.Join(os.MkdirAll(o.SocketDir, 0o711), os.MkdirAll(o.Dir, 0o700), os.Chmod(o.Dir, 0o700))
	if err != nil {
		return nil, fmt.Errorf("preparing for shims: %w", err)
	}
	lifeline, held, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("preparing for shims: %w", err)
	}
	s := &Shims{o: o, lifeline: lifeline, held: held, migration: newMigration(), endWithin: endWithin, removeAgain: removeAgain, open: map[string]*shim{}}
	s.life, s.end = context.WithCancel(context.Background()) //nolint:forbidigo // it ends with Close
	s.spares = newSpares(s, o.Spares, o.Runtime)
	if err := s.spares.sweep(); err != nil {
		o.Log.Warn("shims that waited for a container can't be removed", "err", err)
	}
	s.wg.Go(s.spares.run)
	return s, nil
}

// Close closes the connections to the shims, which keep running, and waits for what is
// being done about dead ones.
func (s *Shims) Close() error {
	s.end()
	s.mu.Lock()
	var ids []string
	for id := range s.open {
		ids = append(ids, id)
	}
	s.mu.Unlock()
	for _, id := range ids {
		x := s.lock(id)
		x.hangUp()
		x.unlock()
	}
	s.wg.Wait()
	return errors.Join(s.held.Close(), s.lifeline.Close(), s.migration.Close())
}

// Container describes what a shim is to run.
type Container struct {
	ID       string
	Spec     []byte         // OCI runtime spec, as JSON
	Rootfs   []*types.Mount // the container's files
	Stdout   string         // what the shim does with the streams: shimapi.Stdio's URL
	Terminal bool
	Options  *anypb.Any // of the runtime
}

// Launch starts the shim of a container, or takes one that waits; Begin then has it create
// the container's process. The shim starts meanwhile. If it fails, nothing is left.
func (s *Shims) Launch(id string, runtime shimapi.Choice) error {
	x := s.lock(id)
	defer x.unlock()
	if s.Has(id) {
		return fmt.Errorf("starting a shim for %s: %w", short(id), os.ErrExist)
	}
	s.wg.Go(s.migration.rehearse)
	s.spares.note(0)
	if s.spares.take(x, runtime) {
		return nil
	}
	err := x.start(runtime)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("starting a shim for %s: %w", short(id), err)
	if berr := x.bury(s.life); berr != nil {
		err = errors.Join(err, berr)
	}
	return err
}

// Begin has a container's shim create the container's process, and returns the process's
// id. If it fails, the shim is gone as well, and nothing is left.
func (s *Shims) Begin(ctx context.Context, c Container) (pid uint32, err error) {
	s.spares.note(1)
	defer s.spares.note(-1)
	tasks, err := s.ready(ctx, c)
	if err == nil {
		var r *taskAPI.CreateTaskResponse
		r, err = tasks.Create(ctx, &taskAPI.CreateTaskRequest{ID: c.ID, Bundle: s.bundle(c.ID), Rootfs: c.Rootfs, Stdout: c.Stdout, Terminal: c.Terminal, Options: c.Options})
		if err == nil {
			return r.Pid, nil
		}
	}
	x := s.lock(c.ID)
	defer x.unlock()
	if berr := x.bury(context.WithoutCancel(ctx)); berr != nil {
		err = errors.Join(err, berr)
	}
	return 0, err
}

// ready returns the service of a shim whose bundle has what it is to begin.
func (s *Shims) ready(ctx context.Context, c Container) (taskAPI.TTRPCTaskService, error) {
	x := s.lock(c.ID)
	defer x.unlock()
	tasks, err := x.find(ctx)
	if err == nil && tasks == nil {
		err = errors.New("it ended before the container was created")
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(s.bundle(c.ID), specFile), c.Spec, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("starting the shim of %s: %w", short(c.ID), err)
	}
	return tasks, nil
}

// Has reports whether a container has a shim here, alive or not.
func (s *Shims) Has(id string) bool {
	_, err := os.Lstat(s.bundle(id))
	return err == nil
}

// Spec returns the OCI runtime spec of a container with a shim, os.ErrNotExist if it has
// none here.
func (s *Shims) Spec(id string) ([]byte, error) {
	return os.ReadFile(filepath.Join(s.bundle(id), specFile))
}

// Rootfs returns where a container's files are mounted while it runs.
func (s *Shims) Rootfs(id string) string { return filepath.Join(s.bundle(id), rootfsDir) }

// lock returns the record of a container's shim, whether it has one or not, for the
// caller alone until it is unlocked.
func (s *Shims) lock(id string) *shim {
	s.mu.Lock()
	x := s.open[id]
	if x == nil {
		x = &shim{s: s, id: id}
		s.open[id] = x
	}
	x.users++
	s.mu.Unlock()
	x.mu.Lock()
	return x
}

// unlock drops the record if nobody needs it: it has no connection then.
func (x *shim) unlock() {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	if x.users--; x.users == 0 && x.client == nil {
		delete(x.s.open, x.id)
	}
	x.mu.Unlock()
}

func (s *Shims) bundle(id string) string { return filepath.Join(s.o.Dir, id) }

// ids returns the containers that have a bundle.
func (s *Shims) ids() ([]string, error) {
	dirs, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return nil, fmt.Errorf("listing shims: %w", err)
	}
	var out []string
	for _, d := range dirs {
		if !strings.HasPrefix(d.Name(), sparePrefix) {
			out = append(out, d.Name())
		}
	}
	return out, nil
}

func short(id string) string { return id[:min(12, len(id))] }
