package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover/drover/e2e/fleet"
)

// Files of containers on another node than the one that is asked, by drover's client and
// docker's.
func TestFilesOfContainers(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a, b := f.Hosts[0], f.Hosts[1]
	a.Must("pull", "alpine")
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "in", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"in/file": "from here", "in/sub/deep": "deep"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("file", filepath.Join(dir, "in", "link")); err != nil {
		t.Fatal(err)
	}
	text := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	clients := map[string]func(args ...string) fleet.Result{
		"drover": a.Drover,
		"docker": func(args ...string) fleet.Result { return a.Docker(nil, args...) },
	}
	for client, do := range clients {
		name, out := client+"1", filepath.Join(dir, client)
		want(t, a.Drover("create", "--name", name, "--on", "node==b", "-v", client+"data:/data", "alpine", "/bin/sh", "-c", "echo new > /etc/new; /bin/cat /in/file /data/deep; sleep 1000"), 0)
		want(t, do("cp", dir+"/in", name+":/"), 0)
		want(t, do("cp", "-a", dir+"/in/sub/.", name+":/data"), 0)
		want(t, a.Drover("start", name), 0)
		want(t, a.Drover("exec", name, "/bin/sh", "-c", "until test -e /etc/new; do sleep 0.1; done; /bin/cat /in/link /data/deep"), 0, "from heredeep")
		want(t, do("cp", name+":/in", out), 0)
		if got := text(client+"/file") + text(client+"/sub/deep"); got != "from heredeep" {
			t.Errorf("%s copied %q", client, got)
		}
		want(t, do("cp", "-L", name+":/in/link", out+"-link"), 0)
		if got := text(client + "-link"); got != "from here" {
			t.Errorf("%s followed the link to %q", client, got)
		}
		want(t, do("cp", name+":/none", out), 1, "Could not find the file /none in container "+name)
		want(t, do("cp", "nobody:/x", out), 1, "No such container: nobody")
		want(t, do("diff", name), 0, "C /etc\n", "A /etc/new\n", "A /in/file\n")
		want(t, do("export", "-o", out+".tar", name), 0)
		if st, err := os.Stat(out + ".tar"); err != nil || st.Size() < 100_000 {
			t.Errorf("%s exported %v, %v", client, st, err)
		}
		want(t, do("rm", "-f", name), 0)
	}
	want(t, a.Drover("create", "--name", "ro", "--read-only", "--on", "node==b", "-v", "rodata:/data:ro", "alpine", "/bin/true"), 0)
	for _, c := range []struct{ path, words string }{{"/srv", "container rootfs is marked read-only"}, {"/data", "mounted volume is marked read-only"}} {
		want(t, a.Docker(nil, "cp", dir+"/in", "ro:"+c.path), 1, c.words)
	}
	events := a.Drover("events", "--since", "10m", "--until", "0s", "--format", "{{.Action}}").Out
	for _, action := range []string{"archive-path", "extract-to-dir", "export"} {
		if !strings.Contains(events, action) {
			t.Errorf("no event %s: %s", action, events)
		}
	}
	if left := b.Pids("drover-archive"); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}
