package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Size returns the bytes of a volume's files, each inode once, as docker counts them. It is
// 0 for one that was never used here, and an error for one whose directories are nested
// deeper than a path can name.
func (s *Store) Size(ctx context.Context, id string) (int64, error) {
	if err := valid(id); err != nil {
		return 0, err
	}
	dir, err := openDir(unix.AT_FDCWD, s.Path(id))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	var total int64
	if err == nil {
		defer func() { _ = dir.Close() }()
		total, err = measure(ctx, dir, func(st *unix.Stat_t) int64 { return st.Size })
	}
	if err != nil {
		return 0, fmt.Errorf("the size of volume %.12s: %w", id, err)
	}
	return total, nil
}

// measure adds up what a function returns for each file in a directory that is none.
func measure(ctx context.Context, dir *os.File, of func(*unix.Stat_t) int64) (int64, error) {
	m := &measuring{ctx: ctx, of: of, shared: map[uint64]int64{}}
	if err := m.dir(dir, 1); err != nil {
		return 0, err
	}
	total := m.alone
	for links, size := range m.shared {
		total += size / int64(links)
	}
	return total, nil
}

// measuring adds up sizes. A file of several names is met as often: memory for each such
// file would be up to containers.
type measuring struct {
	ctx    context.Context
	of     func(*unix.Stat_t) int64
	alone  int64            // of files with one name
	shared map[uint64]int64 // of names, by how many their file has
}

func (m *measuring) dir(dir *os.File, depth int) error {
	for {
		names, err := dir.Readdirnames(batch)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = m.ctx.Err()
		}
		for _, n := range names {
			if err == nil {
				err = m.name(dir, n, depth)
			}
		}
		if err != nil {
			return err
		}
	}
}

func (m *measuring) name(in *os.File, name string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(fdOf(in), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT): // it went meanwhile
		return nil
	case err != nil:
		return &os.PathError{Op: "stat", Path: name, Err: err}
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		if depth == maxNested {
			return errNested
		}
		dir, err := openDir(fdOf(in), name)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP): // it was replaced
			return nil
		case errors.Is(err, unix.EXDEV): // it is mounted there
			return nil
		case err != nil:
			return err
		}
		defer func() { _ = dir.Close() }()
		return m.dir(dir, depth+1)
	case st.Nlink > 1:
		m.shared[uint64(st.Nlink)] += m.of(&st) //nolint:unconvert // it is not 64 bits everywhere
	default:
		m.alone += m.of(&st)
	}
	return nil
}

var errNested = fmt.Errorf("its directories are nested deeper than %d", maxNested)
