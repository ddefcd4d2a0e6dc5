package root

import (
	"os"
	"runtime/debug"
	"testing"
)

// percent returns Go's GOGC, which stays as it is.
func percent() int {
	p := debug.SetGCPercent(100)
	debug.SetGCPercent(p)
	return p
}

// A command ends before it collects garbage, unless its user says otherwise.
func TestACommandPutsCollectionsOff(t *testing.T) {
	was := percent()
	defer debug.SetGCPercent(was)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func(out *os.File) {
		os.Stdout = out
		_ = null.Close()
	}(os.Stdout)
	os.Stdout = null
	for gogc, want := range map[string]int{"50": was, "": gcPercent} {
		debug.SetGCPercent(was)
		t.Setenv("GOGC", gogc)
		if code := Main("v1", []string{"--help"}); code != 0 {
			t.Errorf("it ended with %d", code)
		}
		if got := percent(); got != want {
			t.Errorf("with GOGC=%q it is %d", gogc, got)
		}
	}
}
