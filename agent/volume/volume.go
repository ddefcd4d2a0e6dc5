// Package volume keeps the data of a node's volumes: their directories, what is mounted on
// them while they are used, and what an image puts into an empty one. Which volumes there
// are, and which containers mount them, is up to others.
//
// A volume has a directory named by its id:
//
//	DATA/volumes/ID/_data      what containers see
//	DATA/volumes/ID/seed       a complete copy of an image's directory, which is being moved to _data
//	DATA/volumes/ID/seed.part  a copy that is not complete
//	DATA/volumes/ID/seed.of    which part of _data a copy is for, if not for all
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/recent"
	"github.com/drover/drover/pkg/volumes"
)

// Options of a Store. Dir is durable, RunDir volatile; both are created.
type Options struct {
	Dir, RunDir string
	Node        string // id of this node: what it leaves in directories that other nodes mount is named by it
	// MountWithin bounds how long a server may take to answer a mount; 0 is 30 s.
	MountWithin time.Duration
	// Mount mounts a device on a directory; nil runs mount(8).
	Mount func(ctx context.Context, m Mounting) error
	// Statfs returns how full a disk is; nil asks the kernel.
	Statfs func(fd int, st *unix.Statfs_t) error
	Log    *slog.Logger // nil: none
}

// Store is a node's volumes. Safe for concurrent use.
type Store struct {
	o Options

	removed recent.Map[string, struct{}] // ids: a task that was about to be prepared makes no new one

	mu   sync.Mutex      // guards the field below, and those of its values
	vols map[string]*vol // in use
}

// maxRemoved bounds how many removed volumes are known.
const maxRemoved = 10_000

// vol is what is known of a volume in memory, while somebody has it.
type vol struct {
	name   string
	turn   chan struct{}   // has a value while somebody changes its files and mounts
	takers int             // who have the turn or wait for it
	held   map[string]bool // tasks that mount it, running or not
	used   map[string]bool // tasks that have it mounted
	freed  chan struct{}   // closed when held becomes empty
}

// Open returns a store. It unmounts the parts of volumes that a dead agent had mounted for
// containers that it was starting.
func Open(o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MountWithin == 0 {
		o.MountWithin = 30 * time.Second
	}
	if o.Mount == nil {
		o.Mount = mount8
	}
	if o.Statfs == nil {
		o.Statfs = unix.Fstatfs
	}
	// Nobody but root enters: a user of the host could run what a container's root made
	// setuid there. Containers have them mounted.
	for _, dir := range []*string{&o.Dir, &o.RunDir} {
		err := errors.Join(os.MkdirAll(*dir, 0o700), os.Chmod(*dir, 0o700))
		if err == nil {
			*dir, err = filepath.EvalSymlinks(*dir) // as the kernel lists what is mounted there
		}
		if err != nil {
			return nil, fmt.Errorf("opening the node's volumes: %w", err)
		}
	}
	s := &Store{o: o, removed: recent.Map[string, struct{}]{Max: maxRemoved}, vols: map[string]*vol{}}
	parts, err := os.ReadDir(o.RunDir)
	if err != nil {
		return nil, fmt.Errorf("opening the node's volumes: %w", err)
	}
	for _, task := range parts {
		if err := s.Unpin(task.Name()); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Store) dir(id string) string { return filepath.Join(s.o.Dir, id) }

// Path returns the directory that containers mount of a volume, which need not exist.
func (s *Store) Path(id string) string { return filepath.Join(s.dir(id), "_data") }

// vol is called with mu held.
func (s *Store) vol(id string) *vol {
	v := s.vols[id]
	if v == nil {
		v = &vol{turn: make(chan struct{}, 1), held: map[string]bool{}, used: map[string]bool{}, freed: make(chan struct{})}
		s.vols[id] = v
	}
	return v
}

// tidy forgets a volume that nobody has. It is called with mu held.
func (s *Store) tidy(id string) {
	if v := s.vols[id]; v != nil && v.takers+len(v.held)+len(v.used) == 0 {
		delete(s.vols, id)
	}
}

// take blocks until it is the caller's turn to change a volume. give ends the turn.
func (s *Store) take(ctx context.Context, id string) (v *vol, give func(), err error) {
	s.mu.Lock()
	v = s.vol(id)
	v.takers++
	s.mu.Unlock()
	left := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		v.takers--
		s.tidy(id)
	}
	select {
	case v.turn <- struct{}{}:
		return v, func() { <-v.turn; left() }, nil
	case <-ctx.Done():
		left()
		return nil, nil, ctx.Err()
	}
}

// ErrRemoved means that a volume was removed.
var ErrRemoved = errors.New("the volume was removed")

// Hold records that a task mounts volumes, whether it runs or not: they stay until Drop.
func (s *Store) Hold(task string, all []task.Volume) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range all {
		if s.gone(x.ID) {
			return fmt.Errorf("volume %s: %w", x.Name, ErrRemoved)
		}
	}
	for _, x := range all {
		v := s.vol(x.ID)
		v.held[task], v.name = true, x.Name
	}
	return nil
}

