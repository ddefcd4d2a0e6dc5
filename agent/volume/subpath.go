package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
)

// Pin mounts a part of a volume where nobody but root can change what it is, and returns
// that path. The container that is given it mounts what the part was at this moment,
// whatever becomes of its symbolic links. Unpin unmounts it, once it is mounted there.
func (s *Store) Pin(task string, n int, x task.Volume, subpath string) (string, error) {
	base := s.Path(x.ID)
	fd, err := beneath(base, subpath, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("volume %s: %w", x.Name, err)
	}
	at := filepath.Join(s.o.RunDir, task, strconv.Itoa(n))
	if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		return "", fmt.Errorf("volume %s: %w", x.Name, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.MkdirAll(at, 0o700)
	} else {
		err = os.WriteFile(at, nil, 0o600)
	}
	if err == nil {
		err = unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), at, "", unix.MS_BIND, "")
	}
	if err != nil {
		return "", fmt.Errorf("volume %s: mounting %s of it: %w", x.Name, subpath, err)
	}
	return at, nil
}

// raced bounds how often a path that is being changed is walked again.
const raced = 64

// beneath opens a path below a directory. Symbolic links must not leave it, which is up to
// the kernel: there is no moment between a check and the use. resolve is what else openat2
// must refuse.
func beneath(base, subpath string, resolve uint64) (int, error) {
	dir, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("cannot access path %s: %w", base, err)
	}
	defer func() { _ = unix.Close(dir) }()
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | resolve}
	fd := -1
	for range raced {
		fd, err = unix.Openat2(dir, subpath, how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.EXDEV):
		return -1, fmt.Errorf("path concatenation escapes the base directory, base: %s, subpath: %s", base, subpath)
	default:
		return -1, fmt.Errorf("cannot access path %s: %w", filepath.Join(base, subpath), err)
	}
}

// Unpin unmounts what Pin has mounted for a task.
func (s *Store) Unpin(task string) error {
	dir := filepath.Join(s.o.RunDir, task)
	all, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range all {
		at := filepath.Join(dir, e.Name())
		if err := unmount(at); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.Remove(at)) // never more than the place of a mount
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("unmounting parts of volumes: %w", err)
	}
	return os.Remove(dir)
}
