package root

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"
)

// The last heading of a ps is in capitals like the others, however it comes in pieces.
func TestTheHeadingOfAPs(t *testing.T) {
	const printed = "CONTAINER ID   NAMES     node\n0123           node      node\n"
	for _, size := range []int{1, 3, 7, len(printed)} {
		var out bytes.Buffer
		h := &heading{w: &out}
		for rest := printed; rest != ""; {
			n := min(size, len(rest))
			if w, err := h.Write([]byte(rest[:n])); w != n || err != nil {
				t.Fatalf("%d of %d bytes: %v", w, n, err)
			}
			rest = rest[n:]
		}
		if want := "CONTAINER ID   NAMES     NODE\n0123           node      node\n"; out.String() != want {
			t.Errorf("in pieces of %d it is %q", size, out.String())
		}
	}
	var out bytes.Buffer
	_, _ = (&heading{w: &out}).Write([]byte("0123\n4567\n"))
	if out.String() != "0123\n4567\n" {
		t.Errorf("what is no table becomes %q", out.String())
	}
}

func TestWhichCommandsShowOurTable(t *testing.T) {
	for args, want := range map[string]bool{
		"ps": true, "ps -a": true, "-H unix:///x ps": true, "container ls": true, "container list -a": true,
		"ps --format {{.ID}}": false, "ps --format=x": false, "ps --quiet": false, "images": false, "node ls": false,
		"volume ls": true, "volume list -f dangling=true": true, "volume ls -q": false, "volume ls -fq": false, "volume ls --quiet": false, "ps -aq": false,
		"run alpine ps": false, "exec web ps": false, "logs ps": true, // a container of that name: its log has no heading
	} {
		if got := shown(strings.Fields(args)); got != want {
			t.Errorf("drover %s: %v", args, got)
		}
	}
}

func TestHelpSpeaksOfDrover(t *testing.T) {
	c := &cobra.Command{Short: "Log in to Docker Hub", Long: "The Docker daemon and the Docker CLI read a Dockerfile", Example: "docker run x", Annotations: map[string]string{"aliases": "docker container ls, docker ps"}}
	rename(c)
	if c.Short != "Log in to Docker Hub" || c.Long != "The fleet and drover read a Dockerfile" || c.Example != "drover run x" || c.Annotations["aliases"] != "drover container ls, drover ps" {
		t.Errorf("%+v", c)
	}
}

// Which commands ask the fleet, and which of these are traced.
func TestWhichCommandsAskTheFleet(t *testing.T) {
	root := tree(t)
	for path, want := range map[string][2]bool{
		"run": {true, true}, "ps": {true, true}, "container ls": {true, true}, "node ls": {true, false}, "controller ls": {true, false}, "token create": {true, false}, "doctor": {true, false}, "doctor network": {true, false},
		"trace": {true, false}, "up": {false, true}, "join": {false, true}, "agent": {false, true}, "config": {false, true}, "controller": {false, true}, "controller recover": {false, false},
		"build": {false, true}, "swarm": {false, true},
	} {
		cmd, rest, err := root.Find(strings.Fields(path))
		if err != nil || len(rest) > 0 {
			t.Errorf("drover %s is not there: %v", path, err)
			continue
		}
		if got := asksTheFleet(cmd); got != want[0] {
			t.Errorf("drover %s asks the fleet: %v", path, got)
		}
		if got := traced(cmd); got != want[1] {
			t.Errorf("drover %s is traced: %v", path, got)
		}
	}
	if asksTheFleet(root) {
		t.Error("drover alone asks the fleet")
	}
}

// The packages of commands that a fleet does not have are not in the program: they would
// cost each command's start time.
func TestAbsentCommandsAreNotCompiledIn(t *testing.T) {
	dc, err := command.NewDockerCli()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, newCommand := range registered() {
		names = append(names, newCommand(dc).Name())
	}
	for _, there := range []string{"run", "ps", "images", "pull", "info", "events", "login", "network", "volume"} {
		if !slices.Contains(names, there) {
			t.Errorf("%s is not among %v", there, names)
		}
	}
	for _, absent := range []string{"stack", "service", "swarm", "node", "secret", "config", "plugin", "manifest", "checkpoint", "builder", "context"} {
		if slices.Contains(names, absent) {
			t.Errorf("%s is registered", absent)
		}
	}
}
