package node

import (
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func drainCommand(s *client.Session) *cobra.Command {
	return availability(s, "drain NODE...", "Place nothing new on nodes; what runs there goes on", dv1.Node_DRAIN)
}

func activateCommand(s *client.Session) *cobra.Command {
	return availability(s, "activate NODE...", "Place containers on nodes again", dv1.Node_ACTIVE)
}

func availability(s *client.Session, use, short string, to dv1.Node_Availability) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cli.RequiresMinArgs(1)}
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return forEach(cmd, s, names, func(api *client.API, name string) error {
			return update(cmd, api, &dv1.UpdateNodeRequest{Node: name, Availability: to})
		})
	}
	return cmd
}
