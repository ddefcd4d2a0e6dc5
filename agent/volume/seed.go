package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/volumes"
)

// inside prefixes the names of copies in a directory that is another filesystem's.
const inside = ".drover-seed-"

// part ends the name of a copy that is not complete.
const part = ".part"

// stage is where an image's directory is copied to, on the filesystem of the volume's data:
// beside it, or in it if that is mounted, where containers can change it.
type stage struct {
	in   *os.File
	name string
}

func (s *Store) stage(x task.Volume) (g stage, err error) {
	dir, name := s.dir(x.ID), "seed"
	if volumes.Mounted(x.Options) {
		dir, name = s.Path(x.ID), inside+s.o.Node
	}
	g.name = name
	g.in, err = openDir(unix.AT_FDCWD, dir)
	return g, err
}

func (g stage) close() { _ = g.in.Close() }

// seedOf is the file that holds the part of a volume that a copy is for.
func (s *Store) seedOf(x task.Volume) string { return filepath.Join(s.dir(x.ID), "seed.of") }

// Seed copies an image's directory into a volume that is empty, or into an empty part of
// it, as docker does: owners, modes, times, extended attributes, links and devices. image
// calls copy with that directory, or not at all if the image has none. A copy that is cut
// short starts over. A part that is not there is up to the container's start.
func (s *Store) Seed(ctx context.Context, task string, x task.Volume, subpath string, image func(copy func(dir string) error) error) error {
	seeder := task + " seed"
	if err := s.Use(ctx, seeder, x); err != nil {
		return err
	}
	err := s.seed(ctx, x, subpath, image)
	_, left := s.Unuse(context.WithoutCancel(ctx), seeder)
	return errors.Join(err, left)
}

func (s *Store) seed(ctx context.Context, x task.Volume, subpath string, image func(copy func(dir string) error) error) error {
	_, give, err := s.take(ctx, x.ID)
	if err != nil {
		return err
	}
	defer give()
	if err := s.settle(ctx, x); err != nil { // a copy for another part, which failed after Use
		return err
	}
	to, err := s.target(x, subpath)
	if err != nil || to == nil {
		return err
	}
	is, err := empty(to)
	if _ = to.Close(); err != nil || !is {
		return err
	}
	err = image(func(dir string) error {
		if err := s.copy(ctx, x, subpath, dir); err != nil {
			return err
		}
		return s.settle(ctx, x)
	})
	if err != nil {
		return fmt.Errorf("failed to populate volume %s: %w", x.Name, err)
	}
	return nil
}

// copy makes a complete copy of a directory in the stage.
func (s *Store) copy(ctx context.Context, x task.Volume, subpath, dir string) error {
	g, err := s.stage(x)
	if err != nil {
		return err
	}
	defer g.close()
	if err := copyDir(ctx, dir, fdOf(g.in), g.name+part); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.MountWithin) // a seeding that was given up leaves nothing either
		defer cancel()
		return errors.Join(err, remove(ctx, fdOf(g.in), g.name+part))
	}
	if subpath != "" {
		if err := durable.WriteFile(s.seedOf(x), []byte(subpath), 0o600); err != nil {
			return err
		}
	}
	if err := unix.Syncfs(fdOf(g.in)); err != nil {
		return err
	}
	if err := unix.Renameat(fdOf(g.in), g.name+part, fdOf(g.in), g.name); err != nil {
		return err
	}
	return g.in.Sync()
}

// target opens the directory of a volume that is seeded: all of it, or the part at subpath,
// and then nil if there is no such directory.
func (s *Store) target(x task.Volume, subpath string) (*os.File, error) {
	base := s.Path(x.ID)
	if subpath == "" {
		return openDir(unix.AT_FDCWD, base)
	}
	// Files are moved there, which another mount's directory does not allow.
	fd, err := beneath(base, subpath, unix.RESOLVE_NO_XDEV)
	if err != nil {
		return nil, nil //nolint:nilerr // the container's start says it
	}
	defer func() { _ = unix.Close(fd) }()
	dir, err := openDir(fd, ".")
	if errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	return dir, err
}

// empty reports whether a volume has no files, but for copies that nodes make.
func empty(dir *os.File) (bool, error) {
	for {
		names, err := dir.Readdirnames(16)
		for _, n := range names {
			if !strings.HasPrefix(n, inside) {
				return false, nil
			}
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// settle moves a complete copy into the volume. It goes on with one that was cut short: a
// file is in one place or the other, and what a container has put there stays. A copy for a
// part that is gone goes too.
func (s *Store) settle(ctx context.Context, x task.Volume) error {
	g, err := s.stage(x)
	if err == nil {
		defer g.close()
		err = s.unstage(ctx, x, g)
	}
	if err != nil {
		return fmt.Errorf("failed to populate volume %s: %w", x.Name, err)
	}
	return nil
}

func (s *Store) unstage(ctx context.Context, x task.Volume, g stage) error {
	if err := remove(ctx, fdOf(g.in), g.name+part); err != nil {
		return err
	}
	from, err := openDir(fdOf(g.in), g.name)
	switch {
	case err == nil:
		defer func() { _ = from.Close() }()
		if err := s.move(ctx, x, from); err != nil {
			return err
		}
	case errors.Is(err, os.ErrNotExist):
		return os.RemoveAll(s.seedOf(x))
	case !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP): // else it is a container's, and goes
		return err
	}
	if err := errors.Join(remove(ctx, fdOf(g.in), g.name), g.in.Sync()); err != nil {
		return err
	}
	return os.RemoveAll(s.seedOf(x)) // last: it says what a stage is for
}

// move moves what is in a stage to where it belongs.
func (s *Store) move(ctx context.Context, x task.Volume, from *os.File) error {
	subpath, err := os.ReadFile(s.seedOf(x))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	to, err := s.target(x, string(subpath))
	if err != nil || to == nil {
		return err
	}
	defer func() { _ = to.Close() }()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		names, err := from.Readdirnames(batch)
		if errors.Is(err, io.EOF) {
			break
		}
		for _, n := range names {
			err = errors.Join(err, rename(ctx, fdOf(from), fdOf(to), n))
		}
		if err == nil {
			_, err = from.Seek(0, io.SeekStart)
		}
		if err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fdOf(from), &st); err != nil {
		return err
	}
	return errors.Join(attributes(byFD(fdOf(from))+"/.", &st, fdOf(to)), unix.Syncfs(fdOf(to)))
}

// rename moves a file to a directory that has none of its name; else it is removed.
func rename(ctx context.Context, from, to int, name string) error {
	err := unix.Renameat2(from, name, to, name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // the filesystem can't tell
		var st unix.Stat_t
		if lerr := unix.Fstatat(to, name, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(lerr, unix.ENOENT) {
			return unix.Renameat(from, name, to, name)
		}
		err = unix.EEXIST
	}
	if errors.Is(err, unix.EEXIST) {
		return remove(ctx, from, name)
	}
	return err
}
