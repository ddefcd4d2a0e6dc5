package task

import "errors"

var (
	// ErrNoImage reports that the digest's content is not in the engine's store.
	ErrNoImage = errors.New("image is not on this node")
	// ErrNotFound reports that the engine has no such task, attempt or exec.
	ErrNotFound = errors.New("not found")
	// ErrNotRunning reports that the step needs a running attempt.
	ErrNotRunning = errors.New("not running")
	// ErrStale reports a sync older than the highest (epoch, term, index) stored.
	ErrStale = errors.New("older than what this agent has")
)
