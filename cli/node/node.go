// Package node holds the commands about the fleet's nodes, below drover node.
package node

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Command returns drover node with its subcommands.
func Command(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Manage the nodes of this fleet", Args: cli.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(lsCommand(s), inspectCommand(s), labelCommand(s), drainCommand(s), activateCommand(s), grantCommand(s), rmCommand(s), poolCommand(s))
	return cmd
}

// forEach calls do for nodes by name, and prints the names of those that succeed.
func forEach(cmd *cobra.Command, s *client.Session, names []string, do func(api *client.API, name string) error) error {
	api, err := s.API()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := do(api, name); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(cmd.OutOrStdout(), name)
	}
	return nil
}

// update updates a node.
func update(cmd *cobra.Command, api *client.API, r *dv1.UpdateNodeRequest) error {
	_, err := api.Nodes.Update(cmd.Context(), connect.NewRequest(r))
	return err
}
