package e2e

import (
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
