package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/clitest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

// nodes is a fleet of some nodes, which takes down what it is asked to change.
type nodes struct {
	dv1connect.UnimplementedNodesHandler
	all   []*dv1.NodeInfo
	asked []string
}

func (n *nodes) List(_ context.Context, r *connect.Request[dv1.ListNodesRequest]) (*connect.Response[dv1.ListNodesResponse], error) {
	i := 0
	if r.Msg.PageToken != "" {
		_, _ = fmt.Sscan(r.Msg.PageToken, &i)
	}
	out := &dv1.ListNodesResponse{Nodes: n.all[i : i+1]} // in pages of one
	if i+1 < len(n.all) {
		out.NextPageToken = fmt.Sprint(i + 1)
	}
	return connect.NewResponse(out), nil
}

func (n *nodes) Get(_ context.Context, r *connect.Request[dv1.GetNodeRequest]) (*connect.Response[dv1.GetNodeResponse], error) {
	for _, i := range n.all {
		if i.Name == r.Msg.Node {
			return connect.NewResponse(&dv1.GetNodeResponse{Node: i}), nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("No such node: "+r.Msg.Node))
}

func (n *nodes) ListWays(_ context.Context, r *connect.Request[dv1.ListWaysRequest]) (*connect.Response[dv1.ListWaysResponse], error) {
	if r.Msg.Node != n.all[0].Id {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("node c does not say how it reaches others: it has not answered for 3h0m0s"))
	}
	return connect.NewResponse(&dv1.ListWaysResponse{Ways: []*dv1.Way{
		{Node: "bbbbbbbb", Addr: "10.0.0.2", Kind: dv1.Way_DIRECT, Link: "eth0", Mtu: 1500, Rtt: 213000},
		{Node: "c", Addr: "10.0.0.3", Kind: dv1.Way_TUNNEL, Link: "dvx"}, {Node: "d", Kind: dv1.Way_UNREACHED},
	}}), nil
}

func (n *nodes) note(m fmt.Stringer) {
	n.asked = append(n.asked, strings.ReplaceAll(m.String(), "  ", " "))
}

func (n *nodes) Update(_ context.Context, r *connect.Request[dv1.UpdateNodeRequest]) (*connect.Response[dv1.UpdateNodeResponse], error) {
	n.note(r.Msg)
	return connect.NewResponse(&dv1.UpdateNodeResponse{}), nil
}

func (n *nodes) Grant(_ context.Context, r *connect.Request[dv1.GrantRequest]) (*connect.Response[dv1.GrantResponse], error) {
	n.note(r.Msg)
	return connect.NewResponse(&dv1.GrantResponse{}), nil
}

func (n *nodes) Remove(_ context.Context, r *connect.Request[dv1.RemoveNodeRequest]) (*connect.Response[dv1.RemoveNodeResponse], error) {
	if n.note(r.Msg); r.Msg.Node == "up" && !r.Msg.Force {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("node up answers: remove it with --force"))
	}
	return connect.NewResponse(&dv1.RemoveNodeResponse{}), nil
}

func (n *nodes) ListPools(context.Context, *connect.Request[dv1.ListPoolsRequest]) (*connect.Response[dv1.ListPoolsResponse], error) {
	return connect.NewResponse(&dv1.ListPoolsResponse{Pools: []*dv1.PoolInfo{{Pool: "10.208.0.0/12", Nodes: 4096, Used: 3}, {Pool: "10.224.0.0/12", Nodes: 4096}},
		NetworkPools: []*dv1.NetworkPoolInfo{{Base: "10.220.0.0/14", Size: 20, Subnets: 64, Used: 7}, {Base: "172.30.0.0/16", Size: 24, Subnets: 256}}}), nil
}

func (n *nodes) AddPool(_ context.Context, r *connect.Request[dv1.AddPoolRequest]) (*connect.Response[dv1.AddPoolResponse], error) {
	n.note(r.Msg)
	return connect.NewResponse(&dv1.AddPoolResponse{}), nil
}

