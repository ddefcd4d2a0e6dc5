package host

import (
	"runtime/debug"
	"testing"
)

// A daemon collects garbage as it should, not as a command does, unless its operator says
// otherwise.
func TestADaemonSetsItsCollections(t *testing.T) {
	const ofCommands = 400
	defer debug.SetGCPercent(debug.SetGCPercent(ofCommands))
	for gogc, want := range map[string]int{"300": ofCommands, "": agentGC} {
		debug.SetGCPercent(ofCommands)
		t.Setenv("GOGC", gogc)
		collectAt(agentGC)
		if got := debug.SetGCPercent(ofCommands); got != want {
			t.Errorf("with GOGC=%q it is %d", gogc, got)
		}
	}
}
