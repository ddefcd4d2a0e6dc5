package engineapi

import (
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/controller/fleet"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A container is what the newest life known of it is, whether the log or its agent knows
// that one.
func TestAContainerIsInTheStateOfItsNewestLife(t *testing.T) {
	exit := func(attempt, restarts, code int32) *dv1.Exit {
		return &dv1.Exit{Attempt: attempt, Restarts: restarts, Code: code}
	}
	const active, failed, exited = dv1.Phase_ACTIVE, dv1.Phase_FAILED, dv1.Phase_EXITED
	for what, c := range map[string]struct {
		task *dv1.Task
		st   *dv1.TaskStatus
		want container.ContainerState
		code int32 // of the exit of the attempt, -1 if it has not ended
	}{
		"it runs":                          {&dv1.Task{Attempt: 1, Started: 5}, &dv1.TaskStatus{Attempt: 1, Phase: active}, container.StateRunning, -1},
		"it ended":                         {&dv1.Task{Attempt: 1, Started: 5, Exit: exit(1, 0, 3)}, nil, container.StateExited, 3},
		"it ended, says its agent":         {&dv1.Task{Attempt: 1, Started: 5}, &dv1.TaskStatus{Attempt: 1, Phase: exited, Exit: exit(1, 0, 3)}, container.StateExited, 3},
		"an earlier attempt's status":      {&dv1.Task{Attempt: 2, Started: 5}, &dv1.TaskStatus{Attempt: 1, Phase: exited, Exit: exit(1, 0, 3)}, container.StateRunning, -1},
		"begun anew":                       {&dv1.Task{Attempt: 1, Restarts: 1, Started: 9, Exit: exit(1, 0, 3)}, nil, container.StateRunning, -1},
		"begun anew, says its agent":       {&dv1.Task{Attempt: 1, Started: 5}, &dv1.TaskStatus{Attempt: 1, Restarts: 1, Phase: active, Exit: exit(1, 0, 3)}, container.StateRunning, -1},
		"an earlier life's status":         {&dv1.Task{Attempt: 1, Restarts: 2, Started: 9}, &dv1.TaskStatus{Attempt: 1, Restarts: 1, Phase: exited, Exit: exit(1, 1, 3)}, container.StateRunning, -1},
		"the last life ended":              {&dv1.Task{Attempt: 1, Restarts: 2, Started: 9, Exit: exit(1, 2, 7)}, &dv1.TaskStatus{Attempt: 1, Restarts: 2, Phase: active}, container.StateExited, 7},
		"the last life did not begin":      {&dv1.Task{Attempt: 1, Restarts: 1, Exit: exit(1, 0, 3), Failed: "no"}, nil, container.StateExited, -1},
		"it did not begin, says its agent": {&dv1.Task{Attempt: 1, Restarts: 1, Exit: exit(1, 0, 3)}, &dv1.TaskStatus{Attempt: 1, Restarts: 1, Phase: failed}, container.StateExited, -1},
	} {
		c.task.Id = make([]byte, 32)
		seen := &fleet.Observations{Tasks: map[string]*dv1.TaskStatus{}}
		if c.st != nil {
			seen.Tasks[hexID(c.task)] = c.st
		}
		v := &view{t: c.task, st: current(seen, c.task)}
		if got := v.state(); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
		if e := v.exit(); (e == nil) != (c.code < 0) || e != nil && e.Code != c.code {
			t.Errorf("%s: its exit is %v, want %d", what, e, c.code)
		}
	}
}
