package root

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"
)

// Messages of docker commands that a fleet doesn't have.
const (
	noBuilder = "a fleet builds no images: build them with docker buildx or any other tool, push them to your registry, and drover pull"
	noSwarm   = "docker's swarm commands are not there on a fleet, which is one itself: drover node ls lists its hosts, drover run --each runs on all of them"
	noSearch  = "a fleet searches no registry: name the image in full, as in drover pull registry.lan:5000/web:1.4"
	noContext = "a fleet is named by -H or DROVER_HOST, not by a context"
	noCompose = "run docker's own: DOCKER_HOST=unix:///run/drover/drover.sock docker compose up, for the fleet is one engine to it"
	never     = "this is not there on a fleet"
	notYet    = "this is not there on a fleet yet"
)

// absent lists the docker commands that a fleet doesn't have, with their messages. They
// are hidden.
var absent = map[string]string{
	"build": noBuilder, "builder": noBuilder, "buildx": noBuilder, "bake": noBuilder, "image build": noBuilder,
	"swarm": noSwarm, "stack": noSwarm, "service": noSwarm, "config": noSwarm, "secret": noSwarm,
	"search": noSearch, "context": noContext, "compose": noCompose,
	"plugin": never, "trust": never, "manifest": never, "checkpoint": never,
	"system prune": notYet, "volume update": noSwarm,
	"commit": notYet, "pause": notYet, "unpause": notYet, "update": notYet,
	"history": notYet, "import": notYet, "load": notYet, "push": notYet, "save": notYet,
	"container prune": notYet, "image prune": notYet,
}

// answerAbsent makes absent commands fail with their message, also below container,
// image and system. Those missing from docker's tree are added.
func answerAbsent(root *cobra.Command) {
	for path, sentence := range absent {
		if cmd, rest, err := root.Find([]string{path}); err == nil && len(rest) == 0 && cmd != root {
			root.RemoveCommand(cmd)
		}
		if words := strings.Fields(path); len(words) == 1 && path != "config" { // drover's own, about a host
			root.AddCommand(answer(words[0], path, sentence))
		}
	}
	for _, parent := range root.Commands() {
		for _, cmd := range parent.Commands() {
			path := parent.Name() + " " + cmd.Name()
			sentence, is := absent[path]
			if !is && (parent.Name() == "container" || parent.Name() == "image") {
				sentence, is = absent[cmd.Name()]
			}
			if is {
				parent.RemoveCommand(cmd)
				parent.AddCommand(answer(cmd.Name(), path, sentence))
			}
		}
	}
}

// answer returns a hidden command that only fails with a message.
func answer(name, path, sentence string) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, DisableFlagParsing: true, Annotations: map[string]string{annotationAbsent: ""},
		RunE: func(*cobra.Command, []string) error {
			return errors.New("drover: " + path + ": " + sentence + "\n\nRun 'drover --help' for what there is")
		},
	}
}

// annotationAbsent marks commands that contact nobody.
const annotationAbsent = "drover.absent"
