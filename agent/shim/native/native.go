// Package native is containerd's task service for one container, over runc's library in
// this process: no runtime is executed. What happens to a process's output and exit is
// up to its user, which provides the ends of its streams and sees each event first.
package native

import (
	"os"

	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
)

// Stdio is what a process inherits; nil stands for /dev/null. The service closes the
// files once the process has them, or can't be started.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
	// Terminal, unless nil, makes the process get a terminal instead of the files, and is
	// called with that terminal's master, which it owns from then on.
	Terminal func(master *os.File)
}

// Options of a service.
type Options struct {
	Publisher shim.Publisher
	Shutdown  shutdown.Service
	// Stdio returns the ends of a process's streams, when the process is about to be
	// created; execID is "" for the container's first one.
	Stdio func(id, execID string) (Stdio, error)
	// Filters is where compiled seccomp filters are kept; "": nowhere.
	Filters string
}
