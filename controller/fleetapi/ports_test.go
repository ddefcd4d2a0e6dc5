package fleetapi

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
)

func TestPortsSayWhereTheyAnswer(t *testing.T) {
	f := serve(t)
	node := func(i int, change ...func(*dv1.Node)) *dv1.Effect {
		e := aNode(i)
		for _, c := range change {
			c(e.GetNode())
		}
		return e
	}
	task := func(n, on int, started int64, ports ...*dv1.Port) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: []byte(strings.Repeat(string(rune('a'+n)), 32)), Name: fmt.Sprint("t", n), NodeId: aNode(on).GetNode().Id,
			Desired: dv1.Desired_RUNNING, Attempt: 1, Started: started, Ports: ports}}}
	}
	port := func(ip string, n uint32) *dv1.Port { return &dv1.Port{Ip: ip, Proto: "tcp", Host: n, Container: 1} }
	f.put(t, node(1), node(2), node(3, func(n *dv1.Node) { n.NoDoors = true }), node(4, func(n *dv1.Node) { n.ReservedPorts = []uint32{82} }), node(5, func(n *dv1.Node) { n.Liveness = dv1.Node_DOWN }),
		task(1, 1, 5, port("", 80), port("127.0.0.1", 81), port("", 82)), task(2, 2, 6, port("", 80)), task(3, 5, 7, port("", 83)), task(4, 3, 8, port("", 84)), task(5, 4, 0, port("", 85)))
	c := dv1connect.NewPortsClient(http.DefaultClient, f.url)
	var got []string
	token := ""
	for {
		resp, err := c.List(t.Context(), connect.NewRequest(&dv1.ListPortsRequest{PageSize: 2, PageToken: token}))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range resp.Msg.Ports {
			got = append(got, fmt.Sprintf("%s:%d %s %d/%d %s %v", p.Ip, p.Port, p.Container, p.Doors, p.Others, p.TakenBy, p.Unreached))
		}
		if token = resp.Msg.NextPageToken; token == "" {
			break
		}
	}
	want := []string{
		":80 t1 1/4  false", // not on 2, which has one of its own, 3 and 5
		":80 t2 0/4 t1 false",
		"127.0.0.1:81 t1 0/4  false",
		":82 t1 1/4  false", // not on 4, which needs it itself
		":83 t3 0/4  true",
		":84 t4 3/4  false",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("listed are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
