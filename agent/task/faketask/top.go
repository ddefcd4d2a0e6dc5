package faketask

import (
	"context"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
)

// Top lists a task's program and those of its execs, whatever the arguments.
func (e *Engine) Top(_ context.Context, id, _ string) (container.TopResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := container.TopResponse{Titles: []string{"PID", "CMD"}}
	switch t := e.tasks[id]; {
	case t == nil:
		return list, notFound(id)
	case t.p == nil:
		return list, task.ErrNotRunning
	default:
		list.Processes = append(list.Processes, []string{strconv.Itoa(t.attempt.Pid), strings.Join(command(t.spec.Create), " ")})
	}
	for _, x := range e.execs {
		if x.of == id && x.p != nil {
			list.Processes = append(list.Processes, []string{strconv.Itoa(x.attempt.Pid), strings.Join(x.o.Cmd, " ")})
		}
	}
	return list, nil
}
