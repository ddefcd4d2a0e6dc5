// Package task keeps a node's tasks as they should be: a durable store of what
// was assigned, and a reconciler that brings an Engine there one step at a time.
// Running containers is the Engine's, talking to controllers the session's.
package task

import (
	"context"
	"io"
	"time"

	"github.com/moby/moby/api/types/container"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Spec is all that an Engine needs to know of a task. Labels of the container
// in the engine hold cluster, task, attempt and spec hash, so that a lost
// agent store can be rebuilt.
type Spec struct {
	ID         string // 64 hex characters
	Name       string
	Image      string // as the user wrote it
	Digest     string // what to run; its content is in the engine's store
	SpecHash   string
	Create     container.CreateRequest // docker's own, decoded
	AutoRemove bool
}

// Attempt is one life of a task's process, as the engine sees it.
type Attempt struct {
	Number    int32
	Pid       int
	Started   time.Time
	IP        string
	Gateway   string
	MAC       string
	PrefixLen int
	Ports     []*dv1.Port
	Exit      *dv1.Exit // nil while it runs
	// StopSignal is the image's, "" if it names none.
	StopSignal string
	Timings    []Timing // of this start, for traces
}

// Timing is a step inside the engine or the shim, for a span made later.
type Timing struct {
	Name       string
	Start, End time.Time
}

// Found is a task that the engine holds.
type Found struct {
	Spec    Spec
	Attempt Attempt // Number 0: never started
	Running bool
	Paused  bool
}

// Engine runs containers. The reconciler drives it one step at a time; every
// step is idempotent, so that it can be repeated after a crash at any point.
// Implementations: containerd (agent/engine) and an in-memory fake
// (agent/task/faketask); both pass agent/task/enginetest. Safe for concurrent
// use on different tasks; calls on one task are the caller's to order, but
// Signal, Resize, Attach, Logs and Exec may come at any time.
type Engine interface {
	// Prepare makes snapshot and container for s, not its network. Its image
	// must be in the store (ErrNoImage otherwise).
	Prepare(ctx context.Context, s Spec) error
	// Start gives the task a network, binds ports (host 0: any) and starts attempt n.
	// If attempt n runs already it answers with that; if it has ended, with its exit.
	// Errors: *StartError where the user's words are at fault.
	Start(ctx context.Context, id string, n int32, ports []*dv1.Port) (Attempt, error)
	// Wait blocks until attempt n has ended and gives its durable exit record.
	Wait(ctx context.Context, id string, n int32) (*dv1.Exit, error)
	// Signal sends sig ("SIGTERM", "15") to the running attempt's process.
	Signal(ctx context.Context, id string, sig string) error
	// Release frees what an ended attempt holds: shim, network, ports. The
	// writable layer, logs and exit record stay.
	Release(ctx context.Context, id string) error
	// Remove frees everything, logs too. Removing what isn't there is no error.
	Remove(ctx context.Context, id string) error
	// List gives every task that the engine holds, with shims that outlived
	// an agent or containerd adopted.
	List(ctx context.Context) ([]Found, error)

	Resize(ctx context.Context, id string, width, height uint32) error
	Attach(ctx context.Context, id string, o AttachOptions) (Stream, error)
	Logs(ctx context.Context, id string, o LogOptions) (LogReader, error)

	// Exec prepares a process in a running task; nothing runs before ExecStart.
	ExecCreate(ctx context.Context, id, execID string, o container.ExecCreateRequest) error
	ExecStart(ctx context.Context, id, execID string, attach bool, width, height uint32) (Stream, error)
	ExecResize(ctx context.Context, id, execID string, width, height uint32) error
	ExecInspect(ctx context.Context, id, execID string) (ExecState, error)

	// Pull brings digest's content for this platform and unpacks it; progress
	// comes as it goes. ref is where to get it from, auth the caller's
	// credentials (may be nil). Returns the image as raft keeps it.
	Pull(ctx context.Context, ref, digest string, auth *Credentials, progress func(Progress)) (*dv1.Image, error)
	Images(ctx context.Context) ([]*dv1.ImageStatus, error)
	RemoveImage(ctx context.Context, digest string) error

	Capacity(ctx context.Context) (*dv1.Capacity, error)
}

// StartError is a start that docker refuses with words and an exit code:
// 125 for the engine's side (ports), 126 not executable, 127 not found.
type StartError struct {
	Code    int
	Message string
}

func (e *StartError) Error() string { return e.Message }

// AttachOptions: FromStart replays the log from the attempt's first byte, else
// only what comes after the call. Before the first start both are the same.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	FromStart             bool         // logs=1
	Stream                bool         // stream=1: go on live until the attempt ends
	From                  *LogPosition // go on here, whatever FromStart says
}

// Stream is the live side of an attach or exec. Read gives frames in
// pkg/bulk's framing, of an attach with positions; CloseWrite half-closes stdin.
// Close may come at any time, and ends what waits in the others.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// LogOptions as docker's logs. Tail -1 is all.
type LogOptions struct {
	Stdout, Stderr, Follow, Timestamps bool
	Since, Until                       time.Time
	Tail                               int
	From                               *LogPosition // go on here, whatever Tail says
}

// LogReader gives frames in pkg/bulk's framing, with positions.
type LogReader interface {
	io.ReadCloser
}

type ExecState struct {
	ID       string
	TaskID   string
	Running  bool
	ExitCode *int
	Pid      int
	Options  container.ExecCreateRequest
}

type Credentials struct{ Username, Password, IdentityToken, ServerAddress string }

// Progress is one of docker's pull lines.
type Progress struct {
	ID             string // short layer id
	Status         string // Pulling fs layer, Downloading, Download complete, Extracting, Pull complete, Already exists
	Current, Total int64
}
