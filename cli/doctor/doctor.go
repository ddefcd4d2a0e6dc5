// Package doctor is drover doctor: it finds out what of the fleet is not as it should be.
// It mends nothing: what it finds is about to be mended by the fleet, or can't be.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/plural"
)

// Command returns drover doctor with its subcommands.
func Command(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "doctor", Short: "Check that the fleet is as it should be", Args: cli.NoArgs,
		Long: "Check that the fleet is as it should be: all that the subcommands check.\nThe exit code is 1 where something differs, or a node can't be checked.",
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd, s, nil) }}
	cmd.AddCommand(&cobra.Command{Use: "network [NODE...]", Short: "Check the fleet's networks",
		Long: "Check the fleet's networks: compare what the kernels of nodes have with what they\nshould, and what nodes know of networks with what the fleet decided.\nThe exit code is 1 where something differs, or a node can't be checked.",
		RunE: func(cmd *cobra.Command, nodes []string) error { return run(cmd, s, nodes) }})
	return cmd
}

func run(cmd *cobra.Command, s *client.Session, nodes []string) error {
	api, err := s.API()
	if err != nil {
		return err
	}
	return network(cmd.Context(), cmd.OutOrStdout(), api, nodes)
}

// network prints a line per node, or one per difference, and returns an error that counts
// the nodes that are not as they should be.
func network(ctx context.Context, w io.Writer, api *client.API, names []string) error {
	resp, err := api.Nodes.CheckNetworks(ctx, connect.NewRequest(&dv1.CheckNetworksRequest{Nodes: names}))
	if err != nil {
		return err
	}
	differ, unchecked := 0, 0
	for _, n := range resp.Msg.Nodes {
		switch {
		case n.Error != "":
			unchecked++
			_, err = fmt.Fprintf(w, "%s: not checked: %s\n", n.Node, n.Error)
		case len(n.Differences) == 0:
			_, err = fmt.Fprintf(w, "%s: ok\n", n.Node)
		default:
			differ++
			_, err = fmt.Fprintf(w, "%s: %s\n", n.Node, plural.Of(len(n.Differences), "difference"))
		}
		for _, d := range n.Differences {
			_, err = fmt.Fprintf(w, "    %s\n", d)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case differ > 0 && unchecked > 0:
		return fmt.Errorf("the network differs on %s; %s could not be checked", plural.Of(differ, "node"), plural.Of(unchecked, "node"))
	case differ > 0:
		return fmt.Errorf("the network differs on %s", plural.Of(differ, "node"))
	case unchecked > 0:
		return errors.New(plural.Of(unchecked, "node") + " could not be checked")
	}
	return nil
}
