package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/agent"
	"github.com/drover/drover/controller/membership"
	"github.com/drover/drover/pkg/durable"
)

func recoverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "recover", Short: "Make this host's controller the only one, where most controllers are lost for good", Args: cli.NoArgs,
		Long: `Make this host's controller the only one of its fleet, with what its log holds.

This is the way back when a majority of the controllers is lost for good: the fleet
then reads but takes no changes. Run it on one host only, the one whose controller
was in reach last, with drover stopped on it:

  drover controller recover --yes && drover up -d

What that controller had not received is lost; containers go on wherever they are.
The other controllers are revoked: if one comes back, it finds that it was removed
and its host goes on as an agent. New ones join as ever (drover token create).
Never run it while a majority still works somewhere: that would make two fleets.`,
	}
	f := addFlags(cmd)
	yes := cmd.Flags().Bool("yes", false, "The other controllers are lost for good")
	cmd.RunE = named(func(cmd *cobra.Command, _ []string) error {
		c, err := f.load(cmd)
		if err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("controller recover needs root: it changes this host's controller")
		}
		if !*yes {
			return errors.New("this takes all other controllers out of the fleet, and what only they have is lost: run it with --yes, on one host, if they are lost for good")
		}
		unlock, err := durable.Lock(filepath.Join(c.DataDir, "up"))
		if err != nil {
			return fmt.Errorf("this host is up: stop it first: %w", err)
		}
		defer unlock()
		r, err := membership.Recover(c.DataDir, net.JoinHostPort(c.Advertise, fmt.Sprint(agent.Port(c.ControllerListen))), logger(c, "recover"))
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%s is the only controller now, in epoch %d from entry %d on. Bring it up: drover up -d\n", c.NodeName, r.Epoch, r.Index)
		if len(r.Removed) > 0 {
			_, _ = fmt.Fprintf(cmd.OutOrStdout(), "removed: %s\n", strings.Join(r.Removed, ", "))
		}
		return nil
	})
	return cmd
}
