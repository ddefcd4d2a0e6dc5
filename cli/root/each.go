package root

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"

	fleet "github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// labelRun names the run that a container of several nodes belongs to.
const labelRun = "io.drover.run"

// atOnce bounds how many nodes a command works on at the same time.
const atOnce = 64

// spread gives a command of docker's --on and, where that has a meaning, --each.
func (a *app) spread(root *cobra.Command) {
	for _, path := range [][]string{{"run"}, {"container", "run"}, {"create"}, {"container", "create"}, {"exec"}, {"container", "exec"}, {"pull"}, {"image", "pull"}} {
		cmd, rest, err := root.Find(path)
		if err != nil || len(rest) > 0 {
			continue
		}
		name := path[len(path)-1]
		var on []string
		each := false
		cmd.Flags().StringSliceVar(&on, "on", nil, "Nodes that will do: node==NAME, LABEL==VALUE, LABEL!=VALUE (globs allowed)")
		if name != "create" {
			cmd.Flags().BoolVar(&each, "each", false, map[string]string{"run": "Run once on every node that will do", "exec": "Run in every container of a run --each, named by its --name", "pull": "Pull to every node that will do"}[name])
		}
		if f := cmd.Flags().Lookup("on"); name == "exec" {
			f.Usage = "With --each: only containers on these nodes"
		}
		docker := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(on) > 0 {
				a.session.On = on
			}
			if !each {
				if name == "exec" && len(on) > 0 {
					return errors.New("drover: exec knows its node by its container: --on goes with --each")
				}
				return docker(cmd, args)
			}
			for _, f := range []string{"interactive", "tty"} {
				if x := cmd.Flags().Lookup(f); x != nil && x.Changed {
					return fmt.Errorf("drover: --each and --%s don't go together: there is one terminal", f)
				}
			}
			switch name {
			case "run":
				return a.runEach(cmd, args, on)
			case "exec":
				return a.execEach(cmd, args, on)
			}
			return a.pullEach(cmd, on)
		}
	}
}

// one is a child of a command over several nodes.
type one struct {
	label string
	on    string // node id, "" as it is
	args  []string
	aside bool // its output is no result
}

func (a *app) nodesFor(cmd *cobra.Command, on []string) (out []*dv1.NodeInfo, err error) {
	api, err := a.session.API()
	if err != nil {
		return nil, err
	}
	err = fleet.Pages(func(token string) (string, error) {
		resp, err := api.Nodes.List(cmd.Context(), connect.NewRequest(&dv1.ListNodesRequest{On: on, PageToken: token}))
		if err != nil {
			return "", err
		}
		for _, n := range resp.Msg.Nodes {
			switch {
			case n.Liveness != dv1.Node_READY:
				_, _ = fmt.Fprintf(os.Stderr, "drover: node %s does not answer and is left out\n", n.Name)
			case n.Availability != dv1.Node_ACTIVE:
				_, _ = fmt.Fprintf(os.Stderr, "drover: node %s is drained and is left out\n", n.Name)
			default:
				out = append(out, n)
			}
		}
		return resp.Msg.NextPageToken, nil
	})
	if err == nil && len(out) == 0 {
		err = errors.New("drover: no node is there that will do")
	}
	return out, err
}

// given are the command's own arguments, as typed, without the flags of ours.
func given(cmd *cobra.Command) []string {
	at := slices.Index(os.Args[1:], cmd.Name()) + 1
	var out []string
	for i := 1; i < len(os.Args); i++ {
		x := os.Args[i]
		switch {
		case x == "--":
			return append(out, os.Args[i:]...)
		case i > at && x == "--each" || strings.HasPrefix(x, "--each=") || strings.HasPrefix(x, "--on="):
		case i > at && x == "--on":
			i++
		case i > at && !strings.HasPrefix(x, "-") && !takesValue(cmd, os.Args[i-1]):
			return append(out, os.Args[i:]...) // the image or container: what follows is its own
		default:
			out = append(out, x)
		}
	}
	return out
}

// takesValue says whether the word before was a flag that this one belongs to.
func takesValue(cmd *cobra.Command, x string) bool {
	if !strings.HasPrefix(x, "-") || strings.Contains(x, "=") {
		return false
	}
	name := strings.TrimLeft(x, "-")
	f := cmd.Flags().Lookup(name)
	if !strings.HasPrefix(x, "--") {
		f = cmd.Flags().ShorthandLookup(name[len(name)-1:])
	}
	return f != nil && f.NoOptDefVal == "" && f.Value.Type() != "bool"
}

// before puts flags right behind the command's name.
func before(args []string, cmd *cobra.Command, flags ...string) []string {
	i := slices.Index(args, cmd.Name()) + 1
	return slices.Concat(args[:i], flags, args[i:])
}

