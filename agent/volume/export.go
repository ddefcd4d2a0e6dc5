package volume

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
)

// xattrRecord prefixes the names of extended attributes in PAX records, as tar(1) has them.
const xattrRecord = "SCHILY.xattr."

// maxLinked bounds how many files of several names a volume that is moved may have: a
// container may make any number.
const maxLinked = 1 << 20

// Export writes a volume's files as a tar stream to what begin returns, which is told how
// many bytes they take on the disk. It blocks until no task of the node has the volume, and
// nobody can use it meanwhile. Sockets are left out. One that was never used here has no
// files.
func (s *Store) Export(ctx context.Context, id string, begin func(room int64) io.Writer) error {
	if err := valid(id); err != nil {
		return err
	}
	for freed := s.freed(id); freed != nil; freed = s.freed(id) {
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
	if err := s.export(ctx, id, begin); err != nil {
		return fmt.Errorf("reading volume %.12s: %w", id, err)
	}
	return nil
}

func (s *Store) export(ctx context.Context, id string, begin func(room int64) io.Writer) error {
	dir, err := openDir(unix.AT_FDCWD, s.Path(id))
	if errors.Is(err, os.ErrNotExist) {
		return tar.NewWriter(begin(0)).Close()
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := s.settle(ctx, task.Volume{ID: id, Name: id}); err != nil {
		return err
	}
	room, err := measure(ctx, dir, func(st *unix.Stat_t) int64 { return st.Blocks * 512 })
	if err != nil {
		return err
	}
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return err
	}
	x := &exporting{ctx: ctx, to: tar.NewWriter(begin(room)), links: map[inode]string{}}
	if err := x.root(dir); err != nil {
		return err
	}
	return x.to.Close()
}

// freed returns what is closed once no task has a volume, nil if none has.
func (s *Store) freed(id string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vols[id]; v != nil && len(v.held) > 0 {
		return v.freed
	}
	return nil
}

type exporting struct {
	ctx   context.Context
	to    *tar.Writer
	links map[inode]string // where a file with further names was written
}

func (x *exporting) root(dir *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(fdOf(dir), &st); err != nil {
		return err
	}
	h := header("./", &st)
	h.Typeflag = tar.TypeDir
	if err := x.head(h, byFD(fdOf(dir))+"/."); err != nil {
		return err
	}
	return x.dir(dir, "", 1)
}

func (x *exporting) dir(dir *os.File, at string, depth int) error {
	for {
		names, err := dir.Readdirnames(batch)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = x.ctx.Err()
		}
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := x.entry(dir, n, path.Join(at, n), depth); err != nil {
				return err
			}
		}
	}
}

func header(name string, st *unix.Stat_t) *tar.Header {
	return &tar.Header{Format: tar.FormatPAX, Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), AccessTime: time.Unix(st.Atim.Unix()), PAXRecords: map[string]string{}}
}

// head writes a header, with the extended attributes of what is at a path.
func (x *exporting) head(h *tar.Header, path string) error {
	err := eachXattr(path, func(name string, value []byte) error {
		h.PAXRecords[xattrRecord+name] = string(value)
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return x.to.WriteHeader(h)
}

func (x *exporting) entry(in *os.File, name, at string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fdOf(in), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: at, Err: err}
	}
	h, self := header(at, &st), byFD(fdOf(in))+"/"+name
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && kind != unix.S_IFSOCK && st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino} //nolint:unconvert // it is not 64 bits everywhere
		if first, ok := x.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return x.to.WriteHeader(h)
		}
		if len(x.links) == maxLinked {
			return fmt.Errorf("more than %d of its files have several names", maxLinked)
		}
		x.links[id] = at
	}
	switch kind {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, at+"/"
		return x.below(in, name, at, depth, h)
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
		return x.file(in, name, h)
	case unix.S_IFLNK:
		target, err := os.Readlink(self)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		if h.Typeflag = tar.TypeChar; kind == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return nil
	}
	return x.head(h, self)
}

func (x *exporting) below(in *os.File, name, at string, depth int, h *tar.Header) error {
	if depth == maxNested {
		return errNested
	}
	dir, err := openDir(fdOf(in), name)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := x.head(h, byFD(fdOf(dir))+"/."); err != nil {
		return err
	}
	return x.dir(dir, at, depth+1)
}

func (x *exporting) file(in *os.File, name string, h *tar.Header) error {
	fd, err := unix.Openat(fdOf(in), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: h.Name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	if err := x.head(h, byFD(fdOf(in))+"/"+name); err != nil {
		return err
	}
	for left := h.Size; left > 0; {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		n, err := io.CopyN(x.to, f, min(left, maxPiece))
		if left -= n; err != nil {
			return &os.PathError{Op: "read", Path: h.Name, Err: err}
		}
	}
	return nil
}
