package volume

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Containers change a volume while its node copies, moves, measures and removes files
// there. Whatever they put in the place of a file or directory, it is not followed, nor is
// a device or pipe opened: each name is looked up in a directory that is open, by calls
// that create it or refuse what is not a directory.

// Directories that are in one another are open at once: as many as a removal needs, and as
// many as are measured, which is more than a path can name.
const (
	maxOpen   = 256
	maxNested = 2048
)

// batch is how many names of a directory are read at once: a container may make any number.
const batch = 1024

// openDir opens a directory that is in another one, and not elsewhere by a link or mount.
// Of a path, which is in AT_FDCWD, only the last name must not be a link.
func openDir(in int, name string) (*os.File, error) {
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC}
	if in != unix.AT_FDCWD {
		how.Resolve = unix.RESOLVE_NO_XDEV
	}
	fd, err := unix.Openat2(in, name, how)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Openat2(in, name, how)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func fdOf(f *os.File) int { return int(f.Fd()) }

// byFD is a path of what a descriptor is of, for calls that take none.
func byFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// remove removes a file, or a directory with all that is in it. What is not there is no
// error.
func remove(ctx context.Context, in int, name string) error {
	is, err := unlink(in, name)
	if err != nil || !is {
		return err
	}
	dir, err := openDir(in, name)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := clear(ctx, dir, dir, 1); err != nil {
		return err
	}
	return rmdir(in, name)
}

// clear removes what is in a directory. Directories that are too deep in top are moved up
// to it, where they are removed later.
func clear(ctx context.Context, top, dir *os.File, depth int) error {
	for {
		if err := ctx.Err(); err != nil { // a container may make names as fast as they go
			return err
		}
		names, err := dir.Readdirnames(batch)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			is, err := unlink(fdOf(dir), n)
			switch {
			case err != nil:
				return err
			case !is:
			case depth == maxOpen:
				err = unix.Renameat(fdOf(dir), n, fdOf(top), rand.Text())
			default:
				err = clearIn(ctx, top, dir, n, depth)
			}
			if err != nil {
				return fmt.Errorf("removing %s: %w", n, err)
			}
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil { // some filesystems skip names while others go
			return err
		}
	}
}

func clearIn(ctx context.Context, top, in *os.File, name string, depth int) error {
	dir, err := openDir(fdOf(in), name)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := clear(ctx, top, dir, depth+1); err != nil {
		return err
	}
	return rmdir(fdOf(in), name)
}

// unlink removes a name, and reports whether it is a directory, which stays.
func unlink(in int, name string) (isDir bool, err error) {
	err = unix.Unlinkat(in, name, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.EISDIR):
		return true, nil
	case errors.Is(err, unix.EROFS): // said before it is looked for
		var st unix.Stat_t
		if serr := unix.Fstatat(in, name, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(serr, unix.ENOENT) {
			return false, nil
		}
	}
	return false, &os.PathError{Op: "unlink", Path: name, Err: err}
}

func rmdir(in int, name string) error {
	if err := unix.Unlinkat(in, name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}

// copying is a copy of a directory that nobody changes to a name in one that anybody may.
type copying struct {
	ctx   context.Context
	links map[inode]string // where a file with further names was copied to, below top
	top   *os.File
}

type inode struct{ dev, ino uint64 }

// copyDir copies a directory to a name that must be free: owners, modes, times, extended
// attributes, holes, hard links and devices.
func copyDir(ctx context.Context, from string, in int, name string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	if err := unix.Mkdirat(in, name, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	top, err := openDir(in, name)
	if err != nil {
		return err
	}
	defer func() { _ = top.Close() }()
	c := &copying{ctx: ctx, links: map[inode]string{}, top: top}
	return c.dir(from, "", top, &st)
}

// dir copies what is in a directory, and then what it has itself: its times come last.
func (c *copying) dir(from, below string, to *os.File, st *unix.Stat_t) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	all, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range all {
		name := e.Name()
		if err := c.entry(filepath.Join(from, name), filepath.Join(below, name), to, name); err != nil {
			return fmt.Errorf("copying %s: %w", filepath.Join(below, name), err)
		}
	}
	return attributes(from, st, fdOf(to))
}

// entry copies one name of a directory.
func (c *copying) entry(from, below string, to *os.File, name string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		if err := unix.Mkdirat(fdOf(to), name, 0o700); err != nil {
			return err
		}
		dir, err := openDir(fdOf(to), name)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		return c.dir(from, below, dir, &st)
	}
	if st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino} //nolint:unconvert // it is not 64 bits everywhere
		if first, ok := c.links[id]; ok {
			return link(c.top, first, to, name)
		}
		c.links[id] = below
	}
	switch kind {
	case unix.S_IFREG:
		return c.file(from, to, name, &st)
	case unix.S_IFLNK:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, fdOf(to), name); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(fdOf(to), name, kind|0o600, int(st.Rdev)); err != nil {
			return err
		}
	}
	fd, err := unix.Openat(fdOf(to), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return attributes(from, &st, fd)
}

