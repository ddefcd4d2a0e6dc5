// Package task keeps a node's tasks in their desired state: a durable store of what was
// assigned, and a reconciler that brings a Runtime there one step at a time. Running
// containers is up to the Runtime, talking to controllers up to the session.
package task

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/container"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// Spec is all that a Runtime needs to know about a task. Labels of the container in the
// engine hold cluster, task and spec hash, so that a lost agent store can be rebuilt.
type Spec struct {
	ID         string // 64 hex characters
	Name       string
	Image      string // as given by the user
	Digest     string // what to run; its content is in the engine's store
	SpecHash   string
	Create     container.CreateRequest // docker's request, decoded
	AutoRemove bool
	Mounts     []Mount // besides the request's own binds and tmpfs
}

// Mount is a volume in a container, or a path of the node that another container mounts.
type Mount struct {
	Volume       *Volume `json:",omitempty"` // nil: a path
	Source       string  `json:",omitempty"` // the path
	CreateSource bool    `json:",omitempty"` // it is created if it is missing
	Target       string
	ReadOnly     bool   `json:",omitempty"`
	NoCopy       bool   `json:",omitempty"` // an empty volume is not seeded from the image
	Subpath      string `json:",omitempty"` // what is mounted of the volume
	Propagation  string `json:",omitempty"` // of a path
}

// Volume is a volume with data on this node, or one that the node mounts.
type Volume struct {
	ID      string // 64 hex characters
	Name    string
	Options map[string]string `json:",omitempty"` // of docker's driver local
}

// Attempt is one life of a task's process, as seen by the engine.
type Attempt struct {
	Life      life.Life
	Pid       int
	Started   time.Time
	IP        string // this and the next three: in the node's own network, "" without
	Gateway   string
	MAC       string
	PrefixLen int
	Ports     []*dv1.Port
	Exit      *dv1.Exit // nil while it runs
	Before    *dv1.Exit // of the last life that ended before, in the same attempt; nil: none
	// StopSignal is the image's stop signal, "" if it names none.
	StopSignal string
	Timings    []Timing // of this start, for traces
}

// Wiring is what a start connects a task to.
type Wiring struct {
	Ports     []*dv1.Port     // to be published; host 0 is any
	Endpoints []*dv1.Endpoint // in networks of the fleet
}

// Timing is a step in the engine or the shim, for a span created later.
type Timing struct {
	Name       string
	Start, End time.Time
}

// Found is a task that the engine holds.
type Found struct {
	Spec    Spec
	Attempt Attempt // the zero Life: never started
	Running bool
	Paused  bool
}

// Runtime runs containers. The reconciler drives it one step at a time; every step is
// idempotent, so that it can be repeated after a crash at any point. Implementations are
// containerd (agent/engine) and an in-memory fake (agent/task/faketask); both pass
// enginetest.Runtime. Safe for concurrent use on different tasks; the caller orders the
// calls on one task, except Signal and the calls of Streams, which may be made at any
// time.
type Runtime interface {
	// Prepare creates snapshot and container for s, but not its network. Its image must be
	// in the store (ErrNoImage otherwise).
	Prepare(ctx context.Context, s Spec) error
	// Start connects the task to its networks, binds ports and begins life l; a nil w is an
	// empty one. What the life before it held is released; if that was not released yet, its
	// addresses and ports are this one's.
	// If l is running or has ended already, Start returns it as it is; if a later one
	// has begun, the error is ErrNotFound. It is a *StartError if the user's request is at
	// fault.
	Start(ctx context.Context, id string, l life.Life, w *Wiring) (Attempt, error)
	// Rewire brings the networks of the fleet that a running task is in to endpoints. One
	// that does not run is left as it is.
	Rewire(ctx context.Context, id string, endpoints []*dv1.Endpoint) error
	// Wait blocks until life l has ended and returns its durable exit record, never that
	// of another life. If l never was and a later one has begun, the error is ErrNotFound.
	Wait(ctx context.Context, id string, l life.Life) (*dv1.Exit, error)
	// Signal sends sig ("SIGTERM", "15") to the running process.
	Signal(ctx context.Context, id string, sig string) error
	// Release frees what an ended life holds: shim, network, ports. The writable layer,
	// logs and exit record are kept.
	Release(ctx context.Context, id string) error
	// Remove frees everything, including logs. A missing task is no error.
	Remove(ctx context.Context, id string) error
	// List returns every task that the runtime holds, after adopting shims that outlived
	// an agent or containerd.
	List(ctx context.Context) ([]Found, error)
}

// StartError is a start that docker refuses with a message and an exit code: 125 for the
// engine's side (ports), 126 not executable, 127 not found.
type StartError struct {
	Code    int
	Message string
}

func (e *StartError) Error() string { return e.Message }

// Refuse returns a *StartError with docker's code 125.
func Refuse(format string, args ...any) error {
	return &StartError{Code: 125, Message: fmt.Sprintf(format, args...)}
}

// why is what a user reads of a start that failed: docker's message alone, where it is
// docker that would refuse it.
func why(err error) string {
	if se := (*StartError)(nil); errors.As(err, &se) {
		return se.Message
	}
	return err.Error()
}
