package root

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// groups are the groups in which commands are shown. Commands in none are listed with
// the rest of docker's.
var groups = []struct {
	title    string
	commands []string
}{
	{"Common Commands", []string{"run", "exec", "ps", "logs", "pull", "images", "stop", "rm", "info"}},
	{"Fleet Commands", []string{"node", "ports", "controller", "token", "doctor", "trace"}},
	{"Host Commands", []string{"up", "join", "agent", "config"}},
}

// help prints the commands in groups.
func help(out io.Writer, root *cobra.Command) {
	shown := map[string]bool{"help": true}
	_, _ = fmt.Fprintf(out, "Usage:  %s\n\n%s\n", root.Use, root.Long)
	list := func(title string, commands []*cobra.Command) {
		_, _ = fmt.Fprintf(out, "\n%s:\n", title)
		for _, c := range commands {
			_, _ = fmt.Fprintf(out, "  %-12s%s\n", c.Name(), c.Short)
		}
	}
	for _, g := range groups {
		var all []*cobra.Command
		for _, name := range g.commands {
			if c := find(root, name); c != nil {
				all = append(all, c)
				shown[name] = true
			}
		}
		list(g.title, all)
	}
	var managing, rest []*cobra.Command
	for _, c := range root.Commands() {
		switch {
		case !c.IsAvailableCommand() || shown[c.Name()]:
		case c.HasAvailableSubCommands():
			managing = append(managing, c)
		default:
			rest = append(rest, c)
		}
	}
	list("More of Docker's Commands", rest)
	list("Management Commands", managing)
	_, _ = fmt.Fprintf(out, "\nGlobal Options:\n%s\n\nRun 'drover COMMAND --help' for more information on a command.\n", strings.TrimRight(root.Flags().FlagUsagesWrapped(helpWidth), " \n"))
}

// helpWidth is where descriptions of options are wrapped.
const helpWidth = 79

func find(root *cobra.Command, name string) *cobra.Command {
	i := slices.IndexFunc(root.Commands(), func(c *cobra.Command) bool { return c.Name() == name && c.IsAvailableCommand() })
	if i < 0 {
		return nil
	}
	return root.Commands()[i]
}
