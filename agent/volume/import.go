package volume

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// arriving is where the files of a volume are that comes from another node.
const arriving = "_data.part"

// ErrNoRoom means that a volume's files do not fit on the node's disk.
var ErrNoRoom = errors.New("not enough room on the disk")

// reserve is the part of a disk that a volume from another node leaves free: a twentieth.
const reserve = 20

// maxAfter bounds what may follow the end of a tar stream.
const maxAfter = 1 << 20

// Import makes a volume of the files that Export wrote on another node, which may lie in
// anything but owners and modes below the volume's directory. The volume is there once all of
// r was read to its end, which says whether it is what was sent; else nothing of it stays.
// room is how many bytes of the disk it needs; progress is called with those written.
func (s *Store) Import(ctx context.Context, id string, room int64, r io.Reader, progress func(written int64)) error {
	if err := valid(id); err != nil {
		return err
	}
	_, give, err := s.take(ctx, id)
	if err != nil {
		return err
	}
	defer give()
	if s.gone(id) {
		return fmt.Errorf("volume %.12s: %w", id, ErrRemoved)
	}
	if err := os.Mkdir(s.dir(id), 0o700); err != nil {
		return fmt.Errorf("writing volume %.12s: %w", id, err)
	}
	if err := s.receive(ctx, id, room, r, progress); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.MountWithin)
		defer cancel()
		return fmt.Errorf("writing volume %.12s: %w", id, errors.Join(err, s.delete(ctx, id)))
	}
	return nil
}

func (s *Store) receive(ctx context.Context, id string, room int64, r io.Reader, progress func(int64)) error {
	dir, err := openDir(unix.AT_FDCWD, s.dir(id))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := unix.Mkdirat(fdOf(dir), arriving, 0o755); err != nil {
		return err
	}
	top, err := openDir(fdOf(dir), arriving)
	if err != nil {
		return err
	}
	defer func() { _ = top.Close() }()
	m := &importing{ctx: ctx, top: top, statfs: s.o.Statfs, progress: progress}
	if err := m.fits(room); err != nil {
		return err
	}
	if err := m.all(tar.NewReader(r)); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(r, maxAfter)); err != nil || n == maxAfter {
		return fmt.Errorf("after the last file: %w", cmp.Or(err, errors.New("the stream does not end")))
	}
	if err := unix.Syncfs(fdOf(top)); err != nil {
		return err
	}
	if err := unix.Renameat(fdOf(dir), arriving, fdOf(dir), filepath.Base(s.Path(id))); err != nil {
		return err
	}
	all, err := openDir(unix.AT_FDCWD, s.o.Dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), all.Sync(), all.Close())
}

type importing struct {
	ctx      context.Context
	top      *os.File
	statfs   func(fd int, st *unix.Statfs_t) error
	dirs     []*tar.Header // that files are still put into: each gets its times after them
	progress func(int64)
	written  int64
	looked   int64 // written, when the disk was looked at last
}

// fits reports whether the disk has room for so many bytes more.
func (m *importing) fits(room int64) error {
	var st unix.Statfs_t
	if err := m.statfs(fdOf(m.top), &st); err != nil {
		return err
	}
	free := (int64(st.Bavail) - int64(st.Blocks)/reserve) * st.Bsize
	if room > free || st.Files > 0 && st.Ffree < st.Files/reserve {
		return fmt.Errorf("%w: it needs %d MB, and %d MB are free but for a twentieth", ErrNoRoom, room>>20, max(0, free)>>20)
	}
	return nil
}

