package config

import (
	"os"
	"path/filepath"
	"reflect"
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
		"spares: -1\n":                      "spares is -1",
		"spares: some\n":                    "spares",
		"doors: some\n":                     "doors",
	} {
		if _, err := Load(write(t, text), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := Load("/nonexistent/config.yaml", nil); err == nil {
		t.Error("a named file that isn't there")
	}
}

// Each key is a field of Config that its text shows, and each field a key.
func TestEveryKeyIsShown(t *testing.T) {
	fields := map[string]bool{}
	for f := range reflect.TypeFor[Config]().Fields() {
		if name := f.Tag.Get("mapstructure"); name != "" {
			fields[name] = true
		}
	}
	file := "labels: {zone: b, disk: ssd}\nregistries: [{name: docker.io, endpoint: 'r:5000', plain-http: true}, {name: quay.io}]\nbridge: br7\nlog-level: warn\nraft-timing: wan\nspares: 3\ndoors: false\n"
	want := map[string]string{"labels": "disk=ssd,zone=b", "registries": "docker.io at r:5000 (plain HTTP), quay.io", "bridge": "br7", "log-level": "warn", "raft-timing": "wan", "spares": "3", "doors": "false", "data-dir": "/var/lib/drover", "mirror-listen": "127.0.0.1:5000"}
	for _, k := range Keys {
		switch k.Name {
		case "labels", "registries", "bridge", "log-level", "raft-timing", "spares", "doors", "data-dir", "mirror-listen":
		default:
			file += k.Name + ": x-" + k.Name + "\n"
			want[k.Name] = "x-" + k.Name
		}
		if k.Usage == "" || !fields[k.Name] {
			t.Errorf("%s has no usage or no field", k.Name)
		}
		delete(fields, k.Name)
	}
	want["run-dir"] = "/x-run-dir"
	c, err := Load(write(t, strings.Replace(file, "x-run-dir", "/x-run-dir", 1)), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Keys {
		if got := k.Text(c); got != want[k.Name] {
			t.Errorf("%s is shown as %q, not %q", k.Name, got, want[k.Name])
		}
	}
	for f := range fields {
		t.Errorf("%s is no key", f)
	}
}
