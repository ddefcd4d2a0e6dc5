package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/archive"
	"github.com/drover/drover/agent/archive/archiveapi"
	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/task"
)

// copies are the processes that have tasks' files mounted.
type copies struct {
	mu   sync.Mutex // guards the fields below
	last int
	all  map[string]map[int]*copying // by task
}

// errRemoved is why a process was ended.
var errRemoved = fmt.Errorf("removed meanwhile: %w", task.ErrNotFound)

type copying struct {
	cancel context.CancelCauseFunc
	over   chan struct{}
}

// begin records a process of a task. The returned context ends when the task is removed;
// the caller calls end once there is no process any more.
func (c *copies) begin(ctx context.Context, id string) (_ context.Context, n int, end func()) {
	x := &copying{over: make(chan struct{})}
	ctx, x.cancel = context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	n = c.last
	if c.all == nil {
		c.all = map[string]map[int]*copying{}
	}
	if c.all[id] == nil {
		c.all[id] = map[int]*copying{}
	}
	c.all[id][n] = x
	return ctx, n, sync.OnceFunc(func() {
		x.cancel(nil)
		c.mu.Lock()
		defer c.mu.Unlock()
		if delete(c.all[id], n); len(c.all[id]) == 0 {
			delete(c.all, id)
		}
		close(x.over)
	})
}

// stop ends all processes of a task, whose files are about to be removed.
func (c *copies) stop(id string) {
	c.mu.Lock()
	var all []*copying
	for _, x := range c.all[id] {
		all = append(all, x)
	}
	c.mu.Unlock()
	for _, x := range all {
		x.cancel(errRemoved)
		<-x.over
	}
}

// view is a task's files for one process, until end is called.
func (e *Engine) view(ctx context.Context, id string, binds bool) (_ context.Context, r archiveapi.Request, end func(), err error) {
	s, err := e.readSpec(id)
	if err != nil {
		return nil, r, nil, err
	}
	ctx, n, over := e.copies.begin(e.ctx(ctx), id)
	user := fmt.Sprintf("%s.files-%d", id, n)
	release := sync.OnceFunc(func() {
		if _, err := e.o.Volumes.Unuse(context.WithoutCancel(ctx), user); err != nil {
			e.o.Log.Warn("the volumes of a task whose files were copied are left mounted", "task", short(id), "err", err)
		}
		over()
	})
	defer func() {
		if err != nil {
			release()
		}
	}()
	r.Mounted = e.tasks.Rootfs(id)
	if r.Root, err = e.root(ctx, &s); err != nil || !binds {
		return ctx, r, release, err
	}
	if err := e.useVolumesAs(ctx, user, &s, func(task.Mount) {}); err != nil {
		return nil, r, nil, err
	}
	if r.Binds, err = e.bindsOf(&s); err != nil {
		return nil, r, nil, err
	}
	if h := s.Create.HostConfig; h != nil {
		r.ReadOnlyRoot = h.ReadonlyRootfs
	}
	r.Owner, _ = spec.User(s.Create, s.ImageConfig)
	return ctx, r, release, nil
}