func (a *app) runEach(cmd *cobra.Command, args, on []string) error {
	nodes, err := a.nodesFor(cmd, on)
	if err != nil {
		return err
	}
	if _, err := a.docker.Client().ImageInspect(cmd.Context(), args[0]); errdefs.IsNotFound(err) {
		_, _ = fmt.Fprintf(os.Stderr, "Unable to find image '%s' locally\n", args[0])
		if err := a.each(cmd, []one{{args: []string{"pull", args[0]}, aside: true}}); err != nil {
			return err
		}
	}
	run := cmd.Flags().Lookup("name").Value.String()
	base := given(cmd)
	if run == "" {
		b := make([]byte, 6)
		_, _ = rand.Read(b) // never fails
		run = hex.EncodeToString(b)
	} else {
		base = without2(base, "--name")
	}
	var all []one
	for i, n := range nodes {
		flags := []string{"--label", labelRun + "=" + run}
		if cmd.Flags().Lookup("name").Changed {
			flags = append(flags, "--name", fmt.Sprintf("%s-%d", run, i+1))
		}
		all = append(all, one{label: n.Name, on: n.Id, args: before(base, cmd, flags...)})
	}
	return a.each(cmd, all)
}

// without2 drops a flag and its value.
func without2(args []string, flag string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		if args[i] == flag {
			i++
			continue
		}
		if !strings.HasPrefix(args[i], flag+"=") {
			out = append(out, args[i])
		}
	}
	return out
}

func (a *app) execEach(cmd *cobra.Command, args, on []string) error {
	var wanted map[string]bool
	if len(on) > 0 {
		nodes, err := a.nodesFor(cmd, on)
		if err != nil {
			return err
		}
		wanted = map[string]bool{}
		for _, n := range nodes {
			wanted[n.Name] = true
		}
	}
	list, err := a.docker.Client().ContainerList(cmd.Context(), client.ContainerListOptions{Filters: client.Filters{}.Add("label", labelRun+"="+args[0])})
	if err != nil {
		return err
	}
	base := given(cmd)
	var all []one
	for _, c := range list.Items {
		node := c.Labels["io.drover.node"]
		if wanted == nil || wanted[node] {
			mine := slices.Clone(base)
			mine[slices.Index(mine, args[0])] = c.ID
			all = append(all, one{label: node, args: mine})
		}
	}
	if len(all) == 0 {
		return fmt.Errorf("drover: no running container is of a run named %s (drover run --each --name %s …)", args[0], args[0])
	}
	slices.SortFunc(all, func(x, y one) int { return strings.Compare(x.label, y.label) })
	return a.each(cmd, all)
}

func (a *app) pullEach(cmd *cobra.Command, on []string) error {
	nodes, err := a.nodesFor(cmd, on)
	if err != nil {
		return err
	}
	base := given(cmd)
	var all []one
	for _, n := range nodes {
		all = append(all, one{label: n.Name, on: n.Id, args: base})
	}
	// The first one asks the registry, the others the first.
	if err := a.each(cmd, all[:1]); err != nil || len(all) == 1 {
		return err
	}
	return a.each(cmd, all[1:])
}

// each runs this program once for each, with output labelled, and ends with their
// code: 0 if all succeeded, theirs if all are the same, else 1.
func (a *app) each(cmd *cobra.Command, all []one) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	width := 0
	for _, x := range all {
		width = max(width, len(x.label))
	}
	var mu sync.Mutex // guards lines of output, and codes
	codes := map[int]int{}
	var failed []string
	slots := make(chan struct{}, atOnce)
	var children sync.WaitGroup
	for _, x := range all {
		slots <- struct{}{}
		children.Go(func() {
			defer func() { <-slots }()
			child := exec.CommandContext(cmd.Context(), exe, x.args...)
			child.Cancel = func() error { return child.Process.Signal(os.Interrupt) }
			child.Env = append(os.Environ(), fleet.EnvHost+"="+a.session.Host)
			if x.on != "" {
				child.Env = append(child.Env, fleet.EnvOn+"=node=="+x.on)
			}
			out, errs := &labelled{mu: &mu, to: os.Stdout, label: x.label, width: width}, &labelled{mu: &mu, to: os.Stderr, label: x.label, width: width}
			child.Stdout, child.Stderr = out, errs
			if x.aside {
				child.Stdout = errs
			}
			code := 0
			if err := child.Run(); err != nil {
				code = 1
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					code = exit.ExitCode()
				}
			}
			out.end()
			errs.end()
			mu.Lock()
			defer mu.Unlock()
			if codes[code]++; code != 0 {
				failed = append(failed, x.label)
			}
		})
	}
	children.Wait()
	if len(failed) == 0 {
		return nil
	}
	slices.Sort(failed)
	code := 1
	if len(codes) == 1 {
		for c := range codes {
			code = c
		}
	}
	msg := ""
	if len(all) > 1 {
		msg = fmt.Sprintf("drover: failed on %d of %d nodes: %s", len(failed), len(all), strings.Join(failed, ", "))
	}
	return cli.StatusError{StatusCode: code, Status: msg}
}

// labelled puts a node's name before each line.
type labelled struct {
	mu    *sync.Mutex // guards to
	to    io.Writer
	label string
	width int
	part  []byte
}

func (l *labelled) Write(p []byte) (int, error) {
	l.part = append(l.part, p...)
	r := bufio.NewReader(bytes.NewReader(l.part))
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			l.part = line
			return len(p), nil
		}
		l.line(line)
	}
}

func (l *labelled) line(b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.label != "" {
		_, _ = fmt.Fprintf(l.to, "%-*s | ", l.width, l.label)
	}
	_, _ = l.to.Write(b)
}

func (l *labelled) end() {
	if len(l.part) > 0 {
		l.line(append(l.part, '\n'))
		l.part = nil
	}
}
