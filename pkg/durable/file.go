// Package durable writes files that survive a power cut whole or not at all. Their
// content, and its version, is up to the caller.
package durable

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// WriteFile writes data to path: temp file, fsync, rename, fsync of the directory. A
// crash leaves the old file or the new one.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	return CopyFile(path, bytes.NewReader(data), mode)
}

// CopyFile is WriteFile with what r holds, which need not fit into memory. An error of r
// leaves the old file.
func CopyFile(path string, r io.Reader, mode os.FileMode) error {
	s, err := stage(path, r, mode)
	if err != nil {
		return err
	}
	if err := s.Place(); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// Staged is a file that is on disk under a temporary name.
type Staged struct{ temp, path string }

// Stage writes a file for path and syncs it, for callers that do something else before it
// takes its place, or while that becomes durable.
func Stage(path string, data []byte, mode os.FileMode) (Staged, error) {
	return stage(path, bytes.NewReader(data), mode)
}

func stage(path string, r io.Reader, mode os.FileMode) (Staged, error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return Staged{}, fmt.Errorf("writing %s: %w", path, err)
	}
	s := Staged{f.Name(), path}
	if err := fill(f, r, mode); err != nil {
		s.Discard()
		return Staged{}, fmt.Errorf("writing %s: %w", path, err)
	}
	return s, nil
}

// Place replaces the file at its path. After a crash there is the old one or the new one;
// the new one once the directory was synced. What can't be placed is discarded.
func (s Staged) Place() error {
	if err := os.Rename(s.temp, s.path); err != nil {
		s.Discard()
		return fmt.Errorf("writing %s: %w", s.path, err)
	}
	return nil
}

// Discard removes a file that was not placed.
func (s Staged) Discard() { _ = os.Remove(s.temp) }

func fill(f *os.File, r io.Reader, mode os.FileMode) error {
	_, err := io.Copy(f, r)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// SyncDir makes renames and removals inside dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}
