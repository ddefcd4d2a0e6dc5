package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/volumes"
)

// inside prefixes the names of copies in a directory that is another filesystem's.
const inside = ".drover-seed-"

// stage is where an image's directory is copied to, on the filesystem of the volume's data:
// beside it, or in it if that is mounted.
func (s *Store) stage(x task.Volume) string {
	if volumes.Mounted(x.Options) {
		return filepath.Join(s.Path(x.ID), inside+s.o.Node)
	}
	return filepath.Join(s.dir(x.ID), "seed")
}

// What is beside a stage: a copy that is not complete, and the subpath that it is for.
const (
	part = ".part"
	of   = ".of"
)

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
	if err := s.settle(x); err != nil { // a copy for another part, which failed after Use
		return err
	}
	to, shut, err := s.target(x, subpath)
	if err != nil || to == "" {
		return err
	}
	is, err := empty(to)
	if shut(); err != nil || !is {
		return err
	}
	err = image(func(dir string) error {
		stage := s.stage(x)
		if err := os.RemoveAll(stage + part); err != nil {
			return err
		}
		unsupported := fs.WithXAttrErrorHandler(func(_, _, _ string, err error) error {
			if errors.Is(err, unix.ENOTSUP) {
				return nil
			}
			return err
		})
		if err := fs.CopyDir(stage+part, dir, unsupported); err != nil {
			return errors.Join(err, os.RemoveAll(stage+part))
		}
		if subpath != "" {
			if err := os.WriteFile(stage+of, []byte(subpath), 0o600); err != nil {
				return err
			}
		}
		if err := syncFilesystem(stage + part); err != nil {
			return err
		}
		if err := os.Rename(stage+part, stage); err != nil {
			return err
		}
		if err := syncDir(filepath.Dir(stage)); err != nil {
			return err
		}
		return s.settle(x)
	})
	if err != nil {
		return fmt.Errorf("failed to populate volume %s: %w", x.Name, err)
	}
	return nil
}

// target opens the directory of a volume that is seeded: all of it, or the part at subpath,
// and then "" if there is no such directory. The path stays the directory's, whatever a
// container puts in its place, until shut is called.
func (s *Store) target(x task.Volume, subpath string) (path string, shut func(), err error) {
	base := s.Path(x.ID)
	flags := unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd := -1
	if subpath == "" {
		if fd, err = unix.Open(base, flags, 0); err != nil {
			return "", nil, fmt.Errorf("opening %s: %w", base, err)
		}
	} else {
		// Files are moved there, which another mount's directory does not allow.
		fd, err = beneath(base, subpath, unix.RESOLVE_NO_XDEV)
		if err != nil {
			return "", nil, nil //nolint:nilerr // the container's start says it
		}
	}
	shut = func() { _ = unix.Close(fd) }
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		shut()
		return "", nil, err
	}
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/.", shut, nil // the dot: not the link itself
}

// empty reports whether a volume has no files, but for copies that nodes make.
func empty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	for {
		names, err := f.Readdirnames(16)
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
func (s *Store) settle(x task.Volume) error {
	stage := s.stage(x)
	if err := os.RemoveAll(stage + part); err != nil {
		return fmt.Errorf("volume %s: %w", x.Name, err)
	}
	all, err := os.ReadDir(stage)
	if errors.Is(err, os.ErrNotExist) {
		return os.RemoveAll(stage + of)
	}
	var subpath []byte
	if err == nil {
		subpath, err = os.ReadFile(stage + of)
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = s.move(x, all, string(subpath))
	}
	if err == nil {
		err = errors.Join(syncFilesystem(s.Path(x.ID)), os.RemoveAll(stage), syncDir(filepath.Dir(stage)))
	}
	if err == nil {
		err = os.RemoveAll(stage + of) // last: it says what a stage is for
	}
	if err != nil {
		return fmt.Errorf("failed to populate volume %s: %w", x.Name, err)
	}
	return nil
}

// move moves what is in the stage to where it belongs.
func (s *Store) move(x task.Volume, all []os.DirEntry, subpath string) error {
	dir, shut, err := s.target(x, subpath)
	if err != nil || dir == "" {
		return err
	}
	defer shut()
	stage := s.stage(x)
	for _, e := range all {
		if err := rename(filepath.Join(stage, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return fs.CopyDir(dir, stage, fs.WithAllowXAttrErrors()) // owner, mode, times and attributes of the directory itself
}

// rename moves a file to where there is none; else it is removed.
func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // the filesystem can't tell
		if _, lerr := os.Lstat(to); errors.Is(lerr, os.ErrNotExist) {
			return os.Rename(from, to)
		}
		err = unix.EEXIST
	}
	if errors.Is(err, unix.EEXIST) {
		return os.RemoveAll(from)
	}
	return err
}

func syncFilesystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}
