// Package each implements --each: docker's run, exec and pull on many nodes at once.
// Docker's own parser reads the command line and builds the request; this package has
// the fleet create a run over nodes from it, or sends it for every node, and follows all
// of them as docker's command follows one.
package each

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// labelRun names the run that a container of several nodes belongs to.
const labelRun = "io.drover.run"

// atOnce bounds how many nodes a command works on concurrently.
const atOnce = 64

// errTaken aborts docker's own command once its request is intercepted.
var errTaken = errors.New("taken over by --each")

// verbs are the docker commands that support --each.
var verbs = map[string]struct {
	usage string
	do    func(e *each, cmd *cobra.Command, args []string) error
}{
	"run":  {"Run once on every node that will do", (*each).run},
	"exec": {"Run in every container of a run --each, named by its --name", (*each).exec},
	"pull": {"Pull to every node that will do", (*each).pull},
}

// each is a command that runs on many nodes.
type each struct {
	s      *client.Session
	docker command.Cli
	inner  func(cmd *cobra.Command, args []string) error // docker's own implementation
	on     []string
}

// Add gives docker's commands below root --on and, if they support it, --each.
func Add(root *cobra.Command, s *client.Session, docker command.Cli) {
	for _, path := range []string{"run", "container run", "create", "container create", "exec", "container exec", "pull", "image pull"} {
		if cmd, rest, err := root.Find(strings.Fields(path)); err == nil && len(rest) == 0 {
			add(cmd, s, docker)
		}
	}
}

func add(cmd *cobra.Command, s *client.Session, docker command.Cli) {
	e := &each{s: s, docker: docker, inner: cmd.RunE}
	cmd.Flags().StringSliceVar(&e.on, "on", nil, "Nodes that will do: node==NAME, LABEL==VALUE, LABEL!=VALUE (globs allowed)")
	verb, many := verbs[cmd.Name()]
	all := false
	if many {
		cmd.Flags().BoolVar(&all, "each", false, verb.usage)
	}
	if cmd.Name() == "exec" {
		cmd.Flags().Lookup("on").Usage = "With --each: only containers on these nodes"
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !all {
			if cmd.Name() == "exec" && len(e.on) > 0 {
				return errors.New("drover: exec knows its node by its container: --on goes with --each")
			}
			if len(e.on) > 0 {
				s.On = e.on
			}
			return e.inner(cmd, args)
		}
		for _, f := range []struct{ flag, only string }{{"interactive", "terminal"}, {"tty", "terminal"}, {"cidfile", "file"}} {
			if x := cmd.Flags().Lookup(f.flag); x != nil && x.Changed {
				return fmt.Errorf("drover: --each and --%s don't go together: there is one %s", f.flag, f.only)
			}
		}
		return verb.do(e, cmd, args)
	}
}

// constraints returns what nodes must meet.
func (e *each) constraints() []string {
	if len(e.on) > 0 {
		return e.on
	}
	return e.s.On
}

// nodes returns the matching nodes that can take part. Other nodes that were asked for
// are reported.
func (e *each) nodes(ctx context.Context) (out []*dv1.NodeInfo, err error) {
	api, err := e.s.API()
	if err != nil {
		return nil, err
	}
	on := e.constraints()
	err = client.Pages(func(token string) (string, error) {
		resp, err := api.Nodes.List(ctx, connect.NewRequest(&dv1.ListNodesRequest{On: on, PageSize: 1000, PageToken: token}))
		if err != nil {
			return "", err
		}
		for _, n := range resp.Msg.Nodes {
			switch {
			case n.Liveness != dv1.Node_READY:
				e.say("node %s does not answer and is left out", n.Name)
			case n.Availability != dv1.Node_ACTIVE:
				e.say("node %s is drained and is left out", n.Name)
			default:
				out = append(out, n)
			}
		}
		return resp.Msg.NextPageToken, nil
	})
	if err == nil && len(out) == 0 {
		err = cli.StatusError{StatusCode: 125, Status: "drover: " + e.nobody(on)}
	}
	return out, err
}

// nobody says why there is no node to act on.
func (e *each) nobody(on []string) string {
	if len(on) == 0 {
		return "no node takes containers now"
	}
	return "no node that takes containers matches " + strings.Join(on, ", ")
}

func (e *each) say(format string, a ...any) {
	_, _ = fmt.Fprintf(e.docker.Err(), "drover: "+format+"\n", a...)
}

// outcome is the result on one node.
type outcome struct {
	node string
	code int
	err  error // set if the fleet failed
}

// all calls do for each of n nodes, several at once, and returns the overall result:
// success if all succeeded, the nodes' exit code if they agree on one, else 1.
func (e *each) all(n int, do func(i int) outcome) error {
	ends := make([]outcome, n)
	slots := make(chan struct{}, atOnce)
	var working sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		working.Go(func() {
			defer func() { <-slots }()
			ends[i] = do(i)
		})
	}
	working.Wait()
	return e.end(ends)
}

func (e *each) end(ends []outcome) error {
	codes := map[int]bool{}
	var failed []string
	for _, o := range ends {
		if o.err != nil {
			e.say("node %s: %s", o.node, reason(e.s.Explain(o.err)))
			o.code = cmp.Or(o.code, 125)
		}
		codes[o.code] = true
		if o.code != 0 {
			failed = append(failed, o.node)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	code := 1
	if len(codes) == 1 {
		for c := range codes {
			code = c
		}
	}
	slices.Sort(failed)
	msg := ""
	if len(ends) > 1 {
		msg = fmt.Sprintf("drover: failed on %d of %d nodes: %s", len(failed), len(ends), strings.Join(failed, ", "))
	}
	return cli.StatusError{StatusCode: code, Status: msg}
}

// reason strips the prefixes of an error.
func reason(msg string) string {
	return strings.TrimPrefix(strings.TrimPrefix(msg, "drover: "), "Error: ")
}

// names returns the display names of all.
func names[T any](all []T, name func(T) string) []string {
	out := make([]string, len(all))
	for i, x := range all {
		out[i] = name(x)
	}
	return out
}
