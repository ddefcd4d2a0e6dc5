package task

import (
	"context"
	"io"

	"github.com/moby/moby/api/types/container"
)

// Files is what users do with a task's files, whether it runs or not. Every call may be
// made at any time. For a missing task, calls return ErrNotFound; for a missing path, a
// *FileError that says so.
type Files interface {
	// StatPath describes what is at a path, without following its last name.
	StatPath(ctx context.Context, id, path string) (*container.PathStat, error)
	// ReadPath archives it. The last Read reports whether the archive is whole.
	ReadPath(ctx context.Context, id, path string) (io.ReadCloser, *container.PathStat, error)
	// WritePath extracts an archive into the directory at a path. It closes tar once it
	// needs no more of it; that must make a Read return soon.
	WritePath(ctx context.Context, id, path string, o WriteOptions, tar io.ReadCloser) error
	// Export archives all files but what is mounted.
	Export(ctx context.Context, id string) (io.ReadCloser, error)
	// Changes writes how they differ from the image's, as docker's JSON.
	Changes(ctx context.Context, id string) (io.ReadCloser, error)
}

// WriteOptions are docker's.
type WriteOptions struct {
	NoOverwriteDir bool // a directory is not replaced by a file, or the reverse
	Chown          bool // everything is written to the task's user
}

// FileError is a path that is missing, or what can't be done with it.
type FileError struct {
	Missing bool
	Message string
}

// Error implements error.
func (e *FileError) Error() string { return e.Message }