// bindsOf returns what a task sees of the host's files.
func (e *Engine) bindsOf(s *prepared) (out []archiveapi.Bind, err error) {
	h := s.Create.HostConfig
	if h == nil {
		h = &container.HostConfig{}
	}
	f := spec.Facts{ID: s.ID, Dir: e.o.dir(s.ID)}
	if f.Node, err = e.node(); err != nil {
		return nil, err
	}
	if f.Mounts, err = e.mountsOf(s); err != nil {
		return nil, err
	}
	all, own, err := spec.Files(h, f)
	for _, m := range all {
		out = append(out, archiveapi.Bind{Source: m.Source, Target: m.Destination, Own: own(m), Alone: slices.Contains(m.Options, "bind"),
			ReadOnly: slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rro")})
	}
	return out, err
}

// StatPath implements task.Files.
func (e *Engine) StatPath(ctx context.Context, id, path string) (*container.PathStat, error) {
	ctx, r, end, err := e.view(ctx, id, true)
	if err != nil {
		return nil, err
	}
	defer end()
	r.Path = path
	st, err := e.files.Stat(ctx, r)
	return st, fileError(ctx, err)
}

// ReadPath implements task.Files.
func (e *Engine) ReadPath(ctx context.Context, id, path string) (io.ReadCloser, *container.PathStat, error) {
	ctx, r, end, err := e.view(ctx, id, true)
	if err != nil {
		return nil, nil, err
	}
	r.Operation, r.Path = archiveapi.Read, path
	s, err := e.read(ctx, r, end)
	if err != nil {
		return nil, nil, err
	}
	e.o.Event(id, "archive-path", nil)
	return s, s.Stat, nil
}

// WritePath implements task.Files.
func (e *Engine) WritePath(ctx context.Context, id, path string, o task.WriteOptions, tar io.ReadCloser) error {
	ctx, r, end, err := e.view(ctx, id, true)
	if err != nil {
		return errors.Join(err, tar.Close())
	}
	defer end()
	r.Path, r.NoOverwriteDir = path, o.NoOverwriteDir
	if !o.Chown {
		r.Owner = ""
	}
	if err := fileError(ctx, e.files.Write(ctx, r, tar)); err != nil {
		return err
	}
	e.o.Event(id, "extract-to-dir", nil)
	return nil
}

// Export implements task.Files.
func (e *Engine) Export(ctx context.Context, id string) (io.ReadCloser, error) {
	ctx, r, end, err := e.view(ctx, id, false)
	if err != nil {
		return nil, err
	}
	r.Operation = archiveapi.Export
	s, err := e.read(ctx, r, end)
	if err != nil {
		return nil, err
	}
	s.whole = func() { e.o.Event(id, "export", nil) }
	return s, nil
}

// Changes implements task.Files.
func (e *Engine) Changes(ctx context.Context, id string) (io.ReadCloser, error) {
	ctx, r, end, err := e.view(ctx, id, false)
	if err != nil {
		return nil, err
	}
	r.Operation = archiveapi.Changes
	r.Upper, r.Lowers = layersOf(r.Root)
	return e.read(ctx, r, end)
}

// layersOf returns what an overlay consists of. A bind has nothing below it.
func layersOf(root []mount.Mount) (upper string, lowers []string) {
	for _, m := range root {
		upper = m.Source
		for _, o := range m.Options {
			name, value, _ := strings.Cut(o, "=")
			switch {
			case m.Type != "overlay":
			case name == "upperdir":
				upper = value
			case name == "lowerdir":
				lowers = strings.Split(value, ":")
			}
		}
	}
	return upper, lowers
}

// read starts a process whose end releases the task's files.
func (e *Engine) read(ctx context.Context, r archiveapi.Request, end func()) (*files, error) {
	s, err := e.files.Read(ctx, r)
	if err != nil {
		err = fileError(ctx, err)
		end()
		return nil, err
	}
	f := &files{Stream: s, ctx: ctx, end: end}
	f.stop = context.AfterFunc(ctx, f.release) // a removal does not wait for a reader who reads nothing
	return f, nil
}

// files is what is read of a task's files.
type files struct {
	*archive.Stream
	ctx   context.Context
	end   func()
	stop  func() bool
	whole func() // called once all was read; nil: nothing is
}

// Read implements io.Reader.
func (f *files) Read(b []byte) (int, error) {
	n, err := f.Stream.Read(b)
	if errors.Is(err, io.EOF) && f.whole != nil {
		f.whole()
		f.whole = nil
	}
	return n, fileError(f.ctx, err)
}

func (f *files) release() {
	_ = f.Stream.Close()
	f.end()
}

// Close implements io.Closer.
func (f *files) Close() error {
	f.stop()
	f.release()
	return nil
}

// fileError is an error that users are told as it is.
func fileError(ctx context.Context, err error) error {
	var f *archiveapi.Error
	if err != nil && errors.Is(context.Cause(ctx), errRemoved) {
		return errRemoved
	}
	if errors.As(err, &f) && f.Kind != archiveapi.Other {
		return &task.FileError{Missing: f.Kind == archiveapi.NotFound, Message: f.Message}
	}
	return err
}
