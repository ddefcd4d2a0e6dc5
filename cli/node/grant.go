package node

import (
	"fmt"
	"strconv"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// uidValue is a flag for a user id.
type uidValue uint32

// String implements pflag.Value.
func (u *uidValue) String() string { return strconv.FormatUint(uint64(*u), 10) }

// Type implements pflag.Value.
func (u *uidValue) Type() string { return "int" }

// Set implements pflag.Value.
func (u *uidValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return fmt.Errorf("%q is no user id: a number such as 1000 (id -u NAME prints it)", s)
	}
	*u = uidValue(n)
	return nil
}

func grantCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{
		Use: "grant NODE [--uid UID] [--role ROLE]", Short: "Say what a user of a host without a controller may do through its socket", Args: cli.ExactArgs(1), // a uid or role in the flags' place is no node
		Long: "Say what a user of a host without a controller may do through its socket. The role user makes containers, and reaches those, that are not root on their host: without binds, privileges, devices, added capabilities or the host's namespaces. The role admin may do everything, and so is root on every host of the fleet.",
	}
	var uid uidValue
	cmd.Flags().Var(&uid, "uid", "User id on that host; 0 is root")
	role := cmd.Flags().String("role", "user", "user, admin, or \"\" for none")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return forEach(cmd, s, names, func(api *client.API, name string) error {
			_, err := api.Nodes.Grant(cmd.Context(), connect.NewRequest(&dv1.GrantRequest{Node: name, Uid: uint32(uid), Role: *role}))
			return err
		})
	}
	return cmd
}
