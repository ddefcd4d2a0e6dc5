package node

import (
	"fmt"

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
		Use: "pool", Short: "List the address pools that subnets of nodes and networks come from", Args: cli.NoArgs,
		Long: "List the address pools that nodes' subnets come from. Each node owns a /24, which it keeps; a pool is used when those before it are used up. With --networks, list those that subnets of networks come from which nobody chose.",
	}
	networks := cmd.Flags().Bool("networks", false, "List the pools of networks")
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
		if *networks {
			for _, p := range resp.Msg.NetworkPools {
				rows = append(rows, output.Row(p.Base, fmt.Sprintf("/%d", p.Size), p.Subnets, p.Used))
			}
			return output.Table(cmd.OutOrStdout(), "POOL\tSIZE\tSUBNETS\tUSED", rows)
		}
		for _, p := range resp.Msg.Pools {
			rows = append(rows, output.Row(p.Pool, p.Nodes, p.Used))
		}
		return output.Table(cmd.OutOrStdout(), "POOL\tNODES\tUSED", rows)
	}
	cmd.AddCommand(poolAddCommand(s))
	return cmd
}

func poolAddCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use: "add POOL", Short: "Let more nodes join, or have more networks: add an address pool", Args: cli.ExactArgs(1),
		Example: "drover node pool add 10.224.0.0/12\ndrover node pool add --networks base=10.64.0.0/12,size=20",
	}
	networks := cmd.Flags().Bool("networks", false, "Add a pool for networks: its base, and the length of a network's subnet")
	cmd.RunE = func(cmd *cobra.Command, pools []string) error {
		return forEach(cmd, s, pools, func(api *client.API, pool string) error {
			req := &dv1.AddPoolRequest{Pool: pool}
			if *networks {
				req = &dv1.AddPoolRequest{NetworkPool: pool}
			}
			_, err := api.Nodes.AddPool(cmd.Context(), connect.NewRequest(req))
			return err
		})
	}
	return cmd
}
