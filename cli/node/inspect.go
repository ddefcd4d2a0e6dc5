package node

import (
	"strings"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/output"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// inspected is the output of inspect for a node: a format that scripts parse.
type inspected struct {
	ID           string
	Name         string
	Addr         string
	Subnet       string
	Labels       map[string]string
	Availability string // active | drain | removing
	Status       string // ready | suspect | down
	Silent       int64  `json:",omitempty"` // since, Unix ns
	Controller   string // its role as a controller, "" for an agent only
	Containers   uint32
	Running      uint32
	CPUs         float64
	Memory       int64
	Arch         string
	OS           string
	Kernel       string
	Versions     map[string]string
	Roles        map[string]string `json:",omitempty"`
	Joined       int64             // Unix ns
	Revision     uint64
	Ways         []way  `json:",omitempty"` // to the other nodes, as the node says
	WaysUnknown  string `json:",omitempty"` // why it does not say
}

// way is how a node reaches another one.
type way struct {
	Node string
	Addr string
	By   string // direct | tunnel | unreached
	Link string // by which packets leave
	MTU  uint32 // of containers' packets, as measured; 0: no answer
	RTT  int64  // ns
}

func inspectCommand(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "inspect NODE...", Short: "Show all about nodes", Args: cli.RequiresMinArgs(1)}
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		api, err := s.API()
		if err != nil {
			return err
		}
		out := []inspected{}
		for _, name := range names {
			resp, err := api.Nodes.Get(cmd.Context(), connect.NewRequest(&dv1.GetNodeRequest{Node: name}))
			if err != nil {
				return err
			}
			n := inspection(resp.Msg.Node)
			ways, err := api.Nodes.ListWays(cmd.Context(), connect.NewRequest(&dv1.ListWaysRequest{Node: n.ID}))
			if err != nil {
				n.WaysUnknown = strings.TrimPrefix(s.Explain(err), "drover: ")
			} else {
				n.Ways = shownWays(ways.Msg.Ways)
			}
			out = append(out, n)
		}
		return output.JSON(cmd.OutOrStdout(), out, "    ")
	}
	return cmd
}

func inspection(n *dv1.NodeInfo) inspected {
	c := n.GetCapacity()
	return inspected{
		ID: n.Id, Name: n.Name, Addr: n.Addr, Subnet: n.Subnet, Labels: n.Labels,
		Availability: output.Word(n.Availability), Status: output.Word(n.Liveness), Silent: n.SilentSince, Controller: output.Word(n.Controller),
		Containers: n.Containers, Running: n.Running, CPUs: float64(c.GetNanoCpus()) / 1e9, Memory: c.GetMemory(),
		Arch: c.GetArch(), OS: c.GetOsName(), Kernel: c.GetKernel(),
		Versions: map[string]string{"drover": c.GetDrover(), "containerd": c.GetContainerd(), "runc": c.GetRunc()},
		Roles:    n.Roles, Joined: n.Joined, Revision: n.Revision,
	}
}

func shownWays(all []*dv1.Way) []way {
	var out []way
	for _, w := range all {
		out = append(out, way{w.Node, w.Addr, output.Word(w.Kind), w.Link, w.Mtu, w.Rtt})
	}
	return out
}
