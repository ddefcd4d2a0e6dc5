package task

import "errors"

var (
	// ErrNoImage: the digest's content is not in the engine's store.
	ErrNoImage = errors.New("image is not on this node")
	// ErrNotFound: the engine holds no such task, attempt or exec.
	ErrNotFound = errors.New("not found")
	// ErrNotRunning: the step needs a running attempt.
	ErrNotRunning = errors.New("not running")
)
