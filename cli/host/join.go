package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/agent"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/join"
	"github.com/drover/drover/pkg/pki"
)

// joinWithin bounds a join, including all retries.
const joinWithin = 30 * time.Second

func joinCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "join ADDR --token TOKEN", Short: "Make this host part of a fleet, and bring drover up", Args: cli.ExactArgs(1),
		Long: "Make this host part of the fleet that a controller at ADDR (host[:port]) belongs to, and bring drover up.\nWhat the host becomes is the token's role: a controller with an agent, or an agent only (drover token create).",
	}
	f := addFlags(cmd)
	detach := cmd.Flags().BoolP("detach", "d", false, "Return when drover is up, and leave it running")
	text := cmd.Flags().String("token", "", "Token that drover token create printed (DROVER_TOKEN)")
	only := cmd.Flags().Bool("agent-only", false, "Join without a controller, also with a controller's token")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := f.load(cmd)
		if err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("drover join needs root: it runs containers")
		}
		if *text == "" {
			*text = os.Getenv("DROVER_TOKEN")
		}
		token, err := pki.ParseToken(*text)
		if err != nil {
			return err
		}
		addr := args[0]
		if _, _, err := net.SplitHostPort(addr); err != nil {
			addr = net.JoinHostPort(addr, "7443")
		}
		o := identity.JoinOptions{
			DataDir: c.DataDir, Token: token, Addr: addr, NodeName: c.NodeName, Labels: c.Labels, Now: time.Now(),
			Hosts:      []string{c.Advertise, c.NodeName, "127.0.0.1", "localhost"},
			Agent:      net.JoinHostPort(c.Advertise, fmt.Sprint(agent.Port(c.AgentListen))),
			Controller: net.JoinHostPort(c.Advertise, fmt.Sprint(agent.Port(c.ControllerListen))),
		}
		if *only {
			o.Controller = ""
		}
		if err := enter(cmd.Context(), o); err != nil {
			return err
		}
		if *detach {
			return up(cmd, c, f.file)
		}
		return supervise(cmd, c, f.file)
	}
	return cmd
}

// enter joins, and joins as an agent only if that is all the token allows.
func enter(ctx context.Context, o identity.JoinOptions) error {
	ctx, cancel := context.WithTimeout(ctx, joinWithin)
	defer cancel()
	for {
		err := identity.Join(ctx, o)
		var no *join.RefusedError
		switch {
		case err == nil:
			return nil
		case errors.Is(err, identity.ErrMember):
			return errors.New("this host is in a fleet already: drover up brings it up; to join another, remove its data folder first")
		case errors.As(err, &no) && no.Code == join.AgentsOnly && o.Controller != "":
			o.Controller = ""
			continue
		case errors.As(err, &no) && no.Code == 503:
			select {
			case <-time.After(500 * time.Millisecond):
				continue
			case <-ctx.Done():
			}
		}
		return fmt.Errorf("joining at %s: %w", o.Addr, err)
	}
}
