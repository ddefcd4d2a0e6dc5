package engine

import (
	"context"

	"github.com/drover/drover/agent/shims"
)

// Tasks are the calls that tests disturb.
type Tasks = tasks

// Disturb makes engines that are opened from now on call what f returns.
func Disturb(f func(Tasks) Tasks) (undo func()) {
	was := newTasks
	newTasks = func(o shims.Options) (tasks, error) {
		t, err := was(o)
		if err != nil {
			return nil, err
		}
		return f(t), nil
	}
	return func() { newTasks = was }
}

// SpecOf returns the OCI runtime spec that a prepared container would be started with.
func (e *Engine) SpecOf(ctx context.Context, id string) ([]byte, error) {
	s, err := e.readSpec(id)
	if err != nil {
		return nil, err
	}
	m, err := e.replan(e.ctx(ctx), s)
	return m.spec, err
}
