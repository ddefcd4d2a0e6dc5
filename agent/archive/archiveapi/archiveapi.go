// Package archiveapi is what an agent and drover-archive say to each other: one request,
// and replies to it. Both are of one build.
package archiveapi

import (
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/moby/api/types/container"
)

// Descriptors of the process: the request, as JSON to its end, and the replies, as JSON
// values. Archives are read from stdin and written to stdout.
const (
	RequestFD = 3
	ReplyFD   = 4
)

// Operation is what a process does.
type Operation string

// Operations.
const (
	Stat    Operation = "stat"    // replies with what is at Path
	Read    Operation = "read"    // replies with it, and writes it to stdout as an archive
	Write   Operation = "write"   // extracts an archive from stdin into the directory at Path
	Export  Operation = "export"  // replies with nothing, and writes all of Root to stdout
	Changes Operation = "changes" // the same with a JSON array of how Upper differs from Lower
)

// Request is one operation on one container's files.
type Request struct {
	Operation Operation

	// At is an empty directory of the host, where the process mounts what is to be its root.
	At      string
	Mounted string        `json:",omitempty"` // where Root is mounted, if it is
	Root    []mount.Mount `json:",omitempty"`
	Binds   []Bind        `json:",omitempty"` // in the order in which they are mounted

	Path           string `json:",omitempty"` // in the container
	ReadOnlyRoot   bool   `json:",omitempty"` // nothing is written but to binds
	NoOverwriteDir bool   `json:",omitempty"` // a directory is not replaced by a file, or the reverse
	Owner          string `json:",omitempty"` // user[:group] to whom everything is written; "": as the archive says

	Upper  string   `json:",omitempty"`
	Lowers []string `json:",omitempty"` // the topmost first
}

// Bind is a path of the host in a container.
type Bind struct {
	Source, Target string
	ReadOnly       bool `json:",omitempty"`
	Alone          bool `json:",omitempty"` // without what is mounted below it
	Own            bool `json:",omitempty"` // drover's, not the user's: whether it is read-only is said to nobody
}

// Kind is a kind of failure.
type Kind string

// Kinds.
const (
	NotFound Kind = "not found" // there is no such path
	Invalid  Kind = "invalid"   // the request can't be fulfilled as it is
	Other    Kind = "other"
)

// Error is why an operation failed.
type Error struct {
	Kind    Kind
	Message string
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Reply comes once before what is written to stdout and once at the end. A failure is the
// last reply; none at all means that the process died.
type Reply struct {
	Stat    *container.PathStat `json:",omitempty"`
	Failure *Error              `json:",omitempty"`
}

// Change is a difference, with docker's numbers.
type Change struct {
	Path string
	Kind container.ChangeType
}
