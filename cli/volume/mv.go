// Package volume has what drover's volume command has beyond docker's.
package volume

import (
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/docker/go-units"
	"github.com/moby/term"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

const mvLong = `Copy the data of a volume to another node, and make that its home.

No container may mount the volume, running or not: containers stay on their node.
Remove them first (drover rm keeps named volumes), and create them again afterwards;
docker compose down and up do the same for a project.

If the copy is interrupted, also by Ctrl-C, the volume stays what and where it was.`

// MvCommand returns drover volume mv.
func MvCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "mv VOLUME NODE", Short: "Move the data of a volume to another node", Long: mvLong, Args: cli.ExactArgs(2)}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := s.API()
		if err != nil {
			return err
		}
		moving, err := api.Volumes.Move(cmd.Context(), connect.NewRequest(&dv1.MoveVolumeRequest{Volume: args[0], Node: args[1]}))
		if err != nil {
			return err
		}
		defer func() { _ = moving.Close() }()
		_, shown := term.GetFdInfo(cmd.ErrOrStderr())
		if err := follow(moving, cmd.ErrOrStderr(), args[0], shown); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(cmd.OutOrStdout(), args[0])
		return nil
	}
	return cmd
}

// messages are what a move reports.
type messages interface {
	Receive() bool
	Msg() *dv1.MoveVolumeResponse
	Err() error
}

// follow shows a move's progress, on one line, until it is done.
func follow(m messages, to io.Writer, volume string, shown bool) error {
	done, any := false, false
	for m.Receive() {
		if x := m.Msg(); x.Done {
			done = true
		} else if shown {
			any = true
			_, _ = fmt.Fprintf(to, "\r\x1b[K%s: %s to %s: %s of %s", volume, x.FromNode, x.ToNode, units.HumanSize(float64(x.Written)), units.HumanSize(float64(x.Total)))
		}
	}
	if any {
		_, _ = fmt.Fprintln(to)
	}
	if err := m.Err(); err != nil {
		return err
	}
	if !done {
		return fmt.Errorf("volume %s: the move was cut off: drover volume inspect shows where its data is", volume)
	}
	return nil
}