// within is how what was copied already is found again: below a directory, not by a link.
var within = unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}

// link makes another name of what was copied already to a path below top.
func link(top *os.File, first string, to *os.File, name string) error {
	fd, err := unix.Openat2(fdOf(top), first, &within)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.Linkat(unix.AT_FDCWD, byFD(fd), fdOf(to), name, unix.AT_SYMLINK_FOLLOW)
}

func (c *copying) file(from string, to *os.File, name string, st *unix.Stat_t) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	fd, err := unix.Openat(fdOf(to), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(fd), name)
	err = c.data(src, dst, st.Size)
	if err == nil {
		err = attributes(from, st, fd)
	}
	return errors.Join(err, dst.Close())
}

// data copies a file's bytes, and leaves holes where it has some.
func (c *copying) data(src, dst *os.File, size int64) error {
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		begin, err := unix.Seek(fdOf(src), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole
		}
		if err != nil { // a filesystem that knows no holes
			begin = at
		}
		end, err := unix.Seek(fdOf(src), begin, unix.SEEK_HOLE)
		if err != nil {
			end = size
		}
		end = min(end, begin+maxPiece, size)
		if _, err := src.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		if _, err := dst.Seek(begin, io.SeekStart); err != nil {
			return err
		}
		if n, err := io.CopyN(dst, src, end-begin); err != nil && (n == 0 || !errors.Is(err, io.EOF)) {
			return err
		}
		at = end
	}
	return nil
}

// maxPiece is copied between two looks at whether the copy is still wanted.
const maxPiece = 64 << 20

// attributes makes owner, mode, times and extended attributes of what is open those of
// another file.
func attributes(from string, st *unix.Stat_t, fd int) error {
	return own(fd, st, func(path string) error { return xattrs(from, path) })
}

// own sets owner, mode, times, and by a function extended attributes, of what is open.
func own(fd int, st *unix.Stat_t, xattrs func(path string) error) error {
	path := byFD(fd)
	err := unix.Fchownat(fd, "", int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
		err = unix.Chmod(path, st.Mode&^unix.S_IFMT)
	}
	if err != nil {
		return err
	}
	if err := xattrs(path); err != nil { // after the owner, whose change drops capabilities
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// xattrs copies extended attributes, as far as the filesystem has some.
func xattrs(from, to string) error {
	return eachXattr(from, func(name string, value []byte) error { return setXattr(to, name, value) })
}

func setXattr(path, name string, value []byte) error {
	if err := unix.Setxattr(path, name, value, 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("writing attribute %s: %w", name, err)
	}
	return nil
}

// eachXattr calls f with each extended attribute of a file, which is no link to one.
func eachXattr(path string, f func(name string, value []byte) error) error {
	n, err := unix.Llistxattr(path, nil)
	if n == 0 || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	list := make([]byte, n)
	if n, err = unix.Llistxattr(path, list); err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(path, name, nil)
		value := make([]byte, n)
		if err == nil {
			n, err = unix.Lgetxattr(path, name, value)
		}
		if err != nil {
			return fmt.Errorf("reading attribute %s: %w", name, err)
		}
		if err := f(name, value[:n]); err != nil {
			return err
		}
	}
	return nil
}
