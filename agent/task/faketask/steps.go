package faketask

import (
	"context"
	"slices"
	"strings"
	"sync"
)

// steps are the calls made to an engine and its images.
type steps struct {
	mu    sync.Mutex // guards the fields below
	calls []string
	hook  func(ctx context.Context, call, id string) error
}

// Hook is called before each step ("prepare", "start", "signal SIGTERM", "rewire", "release",
// "remove", and "list" and "pull", which belong to no task) with the step's context; its
// error becomes the step's. It may block.
func (e *Engine) Hook(f func(ctx context.Context, call, id string) error) {
	e.steps.mu.Lock()
	defer e.steps.mu.Unlock()
	e.steps.hook = f
}

// Calls returns the steps so far, as "CALL ID" with the id's first two digits.
func (e *Engine) Calls() []string {
	e.steps.mu.Lock()
	defer e.steps.mu.Unlock()
	return slices.Clone(e.steps.calls)
}

func (s *steps) take(ctx context.Context, what, id string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	s.calls = append(s.calls, strings.TrimSpace(what+" "+id[:min(2, len(id))]))
	h := s.hook
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	return h(ctx, what, id)
}
