package node

import (
	"errors"
	"fmt"
	"strings"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func labelCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "label NODE KEY=VALUE... [KEY-...]", Short: "Set labels of a node, or take them away (KEY-)", Args: cli.RequiresMinArgs(1)}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		set, drop, err := labels(args[1:])
		if err != nil {
			return err
		}
		return forEach(cmd, s, args[:1], func(api *client.API, name string) error {
			return update(cmd, api, &dv1.UpdateNodeRequest{Node: name, SetLabels: set, DropLabels: drop})
		})
	}
	return cmd
}

func labels(args []string) (set map[string]string, drop []string, err error) {
	set = map[string]string{}
	for _, x := range args {
		k, v, is := strings.Cut(x, "=")
		name, away := strings.CutSuffix(x, "-")
		switch {
		case is && k != "":
			set[k] = v
		case away && name != "":
			drop = append(drop, name)
		default:
			return nil, nil, fmt.Errorf("drover: %q is neither KEY=VALUE nor KEY-", x)
		}
	}
	if len(set)+len(drop) == 0 {
		return nil, nil, errors.New("drover: which label? KEY=VALUE sets one, KEY- takes it away")
	}
	return set, drop, nil
}
