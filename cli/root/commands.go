package root

import (
	_ "unsafe" // for linkname

	"github.com/docker/cli/cli/command"
	_ "github.com/docker/cli/cli/command/container" // each registers its commands
	_ "github.com/docker/cli/cli/command/image"
	_ "github.com/docker/cli/cli/command/network"
	_ "github.com/docker/cli/cli/command/registry"
	_ "github.com/docker/cli/cli/command/system"
	_ "github.com/docker/cli/cli/command/volume"
	"github.com/spf13/cobra"
)

// registered returns docker's commands, of the packages imported here. It is what
// docker's commands.AddCommands adds, except that importing that means all of docker's
// commands, also those that a fleet does not have: compiling the schema of stack files
// alone was half of the time that any command took to start.
//
//go:linkname registered github.com/docker/cli/internal/commands.Commands
func registered() []func(command.Cli) *cobra.Command
