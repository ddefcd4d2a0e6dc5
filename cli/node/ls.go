package node

import (
	"cmp"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/output"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func lsCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the nodes of this fleet", Args: cli.NoArgs}
	quiet := cmd.Flags().BoolP("quiet", "q", false, "Names only")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var rows []string
		err := list(cmd, s, func(n *dv1.NodeInfo) {
			if *quiet {
				_, _ = fmt.Fprintln(cmd.OutOrStdout(), n.Name)
			}
			rows = append(rows, row(n, s.Now()))
		})
		if err != nil || *quiet {
			return err
		}
		return output.Table(cmd.OutOrStdout(), "NAME\tSTATUS\tAVAILABILITY\tCONTROLLER\tADDRESS\tSUBNET\tRUNNING\tCPUS\tMEMORY\tLABELS", rows)
	}
	return cmd
}

// list calls show for every node.
func list(cmd *cobra.Command, s *client.Session, show func(*dv1.NodeInfo)) error {
	api, err := s.API()
	if err != nil {
		return err
	}
	return client.Pages(func(token string) (string, error) {
		resp, err := api.Nodes.List(cmd.Context(), connect.NewRequest(&dv1.ListNodesRequest{PageSize: 1000, PageToken: token}))
		if err != nil {
			return "", err
		}
		for _, n := range resp.Msg.Nodes {
			show(n)
		}
		return resp.Msg.NextPageToken, nil
	})
}

func row(n *dv1.NodeInfo, now time.Time) string {
	status := output.Word(n.Liveness)
	if n.SilentSince != 0 {
		status += fmt.Sprintf(" (silent for %s)", now.Sub(time.Unix(0, n.SilentSince)).Round(time.Second))
	}
	return output.Row(n.Name, status, output.Word(n.Availability), cmp.Or(output.Word(n.Controller), "-"), n.Addr, n.Subnet,
		fmt.Sprintf("%d/%d", n.Running, n.Containers), float64(n.GetCapacity().GetNanoCpus())/1e9,
		units.BytesSize(float64(n.GetCapacity().GetMemory())), output.Pairs(n.Labels))
}
