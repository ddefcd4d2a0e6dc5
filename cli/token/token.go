// Package token holds the commands about join tokens, below drover token.
package token

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Command returns drover token with its subcommands.
func Command(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Manage the tokens that hosts join with", Args: cli.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(createCommand(s), lsCommand(s), revokeCommand(s))
	return cmd
}

func revokeCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "revoke ID...", Aliases: []string{"rm"}, Short: "Revoke tokens: nobody can join with them anymore", Args: cli.RequiresMinArgs(1)}
	cmd.RunE = func(cmd *cobra.Command, ids []string) error {
		api, err := s.API()
		if err != nil {
			return err
		}
		for _, id := range ids {
			if _, err := api.Tokens.Revoke(cmd.Context(), connect.NewRequest(&dv1.RevokeTokenRequest{Id: id})); err != nil {
				return err
			}
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), id)
		}
		return nil
	}
	return cmd
}
