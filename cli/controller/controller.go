// Package controller holds the commands about the fleet's controllers, which are below
// drover controller, next to those that run one.
package controller

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Commands returns ls, rm and timing.
func Commands(s *client.Session) []*cobra.Command {
	return []*cobra.Command{lsCommand(s), rmCommand(s), timingCommand(s)}
}

func rmCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "rm CONTROLLER...", Short: "Take controllers out of the quorum, and revoke their identities", Args: cli.RequiresMinArgs(1)}
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		api, err := s.API()
		if err != nil {
			return err
		}
		for _, name := range names {
			if _, err := api.Controllers.Remove(cmd.Context(), connect.NewRequest(&dv1.RemoveControllerRequest{Controller: name})); err != nil {
				return err
			}
			_, _ = fmt.Fprintln(cmd.OutOrStdout(), name)
		}
		return nil
	}
	return cmd
}

func timingCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use: "timing [lan|wan|HEARTBEAT/ELECTION/LEASE]", Short: "Show or set how fast the controllers notice that their leader is gone", Args: cli.RequiresMaxArgs(1),
		Long: "Show or set raft's timeouts, one set for all controllers of the fleet.\n" +
			"lan is 150ms/150ms/140ms; wan is 2s/2s/1.5s, for controllers that are far apart or on busy machines.\n" +
			"HEARTBEAT: a follower that hears nothing for as long begins an election. ELECTION: one without a winner begins anew after as long.\n" +
			"LEASE: a leader that reaches no majority for as long steps down; half of HEARTBEAT at least, all of it at most.\n" +
			"Setting it costs one election. Leaders that change without anything being broken are a reason for longer ones.",
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := s.API()
		if err != nil {
			return err
		}
		if len(args) > 0 {
			if _, err := api.Controllers.SetTiming(cmd.Context(), connect.NewRequest(&dv1.SetTimingRequest{Timing: args[0]})); err != nil {
				return err
			}
		}
		resp, err := api.Controllers.GetTiming(cmd.Context(), connect.NewRequest(&dv1.GetTimingRequest{}))
		if err != nil {
			return err
		}
		shown := resp.Msg.Timing
		if p := resp.Msg.Profile; p != "" {
			shown = p + " (" + shown + ")"
		}
		_, _ = fmt.Fprintln(cmd.OutOrStdout(), shown)
		return nil
	}
	return cmd
}
