package node

import (
	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/output"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// poolCommand lists and extends the pools that nodes' subnets come from.
func poolCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use: "pool", Short: "List the address pools that nodes' subnets come from", Args: cli.NoArgs,
		Long: "List the address pools that nodes' subnets come from. Each node owns a /24, which it keeps; a pool is used when those before it are used up.",
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		api, err := s.API()
		if err != nil {
			return err
		}
		resp, err := api.Nodes.ListPools(cmd.Context(), connect.NewRequest(&dv1.ListPoolsRequest{}))
		if err != nil {
			return err
		}
		var rows []string
		for _, p := range resp.Msg.Pools {
			rows = append(rows, output.Row(p.Pool, p.Nodes, p.Used))
		}
		return output.Table(cmd.OutOrStdout(), "POOL\tNODES\tUSED", rows)
	}
	cmd.AddCommand(poolAddCommand(s))
	return cmd
}

func poolAddCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "add NETWORK", Short: "Let more nodes join: add an address pool, such as 10.224.0.0/12", Args: cli.ExactArgs(1)}
	cmd.RunE = func(cmd *cobra.Command, pools []string) error {
		return forEach(cmd, s, pools, func(api *client.API, pool string) error {
			_, err := api.Nodes.AddPool(cmd.Context(), connect.NewRequest(&dv1.AddPoolRequest{Pool: pool}))
			return err
		})
	}
	return cmd
}
