// Package ports holds the command drover ports: which ports are published, by whom, and
// where they answer.
package ports

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/output"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/plural"
)

// Command returns drover ports.
func Command(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "ports [OPTIONS]", Short: "List published ports, and where they answer", Args: cli.NoArgs,
		Long: "List the ports that running containers have published, and where they answer.\n\n" +
			"A port that is published on all addresses answers on the container's node, and on the\n" +
			"other nodes, which lead to it and keep the client's address. Where several containers\n" +
			"have a number, other nodes lead to the one that has run for longest. A number that a\n" +
			"process of a node uses stays with that process; the node's log says so."}
	format := cmd.Flags().String("format", "table", "table, or json: one object per line")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *format != "table" && *format != "json" {
			return fmt.Errorf("unknown format %q: use table or json", *format)
		}
		all, err := list(cmd, s)
		if err != nil {
			return err
		}
		if *format == "json" {
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetEscapeHTML(false) // for the arrow
			for _, p := range all {
				if err := e.Encode(shown(p)); err != nil {
					return err
				}
			}
			return nil
		}
		var rows []string
		for _, p := range all {
			x := shown(p)
			rows = append(rows, output.Row(x.Port, x.Container, x.Node, x.Answers, x.Reached))
		}
		return output.Table(cmd.OutOrStdout(), "PORT\tCONTAINER\tNODE\tANSWERS ON\tREACHED BY", rows)
	}
	return cmd
}

func list(cmd *cobra.Command, s *client.Session) (all []*dv1.PortInfo, err error) {
	api, err := s.API()
	if err != nil {
		return nil, err
	}
	err = client.Pages(func(token string) (string, error) {
		resp, err := api.Ports.List(cmd.Context(), connect.NewRequest(&dv1.ListPortsRequest{PageSize: 1000, PageToken: token}))
		if err != nil {
			return "", err
		}
		all = append(all, resp.Msg.Ports...)
		return resp.Msg.NextPageToken, nil
	})
	return all, err
}

// port is one as it is shown, in JSON too.
type port struct {
	Port      string // as docker shows it
	Container string
	ID        string
	Node      string
	Doors     uint32 // other nodes that lead to it
	Answers   string
	Reached   string
}

func shown(p *dv1.PortInfo) port {
	ip := p.Ip
	if ip == "" {
		ip = "0.0.0.0"
	}
	return port{
		Port:      fmt.Sprintf("%s->%d/%s", net.JoinHostPort(ip, strconv.Itoa(int(p.Port))), p.ContainerPort, p.Proto),
		Container: p.Container, ID: hex.EncodeToString(p.ContainerId), Node: p.Node, Doors: p.Doors,
		Answers: answers(p), Reached: reached(p),
	}
}

// answers says on which nodes a port answers.
func answers(p *dv1.PortInfo) string {
	switch {
	case p.Unreached:
		return "no node: " + p.Node + " is down"
	case p.TakenBy != "":
		return p.Node + " only: others lead to " + p.TakenBy
	case p.Others == 0 || p.Doors == 0:
		return p.Node + " only"
	case p.Doors == p.Others:
		return "all nodes"
	}
	return fmt.Sprintf("%s and %d of %s", p.Node, p.Doors, plural.Of(int(p.Others), "other node"))
}

// reached says who can dial it.
func reached(p *dv1.PortInfo) string {
	ip, err := netip.ParseAddr(p.Ip)
	switch {
	case err == nil && ip.IsLoopback():
		return "processes on " + p.Node
	case err == nil && !ip.IsUnspecified():
		return "anyone, at " + p.Ip
	}
	return "anyone"
}
