package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

const part = ".part"

// Seed copies an image's directory into a volume that is empty, as docker does: owners,
// modes, times, extended attributes, links and devices. image calls copy with that
// directory, or not at all if the image has none. A copy that is cut short starts over.
func (s *Store) Seed(ctx context.Context, task string, x task.Volume, image func(copy func(dir string) error) error) error {
	seeder := task + " seed"
	if err := s.Use(ctx, seeder, x); err != nil {
		return err
	}
	err := s.seed(ctx, x, image)
	_, left := s.Unuse(context.WithoutCancel(ctx), seeder)
	return errors.Join(err, left)
}

func (s *Store) seed(ctx context.Context, x task.Volume, image func(copy func(dir string) error) error) error {
	_, give, err := s.take(ctx, x.ID)
	if err != nil {
		return err
	}
	defer give()
	if is, err := empty(s.Path(x.ID)); err != nil || !is {
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
// file is in one place or the other, and what a container has put there stays.
func (s *Store) settle(x task.Volume) error {
	stage := s.stage(x)
	if err := os.RemoveAll(stage + part); err != nil {
		return fmt.Errorf("volume %s: %w", x.Name, err)
	}
	all, err := os.ReadDir(stage)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	dir := s.Path(x.ID)
	for _, e := range all {
		if err = errors.Join(err, rename(filepath.Join(stage, e.Name()), filepath.Join(dir, e.Name()))); err != nil {
			break
		}
	}
	if err == nil {
		err = fs.CopyDir(dir, stage, fs.WithAllowXAttrErrors()) // owner, mode, times and attributes of the directory itself
	}
	if err == nil {
		err = errors.Join(syncFilesystem(dir), os.RemoveAll(stage), syncDir(filepath.Dir(stage)))
	}
	if err != nil {
		return fmt.Errorf("failed to populate volume %s: %w", x.Name, err)
	}
	return nil
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
