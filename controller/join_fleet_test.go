package controller

import (
	"fmt"
	"testing"

	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// The leader's commit reaches the controller that signs a moment later: what it
// signs is what was decided all the same.
func TestControllersJoinThroughAFollower(t *testing.T) {
	noLeaks(t)
	all, tk := fleet(t, 3)
	_, followers := split(t, all)
	for i := range 8 {
		h := machine(t)
		o := h.joining(followers[i%2], tk, fmt.Sprint("d", i))
		if err := identity.Join(t.Context(), o); err != nil {
			t.Fatalf("join %d: %v", i, err)
		}
		for _, dir := range []string{identity.ControllerPKI(h.data), identity.AdminPKI(h.data), identity.AgentPKI(h.data)} {
			if _, err := pki.LoadFiles(dir); err != nil {
				t.Errorf("join %d: %v", i, err)
			}
		}
	}
}