func serve(t *testing.T) (*nodes, *client.Session) {
	t.Helper()
	n := &nodes{all: []*dv1.NodeInfo{
		{Id: strings.Repeat("a", 32), Name: "a", Addr: "10.0.0.1:7444", Subnet: "10.208.0.0/24", Availability: dv1.Node_ACTIVE, Liveness: dv1.Node_READY, Controller: dv1.ControllerInfo_LEADER,
			Containers: 3, Running: 2, Labels: map[string]string{"zone": "b", "disk": "ssd"}, Joined: clitest.At(time.Hour), Revision: 42, Roles: map[string]string{"1000": "user"},
			Capacity: &dv1.Capacity{NanoCpus: 2e9, Memory: 8 << 30, Arch: "amd64", OsName: "Debian GNU/Linux 13", Kernel: "6.12.1", Drover: "0.1", Containerd: "2.1", Runc: "1.3"}},
		{Id: strings.Repeat("b", 32), Name: "bbbbbbbb", Addr: "10.0.0.2:7444", Subnet: "10.208.1.0/24", Availability: dv1.Node_DRAIN, Liveness: dv1.Node_SUSPECT, Controller: dv1.ControllerInfo_CATCHING_UP,
			SilentSince: clitest.At(75 * time.Second), Capacity: &dv1.Capacity{NanoCpus: 5e8, Memory: 512 << 20}},
		{Id: strings.Repeat("c", 32), Name: "c", Addr: "10.0.0.3:7444", Subnet: "10.208.2.0/24", Availability: dv1.Node_REMOVING, Liveness: dv1.Node_DOWN, SilentSince: clitest.At(3 * time.Hour)},
	}}
	mux := http.NewServeMux()
	mux.Handle(dv1connect.NewNodesHandler(n))
	return n, clitest.Serve(t, mux)
}

func TestWhatPeopleRead(t *testing.T) {
	for name, args := range map[string]string{
		"ls.txt": "ls", "ls-quiet.txt": "ls -q", "inspect.json": "inspect a c", "inspect-missing.txt": "inspect a nobody", "pool.txt": "pool", "pool-networks.txt": "pool --networks",
		"rm-up.txt": "rm gone up never", "label-none.txt": "label a", "label-wrong.txt": "label a =x", "grant-uid.txt": "grant a --uid x", "unknown.txt": "explode", "ls-args.txt": "ls x",
	} {
		_, s := serve(t)
		clitest.Golden(t, name, clitest.Run(t, s, Command(s), strings.Fields(args)...))
	}
}

func TestWhatIsAskedFor(t *testing.T) {
	for args, want := range map[string]string{
		"label a x=1 y- z=":                 `node:"a" set_labels:{key:"x" value:"1"} set_labels:{key:"z" value:""} drop_labels:"y"`,
		"drain a b":                         `node:"a" availability:DRAIN; node:"b" availability:DRAIN`,
		"activate a":                        `node:"a" availability:ACTIVE`,
		"grant a --uid 1000 --role admin":   `node:"a" uid:1000 role:"admin"`,
		"grant a --uid 4294967295 --role= ": `node:"a" uid:4294967295`,
		"grant a":                           `node:"a" role:"user"`,
		"grant a --uid 4294967296":          "",
		"grant a --uid -1":                  "",
		"grant a 1000 user":                 "",
		"rm -f up":                          `node:"up" force:true`,
		"pool add 10.9.0.0/16":              `pool:"10.9.0.0/16"`,
		"pool add --networks base=10.64.0.0/12,size=20": `network_pool:"base=10.64.0.0/12,size=20"`,
		"pool add": "",
		"drain":    "",
	} {
		n, s := serve(t)
		out := clitest.Run(t, s, Command(s), strings.Fields(args)...)
		if got := strings.Join(n.asked, "; "); got != want || (want == "") != strings.Contains(out, "error: ") {
			t.Errorf("%s asks for %s, not %s, and prints %s", args, got, want, out)
		}
	}
}

func TestNobodyAnswers(t *testing.T) {
	s := &client.Session{Target: client.Target{Host: "tcp://127.0.0.1:1"}}
	if out := clitest.Run(t, s, Command(s), "ls"); !strings.Contains(out, "requires an identity") {
		t.Errorf("without an identity: %s", out)
	}
}
