package root

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/clitest"
)

func tree(t *testing.T) *cobra.Command {
	t.Helper()
	root, err := newApp("test").command(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestHelp(t *testing.T) {
	for name, args := range map[string]string{"help.txt": "--help", "help-none.txt": "", "help-node.txt": "node --help", "help-container.txt": "container --help", "help-image.txt": "image --help", "help-token-create.txt": "token create --help"} {
		root := tree(t)
		var out bytes.Buffer
		root.SetOut(&out)
		root.SetArgs(strings.Fields(args))
		if err := root.Execute(); err != nil {
			t.Errorf("drover %s: %v", args, err)
		}
		clitest.Golden(t, name, out.String())
	}
}

// What a fleet doesn't have is not shown, and answers with what to do instead,
// whatever its arguments; the host's socket is not asked.
func TestWhatIsNotThereSaysWhatToDo(t *testing.T) {
	for args, want := range map[string]string{
		"build -t x .":             "docker buildx",
		"bake":                     "docker buildx",
		"image build .":            "docker buildx",
		"builder prune":            "docker buildx",
		"swarm init":               "drover node ls",
		"service create --name x":  "drover node ls",
		"search alpine":            "registry.lan",
		"compose up -d":            "DOCKER_HOST=unix:///run/drover/drover.sock docker compose",
		"context use x":            "-H or DROVER_HOST",
		"plugin ls":                "not there on a fleet\n",
		"container commit x":       "not there on a fleet yet",
		"commit x":                 "not there on a fleet yet",
		"image push x":             "not there on a fleet yet",
		"system prune":             "not there on a fleet yet",
		"runn":                     "Did you mean this?",
		"nothing-like-any-of-them": "unknown command",
	} {
		a := newApp("test")
		root, err := a.command(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		root.SetArgs(strings.Fields(args))
		if err := root.Execute(); err == nil || !strings.Contains(a.session.Explain(err), want) {
			t.Errorf("drover %s: %v, want %q", args, err, want)
		}
	}
	visit(tree(t), func(c *cobra.Command) {
		if _, is := c.Annotations[annotationAbsent]; is && c.IsAvailableCommand() {
			t.Errorf("%s is shown", c.CommandPath())
		}
	})
}

// config is docker's of swarm, and drover's of a host.
func TestTheHostsConfigIsThere(t *testing.T) {
	if c := find(tree(t), "config"); c == nil || !strings.Contains(c.Short, "host") {
		t.Errorf("config is %v", c)
	}
}
