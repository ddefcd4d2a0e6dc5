package doctor

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/drover/drover/cli/clitest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

// nodes answers with the checks of those that are asked for.
type nodes struct {
	dv1connect.UnimplementedNodesHandler
	all []*dv1.NetworkCheck
}

func (n *nodes) CheckNetworks(_ context.Context, r *connect.Request[dv1.CheckNetworksRequest]) (*connect.Response[dv1.CheckNetworksResponse], error) {
	out := &dv1.CheckNetworksResponse{}
	for _, c := range n.all {
		if len(r.Msg.Nodes) == 0 || slices.Contains(r.Msg.Nodes, c.Node) {
			out.Nodes = append(out.Nodes, c)
		}
	}
	if len(out.Nodes) < len(r.Msg.Nodes) {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("No such node: nobody"))
	}
	return connect.NewResponse(out), nil
}

func TestWhatPeopleRead(t *testing.T) {
	for name, args := range map[string]string{
		"all.txt": "", "network.txt": "network", "well.txt": "network a d", "differ.txt": "network a b e", "unchecked.txt": "network c", "missing.txt": "network nobody", "args.txt": "x",
		"help.txt": "--help", "network-help.txt": "network --help",
	} {
		mux := http.NewServeMux()
		mux.Handle(dv1connect.NewNodesHandler(&nodes{all: []*dv1.NetworkCheck{
			{Node: "a"}, {Node: "b", Differences: []string{"link dvn1 is missing", "network red: the node was not told of it"}},
			{Node: "c", Error: "it has not answered for 3m0s"}, {Node: "d"}, {Node: "e", Differences: []string{"firewall: the set ports holds 0 elements, and others than it should"}},
		}}))
		s := clitest.Serve(t, mux)
		clitest.Golden(t, name, clitest.Run(t, s, Command(s), strings.Fields(args)...))
	}
}
