package controller

import (
	"testing"
	"time"
)

// Controllers tell each other the time.
func TestControllersCompareClocks(t *testing.T) {
	noLeaks(t)
	all, _ := fleet(t, 3)
	lead, _ := split(t, all)
	for m := range lead.c.node.Load().Snapshot().Controllers() {
		if m.Id == lead.id() {
			continue
		}
		if at, err := lead.c.peers.Clock(t.Context(), m.Id, m.Addr); err != nil || time.Since(at).Abs() > time.Minute {
			t.Errorf("the clock of %s is %v, %v", m.Name, at, err)
		}
	}
}
