package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/drover/drover/e2e/fleet"
)

func TestFleet(t *testing.T) {
	f := fleet.New(t, "a", "b", "c", "d")
	f.Quorum()
	a := f.Hosts[0]
	t.Log("\n" + a.Must("node", "ls") + a.Must("controller", "ls"))
	a.Must("pull", "alpine")
	for _, h := range f.Hosts {
		r := h.Drover("run", "--rm", "alpine", "echo", "hello")
		if r.Code != 0 || strings.TrimSpace(r.Out) != "hello" {
			t.Fatalf("run on %s: %v\n%s", h.Name, r, a.Logs())
		}
	}
}

// Every run ends with its output and code, exactly once, though the leader dies.
func TestLeaderDiesInTheMiddleOfRuns(t *testing.T) {
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a := f.Hosts[0]
	a.Must("pull", "alpine")
	for i := range 60 {
		if i == 10 || i == 35 {
			l := f.Leader()
			t.Logf("run %d: killing the controller of %s", i, l.Name)
			l.Kill("controller")
		}
		h := f.Hosts[i%3]
		want := fmt.Sprintf("out %d", i)
		r := h.Drover("run", "--rm", "--name", "again", "alpine", "/bin/sh", "-c", fmt.Sprintf("echo %s; exit %d", want, i%7))
		if r.Code != i%7 || strings.TrimSpace(r.Out) != want {
			t.Fatalf("run %d on %s: %v", i, h.Name, r)
		}
	}
	if left := a.Must("ps", "-aq"); left != "" {
		t.Fatalf("left behind: %s", left)
	}
}
