package e2e

import (
	"strings"
	"testing"

	"github.com/drover/drover/e2e/fleet"
)

// What a fleet has on the machine is found while it is there, and gone after its test.
func TestAFleetLeavesNothing(t *testing.T) {
	t.Parallel()
	var f *fleet.Fleet
	t.Run("there", func(t *testing.T) {
		f = fleet.New(t, "a")
		f.Hosts[0].Up()
		all := strings.Join(f.Left(), "\n")
		for _, what := range []string{"process ", "netns " + f.Hosts[0].Netns, "link ", "a@", "reg@", f.Dir} {
			if !strings.Contains(all, what) {
				t.Errorf("%q is not found in\n%s", what, all)
			}
		}
	})
	if left := f.Left(); len(left) > 0 {
		t.Errorf("left are %q", left)
	}
}
