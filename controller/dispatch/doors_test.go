package dispatch

import (
	"fmt"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func published(i int, node string, started int64, ports ...uint32) *dv1.Effect {
	e := aTask(i, node, started)
	for _, p := range ports {
		e.GetTask().Ports = append(e.GetTask().Ports, &dv1.Port{Proto: "tcp", Host: p, Container: 80})
	}
	return e
}

// Nodes are told to whom a published port leads, each change once, and not those that are
// no doors.
func TestDoorsAreTold(t *testing.T) {
	f := newFakeLog()
	f.put(aNode("n0"), aNode("n1"), aNode("n2"), published(0, "n0", 5, 80))
	f.hub.begin()
	term := f.hub.term.Load()
	sessions := map[string]*session{}
	for _, n := range []string{"n0", "n1", "n2"} {
		s := newSession(n, func(error) {})
		s.shut = n == "n2"
		if err := term.enter(s, 1); err != nil {
			t.Fatal(err)
		}
		sessions[n] = s
	}
	said := func(n string, full bool) (out string) {
		for _, y := range term.next(sessions[n], full, 0) {
			for _, d := range y.Topology.GetDoors() {
				out += fmt.Sprintf("%s/%d=%s ", d.Proto, d.Port, d.NodeId)
			}
		}
		return out
	}
	for n, want := range map[string]string{"n0": "tcp/80=n0 ", "n1": "tcp/80=n0 ", "n2": ""} {
		if got := said(n, true); got != want {
			t.Errorf("at first %s is told %q, want %q", n, got, want)
		}
	}
	node := func(id string, l dv1.Node_Liveness) *dv1.Effect {
		e := aNode(id)
		e.GetNode().Liveness = l
		return e
	}
	for _, c := range []struct {
		what   string
		change *dv1.Effect
		want   string
	}{
		{"it is written again", published(0, "n0", 5, 80), ""},
		{"another one begins", published(1, "n1", 6, 80, 81), "tcp/81=n1 "},
		{"its node is suspect", node("n0", dv1.Node_SUSPECT), ""},
		{"its node is lost", node("n0", dv1.Node_DOWN), "tcp/80=n1 "},
		{"and comes back", node("n0", dv1.Node_READY), "tcp/80=n0 "},
		{"it ends", aTask(0, "n0", 0), "tcp/80=n1 "},
		{"it starts again, after the other", published(0, "n0", 9, 80), ""},
		{"the other is removed", &dv1.Effect{Of: &dv1.Effect_DeleteTask{DeleteTask: tid(1)}}, "tcp/80=n0 tcp/81= "},
		{"all end", aTask(0, "n0", 0), "tcp/80= "},
	} {
		f.put(c.change)
		for _, n := range []string{"n0", "n1", "n2"} {
			want := c.want
			if n == "n2" {
				want = ""
			}
			if got := said(n, false); got != want {
				t.Errorf("%s: %s is told %q, want %q", c.what, n, got, want)
			}
		}
	}
	if d := term.topology.doors; len(d.of)+len(d.to)+len(d.down) > 0 {
		t.Errorf("kept is %+v", d)
	}
}
