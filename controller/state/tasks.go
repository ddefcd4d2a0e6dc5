package state

import (
	"encoding/binary"
	"iter"
	"strings"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

var tasks = &kind[*dv1.Task]{
	name:    "task",
	key:     func(m *dv1.Task) string { return string(m.Id) },
	indexes: []*index[*dv1.Task]{tasksByName, tasksByNode, tasksByRun, tasksBySpec, tasksByAge, liveTasksByAge, endedTasksByAge},
	stamp:   func(m *dv1.Task, index uint64) { m.Revision = index },
	total:   newUsage,
}

var (
	tasksByName = &index[*dv1.Task]{unique: "name", key: func(m *dv1.Task) string { return m.Name + sep }}
	tasksByNode = &index[*dv1.Task]{key: func(m *dv1.Task) string {
		if m.NodeId == "" {
			return ""
		}
		return m.NodeId + sep
	}}
	tasksByRun  = &index[*dv1.Task]{key: func(m *dv1.Task) string { return string(m.RunId) }}
	tasksBySpec = &index[*dv1.Task]{key: func(m *dv1.Task) string { return string(m.SpecId) }}
	// Newest first.
	tasksByAge     = &index[*dv1.Task]{width: 8, key: age}
	liveTasksByAge = &index[*dv1.Task]{width: 8, key: func(m *dv1.Task) string {
		if !Live(m) {
			return ""
		}
		return age(m)
	}}
	endedTasksByAge = &index[*dv1.Task]{width: 8, key: func(m *dv1.Task) string {
		if m.Attempt == 0 || Live(m) {
			return ""
		}
		return age(m)
	}}
)

func age(m *dv1.Task) string { return string(binary.BigEndian.AppendUint64(nil, ^uint64(m.Created))) }

// Live reports whether a task's current attempt may have a process: it is desired,
// and the log has no exit of it.
func Live(t *dv1.Task) bool { return t.Attempt > 0 && t.Failed == "" && LastExit(t) == nil }

// Running reports whether a task's current attempt has started and not exited, as
// far as the log knows.
func Running(t *dv1.Task) bool { return Live(t) && t.Started != 0 }

// LastExit returns how a task's current attempt ended, nil if it has not: exits of
// earlier attempts, and exits that the agent has restarted after, don't count.
func LastExit(t *dv1.Task) *dv1.Exit {
	if e := t.Exit; e != nil && !life.Of(e).Before(life.Of(t)) {
		return e
	}
	return nil
}

// Task returns a task, or nil.
func (s *Snapshot) Task(id []byte) *dv1.Task { return tasks.get(s, string(id)) }

// TaskByName returns a task, or nil. The name has no leading slash.
func (s *Snapshot) TaskByName(name string) *dv1.Task { return tasks.first(s, tasksByName, name+sep) }

// TaskNamed reports whether a task has a name, for less than TaskByName.
func (s *Snapshot) TaskNamed(name string) bool {
	for range tasks.keys(s, tasksByName, name+sep) {
		return true
	}
	return false
}

// TasksByPrefix returns the tasks whose hex id starts with prefix; none if it is
// empty or not hex.
func (s *Snapshot) TasksByPrefix(prefix string) []*dv1.Task { return byPrefix(s, tasks, prefix) }

// Tasks yields all tasks, sorted by id.
func (s *Snapshot) Tasks() iter.Seq[*dv1.Task] { return tasks.each(s, "") }

// TasksByAge yields all tasks, newest first and those of one time sorted by
// id, as docker lists them.
func (s *Snapshot) TasksByAge() iter.Seq[*dv1.Task] { return tasks.by(s, tasksByAge, "") }

// TaskNames yields the names of tasks that start with prefix, in order.
func (s *Snapshot) TaskNames(prefix string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for e := range tasks.in(s).indexes[tasksByName.at].from(prefix) {
			if name, _, _ := strings.Cut(e, sep); !yield(name) {
				return
			}
		}
	}
}

// TasksOfNode yields the tasks placed on a node.
func (s *Snapshot) TasksOfNode(node string) iter.Seq[*dv1.Task] {
	return tasks.by(s, tasksByNode, node+sep)
}

// TasksOfRun yields the tasks of a run.
func (s *Snapshot) TasksOfRun(run []byte) iter.Seq[*dv1.Task] {
	return tasks.by(s, tasksByRun, string(run))
}

// TasksOfSpec yields the tasks of a spec.
func (s *Snapshot) TasksOfSpec(spec []byte) iter.Seq[*dv1.Task] {
	return tasks.by(s, tasksBySpec, string(spec))
}

// LiveTasksByAge yields the tasks that are Live, in the order of TasksByAge.
func (s *Snapshot) LiveTasksByAge() iter.Seq[*dv1.Task] { return tasks.by(s, liveTasksByAge, "") }

// EndedTasksByAge yields the tasks whose current attempt has ended or failed to start, in
// the order of TasksByAge.
func (s *Snapshot) EndedTasksByAge() iter.Seq[*dv1.Task] { return tasks.by(s, endedTasksByAge, "") }
