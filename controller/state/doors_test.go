package state

import (
	"fmt"
	"slices"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestDoors(t *testing.T) {
	x := NewTxn(NewStore().Snapshot())
	put := func(e ...*dv1.Effect) {
		t.Helper()
		if err := x.Apply(e...); err != nil {
			t.Fatal(err)
		}
	}
	node := func(id string, l dv1.Node_Liveness) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: id, Name: id, Liveness: l}}}
	}
	task := func(n int, node string, started int64, exit *dv1.Exit, ports ...*dv1.Port) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: bytes32("task", n), Name: fmt.Sprint(n), NodeId: node, Desired: dv1.Desired_RUNNING, Attempt: 1, Started: started, Exit: exit, Ports: ports}}}
	}
	web, dns, one, open := &dv1.Port{Proto: "tcp", Host: 80}, &dv1.Port{Ip: "0.0.0.0", Proto: "udp", Host: 53}, &dv1.Port{Ip: "10.0.0.1", Proto: "tcp", Host: 81}, &dv1.Port{Proto: "tcp"}
	all := func(s *Snapshot) (out []string) {
		for p := range s.PublishedPorts() {
			out = append(out, fmt.Sprintf("%v=%s", p, s.Door(p).GetName()))
			if ParsePublishedPort(p.String()) != p {
				t.Errorf("%v is read as %v", p, ParsePublishedPort(p.String()))
			}
		}
		return out
	}
	for _, c := range []struct {
		what string
		e    *dv1.Effect
		want []string
	}{
		{"no ports", task(1, "a", 5, nil), nil},
		{"not yet running", task(1, "a", 0, nil, web), nil},
		{"running", task(1, "a", 5, nil, web, dns, one, open), []string{"53/udp=1", "80/tcp=1"}},
		{"a later one", task(2, "b", 6, nil, web, web), []string{"53/udp=1", "80/tcp=1"}},
		{"the first one's node is suspect", node("a", dv1.Node_SUSPECT), []string{"53/udp=1", "80/tcp=1"}},
		{"the first one's node is down", node("a", dv1.Node_DOWN), []string{"53/udp=", "80/tcp=2"}},
		{"it is back", node("a", dv1.Node_READY), []string{"53/udp=1", "80/tcp=1"}},
		{"at the same time, by id", task(2, "b", 5, nil, web), []string{"53/udp=1", "80/tcp=2"}},
		{"it ended", task(1, "a", 5, &dv1.Exit{Attempt: 1}, web, dns), []string{"80/tcp=2"}},
		{"removed", &dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: bytes32("task", 2)}}, nil},
	} {
		put(c.e)
		if got := all(&x.Snapshot); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}
