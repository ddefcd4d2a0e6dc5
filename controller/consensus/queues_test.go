package consensus

import (
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// What the fleet found out does not wait for all that people ask for, nor they for it.
func TestReportsAndRequestsTakeTurns(t *testing.T) {
	n := &Node{requests: make(chan *pending, 8), reports: make(chan *pending, 8)}
	for range 4 {
		n.requests <- &pending{cmd: &dv1.Command{Of: &dv1.Command_Create{}}}
	}
	for range 2 {
		n.reports <- &pending{cmd: &dv1.Command{Of: &dv1.Command_Report{}}}
	}
	var got string
	for p := n.next(); p != nil; p = n.next() {
		if reported(p.cmd) {
			got += "r"
		} else {
			got += "c"
		}
	}
	if got != "rcrccc" {
		t.Errorf("they were taken as %s", got)
	}
}

func TestWhatTheFleetFindsOutIsAReport(t *testing.T) {
	for _, c := range []struct {
		cmd  *dv1.Command
		want bool
	}{
		{&dv1.Command{Of: &dv1.Command_Report{}}, true},
		{&dv1.Command{Of: &dv1.Command_AckTombstones{}}, true},
		{&dv1.Command{Of: &dv1.Command_SetLiveness{}}, true},
		{&dv1.Command{Of: &dv1.Command_RegisterNode{}}, true},
		{&dv1.Command{Of: &dv1.Command_Create{}}, false},
		{&dv1.Command{Of: &dv1.Command_Remove{}}, false},
		{&dv1.Command{}, false},
	} {
		if got := reported(c.cmd); got != c.want {
			t.Errorf("%T: %v", c.cmd.GetOf(), got)
		}
	}
}
