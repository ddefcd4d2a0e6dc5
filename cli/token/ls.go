package token

import (
	"time"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/output"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/plural"
)

func lsCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List tokens, without their secrets", Args: cli.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := s.API()
		if err != nil {
			return err
		}
		var rows []string
		err = client.Pages(func(page string) (string, error) {
			resp, err := api.Tokens.List(cmd.Context(), connect.NewRequest(&dv1.ListTokensRequest{PageSize: 1000, PageToken: page}))
			if err != nil {
				return "", err
			}
			for _, t := range resp.Msg.Tokens {
				rows = append(rows, output.Row(t.Id, t.Role, output.Ago(s.Now(), t.Created), good(t, s.Now()), plural.Of(int(t.Used), "time")))
			}
			return resp.Msg.NextPageToken, nil
		})
		if err != nil {
			return err
		}
		return output.Table(cmd.OutOrStdout(), "ID\tROLE\tCREATED\tGOOD\tUSED", rows)
	}
	return cmd
}

// good returns how long a token remains valid.
func good(t *dv1.TokenInfo, now time.Time) string {
	left := time.Unix(0, t.Expires).Sub(now)
	switch {
	case t.Revoked:
		return "revoked"
	case t.Expires == 0: // created by an early build
		return "for ever"
	case left <= 0:
		return "expired"
	}
	return "for " + units.HumanDuration(left)
}
