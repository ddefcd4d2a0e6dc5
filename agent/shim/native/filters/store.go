// Package filters keeps compiled seccomp filters, so that a profile is compiled once on a
// host and not for each process. What a profile means, and loading it, is up to runc's
// library.
package filters

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// maxKept bounds how many filters are kept; the oldest ones go.
	maxKept = 64
	// maxSize bounds a file: the kernel takes 4096 instructions of 8 bytes.
	maxSize = 1 << 20
)

// store is a directory of files that only root can write. They need not survive a power
// cut: one that is missing or damaged is made again.
type store struct{ dir string }

// get returns what was kept for a key, nil if there is nothing, or nothing that can be
// trusted.
func (s store) get(key [sha256.Size]byte) []byte {
	if s.trusted() != nil {
		return nil
	}
	f, err := os.OpenFile(s.file(key), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || !rootsOnly(&st) || st.Size > maxSize {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil || len(b) < sha256.Size {
		return nil
	}
	sum, text := b[:sha256.Size], b[sha256.Size:]
	if want := checksum(key, text); !bytes.Equal(sum, want[:]) {
		return nil
	}
	return text
}

// put keeps text for a key.
func (s store) put(key [sha256.Size]byte, text []byte) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("keeping a seccomp filter: %w", err)
	}
	if err := s.trusted(); err != nil {
		return fmt.Errorf("keeping a seccomp filter: %w", err)
	}
	s.trim()
	f, err := os.CreateTemp(s.dir, ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("keeping a seccomp filter: %w", err)
	}
	sum := checksum(key, text)
	_, err = f.Write(append(sum[:], text...))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.file(key))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("keeping a seccomp filter: %w", err)
	}
	return nil
}

// trim makes room for one more file. Others that do so at the same time do no harm.
func (s store) trim() {
	all, err := os.ReadDir(s.dir)
	if err != nil || len(all) < maxKept {
		return
	}
	age := func(e os.DirEntry) int64 {
		i, err := e.Info()
		if err != nil {
			return 0
		}
		return i.ModTime().UnixNano()
	}
	slices.SortFunc(all, func(a, b os.DirEntry) int { return int(min(1, max(-1, age(a)-age(b)))) })
	for _, e := range all[:len(all)-maxKept+1] {
		_ = os.Remove(filepath.Join(s.dir, e.Name()))
	}
}

// trusted reports why the directory may have been written by others than root.
func (s store) trusted() error {
	var st unix.Stat_t
	if err := unix.Lstat(s.dir, &st); err != nil {
		return os.NewSyscallError("lstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || !rootsOnly(&st) {
		return fmt.Errorf("%s is not a directory that only root can write", s.dir)
	}
	return nil
}

func rootsOnly(st *unix.Stat_t) bool { return st.Uid == 0 && st.Mode&0o022 == 0 }

func (s store) file(key [sha256.Size]byte) string {
	return filepath.Join(s.dir, hex.EncodeToString(key[:16]))
}

// checksum is of the whole key, too: a file under another one's name is damaged.
func checksum(key [sha256.Size]byte, text []byte) [sha256.Size]byte {
	return sha256.Sum256(append(key[:], text...))
}