// Drop forgets a task, which has nothing mounted any more.
func (s *Store) Drop(task string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, v := range s.vols {
		if v.held[task] {
			if delete(v.held, task); len(v.held) == 0 {
				close(v.freed)
				v.freed = make(chan struct{})
			}
			s.tidy(id)
		}
	}
}

// Remove implements task.Volumes.
func (s *Store) Remove(ctx context.Context, id string) error {
	if err := valid(id); err != nil {
		return err
	}
	for {
		freed := s.held(id)
		if freed == nil {
			break
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	_, give, err := s.take(ctx, id)
	if err != nil {
		return err
	}
	defer give()
	if err := unmount(s.Path(id)); err != nil {
		return err
	}
	// Whatever a container has mounted there is not the volume's.
	below, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.dir(id)))
	if err != nil {
		return fmt.Errorf("removing volume %.12s: %w", id, err)
	}
	if len(below) > 0 {
		return fmt.Errorf("removing volume %.12s: something is mounted at %s", id, below[0].Mountpoint)
	}
	if err := s.delete(ctx, id); err != nil {
		return fmt.Errorf("removing volume %.12s: %w", id, err)
	}
	return nil
}

// held returns what is closed once no task has a volume. nil: none has, and none gets it any
// more.
func (s *Store) held(id string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vols[id]; v != nil && len(v.held) > 0 {
		return v.freed
	}
	s.removed.Put(id, struct{}{}, 1)
	return nil
}

// delete deletes a volume's files.
func (s *Store) delete(ctx context.Context, id string) error {
	all, err := openDir(unix.AT_FDCWD, s.o.Dir)
	if err != nil {
		return err
	}
	defer func() { _ = all.Close() }()
	if err := remove(ctx, fdOf(all), id); err != nil {
		return err
	}
	return all.Sync()
}

// valid refuses what is no id: it names a directory.
func valid(id string) error {
	if len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" {
		return fmt.Errorf("%q is not the id of a volume", id)
	}
	return nil
}

// Using records that a running task has volumes mounted: an earlier agent started it.
func (s *Store) Using(task string, all []task.Volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range all {
		s.vol(x.ID).used[task] = true
	}
}

// Use readies a volume for a task: its directory, and what its options mount there.
func (s *Store) Use(ctx context.Context, task string, x task.Volume) error {
	if err := valid(x.ID); err != nil {
		return err
	}
	v, give, err := s.take(ctx, x.ID)
	if err != nil {
		return err
	}
	defer give()
	if s.gone(x.ID) {
		return fmt.Errorf("volume %s: %w", x.Name, ErrRemoved)
	}
	err = os.MkdirAll(s.dir(x.ID), 0o700)
	if err == nil {
		err = os.MkdirAll(s.Path(x.ID), 0o755)
	}
	if err != nil {
		return fmt.Errorf("creating volume %s: %w", x.Name, err)
	}
	if volumes.Mounted(x.Options) {
		if err := s.mount(ctx, x); err != nil {
			return err
		}
	}
	if err := s.settle(ctx, x); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.used[task] = true
	return nil
}

func (s *Store) gone(id string) bool {
	_, is := s.removed.Get(id)
	return is
}

// Unuse ends a task's use of all its volumes, and returns their names. What is mounted on
// one that nobody uses is unmounted.
func (s *Store) Unuse(ctx context.Context, task string) (names []string, err error) {
	errs := []error{s.Unpin(task)}
	s.mu.Lock()
	var last []string
	for id, v := range s.vols {
		if v.used[task] {
			last = append(last, id)
		}
	}
	s.mu.Unlock()
	slices.Sort(last)
	for _, id := range last {
		name, err := s.leave(ctx, id, task)
		if errs = append(errs, err); err == nil {
			names = append(names, name)
		}
	}
	return names, errors.Join(errs...)
}

func (s *Store) leave(ctx context.Context, id, task string) (name string, err error) {
	v, give, err := s.take(ctx, id)
	if err != nil {
		return "", err
	}
	defer give()
	s.mu.Lock()
	last := len(v.used) == 0 || len(v.used) == 1 && v.used[task]
	s.mu.Unlock()
	if last {
		if err := unmount(s.Path(id)); err != nil {
			return "", err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(v.used, task)
	return v.name, nil
}

// Settle unmounts what is mounted on volumes that no task uses: a dead agent left it. It is
// called once all that run were named by Using.
func (s *Store) Settle(ctx context.Context) error {
	mounted, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.o.Dir))
	if err != nil {
		return fmt.Errorf("looking for mounts of volumes: %w", err)
	}
	var errs []error
	for _, m := range mounted {
		id := filepath.Base(filepath.Dir(m.Mountpoint))
		if m.Mountpoint == s.Path(id) {
			_, err := s.leave(ctx, id, "")
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// unmount unmounts all that is mounted on a directory. What is mounted is not looked at:
// its server may be gone.
func unmount(dir string) error {
	for {
		err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // nothing is
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
	}
}

// mounted reports whether something is mounted on a directory, without looking at it.
func mounted(dir string) (bool, error) {
	all, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	return len(all) > 0, err
}
