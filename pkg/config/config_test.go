package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFlagsWinOverEnvironmentOverFileOverDefaults(t *testing.T) {
	p := write(t, "data-dir: /file\nrun-dir: /file\nnode-name: file\nlabels:\n  zone.example/a: b\nregistries:\n  - name: docker.io\n    endpoint: r:5000\n    plain-http: true\n")
	t.Setenv("DROVER_RUN_DIR", "/env")
	t.Setenv("DROVER_NODE_NAME", "env")
	c, err := Load(p, map[string]string{"node-name": "flag"})
	if err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string][2]string{
		"data-dir": {c.DataDir + " /file", p}, "run-dir": {c.RunDir + " /env", "DROVER_RUN_DIR"},
		"node-name": {c.NodeName + " flag", "--node-name"}, "bridge": {c.Bridge + " drover0", "default"},
	} {
		if a, b, _ := strings.Cut(want[0], " "); a != b || c.Origin(k) != want[1] {
			t.Errorf("%s: %s from %s", k, want[0], c.Origin(k))
		}
	}
	if c.Labels["zone.example/a"] != "b" || len(c.Registries) != 1 || !c.Registries[0].PlainHTTP {
		t.Errorf("labels %v, registries %v", c.Labels, c.Registries)
	}
}

func TestBadInputIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"data_dir: /x\n": `"data_dir"; did you mean "data-dir"?`,
		"registries:\n  - name: a\n    tls: no\n": "tls",
		"data-dir: [\n":                     "reading the configuration",
		"log-level: loud\n":                 "loud",
		"bridge: a-name-that-is-too-long\n": "15",
		"registries:\n  - endpoint: x\n":    "name is missing",
	} {
		if _, err := Load(write(t, text), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := Load("/nonexistent/config.yaml", nil); err == nil {
		t.Error("a named file that isn't there")
	}
}
