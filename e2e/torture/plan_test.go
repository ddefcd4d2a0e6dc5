package torture

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// plan is what a round does: an operation, and what happens in the middle of it.
type plan struct {
	Hosts  int    // of the fleet
	Op     string // see ops
	Point  string // a failpoint
	Action string // what it does
	Pass   int    // at which pass, from 1
	// Victim is killed while the process at the failpoint is stopped; "": the action says it all.
	Victim string
}

func (p plan) String() string {
	s := fmt.Sprintf("%d host(s): %s; %s=%s@%d", p.Hosts, p.Op, p.Point, p.Action, p.Pass)
	if p.Victim != "" {
		s += "; meanwhile " + p.Victim + " is killed"
	}
	return s
}

// killsShim reports whether a container may have lost its shim.
func (p plan) killsShim() bool {
	return p.Victim == shim || p.Action == "kill" && strings.HasPrefix(p.Point, "shim.")
}

// The processes of a host, as in their command lines.
const (
	controller = "controller"
	agent      = "agent"
	containerd = "drover-containerd"
	shim       = "drover-shim"

	everything = "everything but the shims" // of the host
)

// Operations.
const (
	runDetached  = "run -d"
	runPublished = "run -d -p"
	runRemoved   = "run --rm"
	runInVain    = "run of what is not there"
	create       = "create"
	start        = "start"
	stop         = "stop"
	restart      = "restart"
	restartAnew  = "restart of one that can change its network"
	remove       = "rm -f"
	execute      = "exec"
	die          = "kill of the shim"
	dieAgent     = "kill of the agent" // for which a spare waits
)

// reaching lists the operations that pass the failpoints with a prefix, for the first prefix
// that a name has.
var reaching = []struct {
	prefix string
	ops    []string
}{
	{"controller.", []string{runDetached, runRemoved, create, start, stop, restart, remove}},
	{"session.", []string{runDetached, runRemoved, create, start, stop, restart, remove, dieAgent}},
	{"task.take.", []string{runDetached, runRemoved, create, start, stop, restart, remove, dieAgent}},
	{"task.fail.", []string{runInVain}},
	{"task.start.done", []string{runDetached, runPublished, runRemoved, start, restart}},
	{"task.exit.seen", []string{runRemoved, stop, restart, remove, die}},
	{"task.forget.", []string{runRemoved, remove}},
	{"engine.snapshot.", []string{runDetached, runRemoved, create}},
	{"engine.spec.", []string{runDetached, runRemoved, create}},
	{"engine.undo.before", []string{runInVain}},
	{"engine.signal.", []string{stop, restart, remove}},
	{"engine.settle.", []string{die}},
	{"engine.delete.", []string{runRemoved, stop, restart, remove}},
	{"engine.remove.", []string{runRemoved, remove}},
	{"engine.exec", []string{execute}},
	{"network.detach.", []string{runRemoved, stop, restart, remove}},
	{"network.renew.", []string{restartAnew}},
	{"network.publish.", []string{runPublished}},
	{"network.bind.", []string{runPublished}},
	{"shims.spare.", []string{runDetached, runRemoved, start, restart}},
	{"shims.shutdown.", []string{runRemoved, stop, restart, remove}},
	{"shims.bury.", []string{die, runInVain}},
	{"shims.clear.", []string{runRemoved, stop, restart, remove, die}},
	{"shim.exit.", []string{runRemoved, stop, restart, remove}},
	{"shim.delete.", []string{runRemoved, stop, restart, remove}},
	{"shim.destroy.", []string{runRemoved, stop, restart, remove}},
	{"shim.stop.", []string{die}},
	{"shim.start.", []string{runDetached, runRemoved, start, restart, execute}},
	{"", []string{runDetached, runPublished, runRemoved, start, restart}},
}

func opsReaching(point string) []string {
	for _, r := range reaching {
		if strings.HasPrefix(point, r.prefix) {
			return r.ops
		}
	}
	return nil
}

// failing are the failpoints where the caller can return an error.
var failing = []string{"engine.spec.before", "engine.attempt.before", "network.save.before", "shims.exec.before"}

// made returns the round of a seed, which depends on nothing else but the list of failpoints.
func made(seed uint64, points []string) plan {
	r := rand.New(rand.NewPCG(seed, 17))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	p := plan{Hosts: 1, Point: pick(points...), Action: "kill", Pass: 1}
	if seed%3 == 0 {
		p.Hosts = 3
	}
	p.Op = pick(opsReaching(p.Point)...)
	if r.IntN(5) == 0 {
		p.Pass = 2
	}
	switch n := r.IntN(10); {
	case n < 3 && slices.Contains(failing, p.Point):
		p.Action = "error(no space left on device)"
	case n < 5:
	case n < 6:
		p.Action = fmt.Sprintf("sleep(%dms)", 10+r.IntN(150))
	case n < 8:
		p.Action = "stop"
		p.Victim = pick(slices.DeleteFunc([]string{controller, agent, containerd, shim, everything}, func(v string) bool { return v == processOf(p.Point) })...)
	}
	return p
}

// processOf returns which process has a failpoint.
func processOf(point string) string {
	switch room, _, _ := strings.Cut(point, "."); room {
	case "controller":
		return controller
	case "shim":
		return shim
	}
	return agent
}
