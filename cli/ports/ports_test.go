package ports

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/drover/drover/cli/clitest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

type served struct {
	dv1connect.UnimplementedPortsHandler
}

func (served) List(_ context.Context, r *connect.Request[dv1.ListPortsRequest]) (*connect.Response[dv1.ListPortsResponse], error) {
	id := []byte(strings.Repeat("c", 32))
	if r.Msg.PageToken == "" {
		return connect.NewResponse(&dv1.ListPortsResponse{NextPageToken: "more", Ports: []*dv1.PortInfo{
			{Proto: "tcp", Port: 80, ContainerPort: 8080, ContainerId: id, Container: "shop-web-1", Node: "web-1", Doors: 4, Others: 4},
			{Proto: "tcp", Port: 80, ContainerPort: 80, ContainerId: id, Container: "blog", Node: "web-2", Others: 4, TakenBy: "shop-web-1"},
			{Proto: "udp", Port: 53, ContainerPort: 53, ContainerId: id, Container: "dns", Node: "web-3", Doors: 3, Others: 4},
		}}), nil
	}
	return connect.NewResponse(&dv1.ListPortsResponse{Ports: []*dv1.PortInfo{
		{Ip: "127.0.0.1", Proto: "tcp", Port: 9000, ContainerPort: 9000, ContainerId: id, Container: "admin", Node: "web-1", Others: 4},
		{Ip: "10.0.0.7", Proto: "sctp", Port: 2905, ContainerPort: 2905, ContainerId: id, Container: "ss7", Node: "web-2", Others: 4},
		{Ip: "fd00::7", Proto: "tcp", Port: 443, ContainerPort: 443, ContainerId: id, Container: "six", Node: "web-2", Others: 4},
		{Proto: "tcp", Port: 8081, ContainerPort: 80, ContainerId: id, Container: "lost", Node: "web-5", Others: 4, Unreached: true},
	}}), nil
}

func TestWhatPeopleRead(t *testing.T) {
	for name, args := range map[string]string{"table.txt": "", "json.txt": "--format json", "format.txt": "--format xml"} {
		mux := http.NewServeMux()
		mux.Handle(dv1connect.NewPortsHandler(served{}))
		s := clitest.Serve(t, mux)
		clitest.Golden(t, name, clitest.Run(t, s, Command(s), strings.Fields(args)...))
	}
}
