// Package logfile bounds the size of log files that several processes append to. What is
// written is up to them.
//
// Writers keep the file open, outlive each other, and must never wait for a rotation: so
// the file is not renamed, but copied and truncated in place. They must open it with
// O_APPEND, or the file gets a hole as long as what was truncated.
package logfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// Bounds of a log on a host: the file and the one before it.
const (
	MaxSize = 16 << 20
	Every   = 5 * time.Second
)

// Open opens a log for appending, readable by its owner only.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	return f, nil
}

// Rotate copies a log that is larger than max bytes to path.1, replacing it, and
// truncates the log. Of a log that grew far beyond max, only the last max bytes are
// kept. A line that is written as the copy ends may be lost; writers never block. A
// missing log counts as small.
func Rotate(path string, max int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rotating a log: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil || st.Size() <= max || !st.Mode().IsRegular() {
		return err
	}
	if err := keep(f, path+".1", st.Size()-max); err != nil {
		// A full disk must not get fuller because the log can't be kept.
		return errors.Join(fmt.Errorf("keeping the rotated part of log %s: %w", path, err), f.Truncate(0))
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("emptying the log: %w", err)
	}
	return nil
}

// keep copies f from an offset on. The copy need not be durable, and isn't synced.
func keep(f *os.File, path string, from int64) error {
	temp := path + ".new"
	out, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Seek(from, io.SeekStart)
	if err == nil {
		_, err = io.Copy(out, f)
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		_ = os.Remove(temp)
	}
	return err
}

// Watch rotates a log whenever it is larger than max bytes, and once at the start, until
// ctx ends. Errors are passed to report, and rotation is retried later.
func Watch(ctx context.Context, path string, max int64, report func(error)) {
	t := time.NewTicker(Every)
	defer t.Stop()
	for {
		if err := Rotate(path, max); err != nil {
			report(err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
