// Command drover is the whole fleet as one Docker Engine: docker's commands, and the
// processes that run on a host.
package main

import (
	"os"

	"github.com/drover/drover/cli/root"
)

// version is set by the linker.
var version = "dev"

func main() { os.Exit(root.Main(version, os.Args[1:])) }
