package task

import (
	"context"
	"io"
	"time"

	"github.com/moby/moby/api/types/container"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

// Streams is what users do with a task while the reconciler drives it: read its output,
// write to it, signal it, run something beside it. Every call may be made at any time,
// also concurrently on one task; implementations are those of Runtime, and pass
// enginetest.Streams. For a missing task, calls return ErrNotFound; where they need a
// running process, ErrNotRunning.
type Streams interface {
	// Wait and Signal are Runtime's.
	Wait(ctx context.Context, id string, l life.Life) (*dv1.Exit, error)
	Signal(ctx context.Context, id string, sig string) error
	// Resize sets the size of the running process's terminal, in characters.
	Resize(ctx context.Context, id string, width, height uint32) error
	// Attach connects to the running process's streams. For a task that isn't running, it
	// waits for the life that follows, unless the log of the last one is requested.
	Attach(ctx context.Context, id string, o AttachOptions) (Stream, error)
	// Top lists the processes of a running task, execs among them, with the columns that
	// args make the host's ps print.
	Top(ctx context.Context, id, args string) (container.TopResponse, error)
	// Stats samples what a running task uses, without names and an earlier sample.
	Stats(ctx context.Context, id string) (container.StatsResponse, error)
	// Logs reads the output of all lives.
	Logs(ctx context.Context, id string, o LogOptions) (LogReader, error)

	// ExecCreate prepares a process in a running task; nothing runs before ExecStart.
	ExecCreate(ctx context.Context, id, execID string, o container.ExecCreateRequest) error
	// ExecStart runs it, once. Without attach, the stream may be nil.
	ExecStart(ctx context.Context, id, execID string, attach bool, width, height uint32) (Stream, error)
	// ExecResize and ExecInspect accept "" as the id of any task.
	ExecResize(ctx context.Context, id, execID string, width, height uint32) error
	ExecInspect(ctx context.Context, id, execID string) (ExecState, error)
}

// AttachOptions are those of Attach. FromStart replays the log from the life's first
// byte; otherwise only output after the call is returned. Before the first start both
// are the same.
type AttachOptions struct {
	Stdin, Stdout, Stderr bool
	FromStart             bool         // logs=1
	Stream                bool         // stream=1: follow until the life ends
	From                  *LogPosition // resume here, whatever FromStart says
}

// Stream is the live side of an attach or exec. Read returns frames in pkg/bulk's
// framing, with positions for an attach; CloseWrite half-closes stdin. Close may be
// called at any time, and unblocks the other calls.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// LogOptions are those of docker's logs. Tail -1 is all.
type LogOptions struct {
	Stdout, Stderr, Follow, Timestamps bool
	Since, Until                       time.Time
	Tail                               int
	From                               *LogPosition // resume here, whatever Tail says
}

// LogReader returns frames in pkg/bulk's framing, with positions.
type LogReader interface {
	io.ReadCloser
}

// ExecState is an exec as docker inspects it. ExitCode is nil before its end.
type ExecState struct {
	ID       string
	TaskID   string
	Running  bool
	ExitCode *int
	Pid      int
	Options  container.ExecCreateRequest
}
