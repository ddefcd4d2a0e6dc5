package task

import "errors"

var (
	// ErrNoImage: the digest's content is not in the engine's store.
	ErrNoImage = errors.New("image is not on this node")
	// ErrNotFound: the engine holds no such task, attempt or exec.
	ErrNotFound = errors.New("not found")
	// ErrNotRunning: the step needs a running attempt.
	ErrNotRunning = errors.New("not running")
	// ErrStale: the sync is older than the highest (epoch, term, index) taken.
	ErrStale = errors.New("older than what this agent has")
)
