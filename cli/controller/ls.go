package controller

import (
	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/output"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func lsCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the controllers of this fleet", Args: cli.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := s.API()
		if err != nil {
			return err
		}
		resp, err := api.Controllers.List(cmd.Context(), connect.NewRequest(&dv1.ListControllersRequest{}))
		if err != nil {
			return err
		}
		var rows []string
		for _, c := range resp.Msg.Controllers {
			rows = append(rows, output.Row(c.Name, output.Word(c.Role), c.Addr, output.Ago(s.Now(), c.Joined), output.ShortID(c.Id)))
		}
		return output.Table(cmd.OutOrStdout(), "NAME\tROLE\tADDRESS\tJOINED\tID", rows)
	}
	return cmd
}
