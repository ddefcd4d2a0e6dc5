package node

import (
	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func rmCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "rm NODE...", Aliases: []string{"remove"}, Short: "Forget nodes that are gone, and revoke their identities", Args: cli.RequiresMinArgs(1)}
	force := cmd.Flags().BoolP("force", "f", false, "Also if the node is up, or has containers, which are forgotten")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return forEach(cmd, s, names, func(api *client.API, name string) error {
			_, err := api.Nodes.Remove(cmd.Context(), connect.NewRequest(&dv1.RemoveNodeRequest{Node: name, Force: *force}))
			return err
		})
	}
	return cmd
}
