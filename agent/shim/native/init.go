//go:build cgo

package native

import (
	"os"
	"runtime/debug"

	_ "github.com/opencontainers/cgroups/devices" // limits containers' devices
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // joins namespaces before Go's runtime starts
)

// Init becomes the process of a container if this program was executed as that, and then
// does not return. main must call it before anything else.
func Init() {
	if len(os.Args) != 2 || os.Args[1] != "init" {
		return
	}
	debug.SetGCPercent(-1) // it lives for milliseconds
	libcontainer.Init()
}
