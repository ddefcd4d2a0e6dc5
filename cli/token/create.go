package token

import (
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func createCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "create", Short: "Make a token that hosts join with; it is shown once", Args: cli.NoArgs}
	r := &dv1.CreateTokenRequest{}
	cmd.Flags().StringVar(&r.Role, "role", "agent", "What the hosts become: controller (with an agent), or agent")
	cmd.Flags().StringVar(&r.SocketRole, "socket-role", "", "What root may do through the socket of a host without a controller: user or admin (nothing if empty)")
	ttl := cmd.Flags().Duration("ttl", 24*time.Hour, "How long the token is good: a year at most")
	quiet := cmd.Flags().BoolP("quiet", "q", false, "Print the token only")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := s.API()
		if err != nil {
			return err
		}
		r.Ttl = int64(*ttl)
		resp, err := api.Tokens.Create(cmd.Context(), connect.NewRequest(r))
		if err != nil {
			return err
		}
		if *quiet {
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), resp.Msg.Text)
			return nil
		}
		addr := "ADDR"
		if all, err := api.Controllers.List(cmd.Context(), connect.NewRequest(&dv1.ListControllersRequest{})); err == nil && len(all.Msg.Controllers) > 0 {
			addr = all.Msg.Controllers[0].Addr
		}
		t := resp.Msg.Token
		as := map[string]string{"controller": "a controller", "agent": "an agent"}[t.Role]
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "On each host that shall join as %s:\n\n  drover join %s --token %s\n\nThe token is good for %s; drover token revoke %s ends it.\n",
			as, addr, resp.Msg.Text, time.Duration(t.Expires-t.Created).Round(time.Second), t.Id)
		return nil
	}
	return cmd
}