func (m *importing) all(r *tar.Reader) error {
	for n := 1; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return m.leave("")
		}
		if err == nil {
			err = m.ctx.Err()
		}
		if err == nil && n%batch == 0 { // files without bytes take room too
			err = m.fits(0)
		}
		if err != nil {
			return err
		}
		if err := m.entry(r, h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// leave completes the directories that a path is not in; "" is in none.
func (m *importing) leave(at string) error {
	for len(m.dirs) > 0 {
		h := m.dirs[len(m.dirs)-1]
		if at != "" && (h.Name == "." || strings.HasPrefix(at, h.Name+"/")) {
			return nil
		}
		dir, err := m.open(h.Name)
		if err != nil {
			return err
		}
		if err := errors.Join(attributesOf(h, unix.S_IFDIR, fdOf(dir)), dir.Close()); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		m.dirs = m.dirs[:len(m.dirs)-1]
	}
	return nil
}

// open opens a directory of the volume.
func (m *importing) open(at string) (*os.File, error) {
	how := within
	how.Flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat2(fdOf(m.top), at, &how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: at, Err: err}
	}
	return os.NewFile(uintptr(fd), at), nil
}

func (m *importing) entry(r io.Reader, h *tar.Header) error {
	h.Name = path.Clean(h.Name)
	if !filepath.IsLocal(h.Name) {
		return errors.New("it is not a path in a volume")
	}
	if err := m.leave(h.Name); err != nil {
		return err
	}
	if h.Name == "." {
		if h.Typeflag != tar.TypeDir || len(m.dirs) > 0 {
			return errors.New("it is not the directory of a volume")
		}
		m.dirs = append(m.dirs, h)
		return nil
	}
	in, err := m.open(path.Dir(h.Name))
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	name := path.Base(h.Name)
	var kind uint32
	switch h.Typeflag {
	case tar.TypeDir:
		m.dirs = append(m.dirs, h)
		return unix.Mkdirat(fdOf(in), name, 0o700)
	case tar.TypeReg:
		return m.file(r, in, name, h)
	case tar.TypeLink:
		return link(m.top, path.Clean(h.Linkname), in, name)
	case tar.TypeSymlink:
		kind, err = unix.S_IFLNK, unix.Symlinkat(h.Linkname, fdOf(in), name)
	case tar.TypeFifo:
		kind, err = unix.S_IFIFO, unix.Mknodat(fdOf(in), name, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar, tar.TypeBlock:
		if kind = unix.S_IFCHR; h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		err = unix.Mknodat(fdOf(in), name, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	default:
		return fmt.Errorf("type %q is unknown", h.Typeflag)
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat2(fdOf(in), name, &within)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return attributesOf(h, kind, fd)
}

func (m *importing) file(r io.Reader, in *os.File, name string, h *tar.Header) error {
	fd, err := unix.Openat(fdOf(in), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	err = m.data(r, f, h.Size)
	if err == nil {
		err = attributesOf(h, unix.S_IFREG, fd)
	}
	return errors.Join(err, f.Close())
}

// block is what is left out of a file if it is zero.
const block = 64 << 10

var zeros [block]byte

func (m *importing) data(r io.Reader, f *os.File, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	buf := make([]byte, min(block, size))
	for at := int64(0); at < size; {
		p := buf[:min(int64(len(buf)), size-at)]
		if _, err := io.ReadFull(r, p); err != nil {
			return err
		}
		if !bytes.Equal(p, zeros[:len(p)]) {
			if _, err := f.WriteAt(p, at); err != nil {
				return err
			}
			m.written += int64(len(p))
		}
		at += int64(len(p))
		if m.written-m.looked >= maxPiece {
			m.looked = m.written
			if err := m.fits(0); err != nil { // others write too, and room is what the sender says
				return err
			}
		}
		m.progress(m.written)
		if err := m.ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func attributesOf(h *tar.Header, kind uint32, fd int) error {
	st := &unix.Stat_t{Uid: uint32(h.Uid), Gid: uint32(h.Gid), Mode: kind | uint32(h.Mode&0o7777)}
	for _, t := range []struct {
		to *unix.Timespec
		at int64
	}{{&st.Atim, h.AccessTime.UnixNano()}, {&st.Mtim, h.ModTime.UnixNano()}} {
		*t.to = unix.NsecToTimespec(t.at)
	}
	return own(fd, st, func(path string) error {
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, xattrRecord); ok {
				if err := setXattr(path, name, []byte(v)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
