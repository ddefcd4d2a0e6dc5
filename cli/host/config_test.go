package host

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover/drover/cli/clitest"
)

// Each value is shown with where it came from.
func TestConfigShowsWhereValuesComeFrom(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte("node-name: web-1\nadvertise: 10.0.0.1\nlabels:\n  zone: b\n  disk: ssd\nregistries:\n  - name: docker.io\n    endpoint: registry.lan:5000\n    plain-http: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DROVER_RAFT_TIMING", "wan")
	var out bytes.Buffer
	cmd := configCommand()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"--config", file, "--log-level", "debug"})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The table's width follows the file's path.
	lines := strings.Split(strings.ReplaceAll(out.String(), file, "config.yaml"), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	clitest.Golden(t, "config.txt", strings.Join(lines, "\n"))
}

func TestWhatAHostsCommandsRefuse(t *testing.T) {
	t.Setenv("DROVER_DATA_DIR", t.TempDir())
	for args, want := range map[string]string{
		"--log-level loud":                  "is none of debug, info, warn, error",
		"--config /nonexistent/config.yaml": "reading the configuration",
		"x":                                 "accepts no arguments",
		"--explode":                         "unknown flag",
	} {
		cmd := configCommand()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(strings.Fields(args))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("config %s: %v, want %q", args, err, want)
		}
	}
	agent := agentCommand("test")
	agent.SilenceErrors, agent.SilenceUsage = true, true
	agent.SetArgs(nil)
	if err := agent.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "this host is in no fleet") {
		t.Errorf("an agent without a fleet: %v", err)
	}
}

func TestOnlyThisHostCountsAsMissing(t *testing.T) {
	for header, want := range map[string]bool{"": false, "a": true, "b, a (silent for 3s)": true, "ab, b": false, "b (silent), c": false} {
		if got := missingHere(header, "a"); got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
}
