package root

import (
	"context"
	"fmt"
	"strings"

	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	dockerversion "github.com/docker/cli/cli/version"
	"github.com/moby/term"
	"github.com/spf13/cobra"

	fleet "github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/controller"
	"github.com/drover/drover/cli/doctor"
	"github.com/drover/drover/cli/each"
	"github.com/drover/drover/cli/host"
	"github.com/drover/drover/cli/node"
	"github.com/drover/drover/cli/ports"
	"github.com/drover/drover/cli/token"
	"github.com/drover/drover/cli/trace"
	"github.com/drover/drover/cli/volume"
)

// command builds the whole tree.
func (a *app) command(ctx context.Context, args []string) (*cobra.Command, error) {
	stdin, stdout, stderr := term.StdStreams()
	out := stdout
	if shown(args) {
		out = &heading{w: stdout}
	}
	dc, err := command.NewDockerCli(command.WithBaseContext(ctx), command.WithInputStream(stdin), command.WithOutputStream(out), command.WithErrorStream(stderr),
		command.WithUserAgent("drover/"+a.version))
	if err != nil {
		return nil, fmt.Errorf("preparing the commands: %w", err)
	}
	a.docker = dc
	dockerversion.Version = a.version
	root := &cobra.Command{
		Use: "drover [OPTIONS] COMMAND [ARG...]", Short: "The whole fleet as one Docker Engine", Long: "The whole fleet as one Docker Engine",
		SilenceUsage: true, SilenceErrors: true, TraverseChildren: true, DisableFlagsInUseLine: true, SuggestionsMinimumDistance: 2,
	}
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknown(cmd, args[0])
	}
	root.Args = cobra.ArbitraryArgs
	root.SetIn(dc.In())
	root.SetOut(dc.Out())
	root.SetErr(dc.Err())
	opts, _ := cli.SetupRootCommand(root)
	for _, f := range []string{"config", "context", "tls", "tlscacert", "tlscert", "tlskey", "tlsverify", "log-level", "debug"} {
		if fl := root.Flags().Lookup(f); fl != nil {
			fl.Hidden = true
		}
	}
	if fl := root.Flags().Lookup("host"); fl != nil {
		fl.Usage = "Where the fleet answers: unix://PATH or tcp://HOST:PORT (" + fleet.EnvHost + ")"
	}
	root.Annotations = map[string]string{}
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return a.before(cmd, opts) }
	for _, newCommand := range registered() {
		root.AddCommand(newCommand(dc))
	}
	answerAbsent(root)
	for _, c := range host.Commands(a.version) {
		if c.Name() == "controller" {
			c.AddCommand(controller.Commands(a.session)...)
		}
		root.AddCommand(c)
	}
	root.AddCommand(node.Command(a.session), ports.Command(a.session), doctor.Command(a.session), token.Command(a.session), trace.Command(a.session))
	each.Add(root, a.session, dc)
	if cmd, _, err := root.Find([]string{"volume"}); err == nil && cmd != root {
		cmd.AddCommand(volume.MvCommand(a.session))
	}
	visit(root, rename)
	inner := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if cmd == root {
			help(root.OutOrStdout(), root)
			return
		}
		inner(cmd, args)
	})
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		// Completions skip the commands' own setup, and query the fleet too.
		return root, a.complete(opts)
	}
	return root, nil
}

// unknown suggests the commands that were probably meant.
func unknown(cmd *cobra.Command, arg string) error {
	msg := fmt.Sprintf("drover: unknown command: drover %s", arg)
	if near := cmd.SuggestionsFor(arg); len(near) > 0 {
		msg += "\n\nDid you mean this?\n\t" + strings.Join(near, "\n\t")
	}
	return fmt.Errorf("%s\n\nRun 'drover --help' for more information", msg)
}

func visit(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		visit(sub, f)
	}
}
