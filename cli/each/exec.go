package each

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	docker "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
)

// labelNode names the node of a container.
const labelNode = "io.drover.node"

// exec runs a command in every container of a run.
func (e *each) exec(cmd *cobra.Command, args []string) error {
	all, err := e.members(cmd.Context(), args[0])
	if err != nil {
		return err
	}
	// Docker's command inspects its container and creates an exec in it.
	ctx := cmd.Context()
	var o *docker.ExecCreateOptions
	cmd.SetContext(client.Intercept(ctx, client.Calls{Exec: func(_ context.Context, _ string, asked docker.ExecCreateOptions) (docker.ExecCreateResult, error) {
		o = &asked
		return docker.ExecCreateResult{}, errTaken
	}}))
	err = e.inner(cmd, slices.Concat([]string{all[0].ID}, args[1:]))
	cmd.SetContext(ctx)
	if o == nil {
		return err
	}
	detach := cmd.Flags().Lookup("detach").Value.String() == "true"
	out := newFolder(e.docker.Out(), e.docker.Err(), names(all, node))
	defer out.close()
	return e.all(len(all), func(i int) outcome {
		stdout, stderr := out.writer(i, false), out.writer(i, true)
		defer func() { _, _ = stdout.Close(), stderr.Close() }()
		code, err := e.execIn(ctx, all[i].ID, *o, detach, stdout, stderr)
		return outcome{node(all[i]), code, err}
	})
}

func node(c container.Summary) string { return c.Labels[labelNode] }

// members returns the running containers of a run, on the matching nodes.
func (e *each) members(ctx context.Context, run string) ([]container.Summary, error) {
	list, err := e.docker.Client().ContainerList(ctx, docker.ContainerListOptions{Filters: docker.Filters{}.Add("label", labelRun+"="+run)})
	if err != nil {
		return nil, err
	}
	all := list.Items
	if len(e.on) > 0 {
		nodes, err := e.nodes(ctx)
		if err != nil {
			return nil, err
		}
		wanted := map[string]bool{}
		for _, n := range nodes {
			wanted[n.Name] = true
		}
		all = slices.DeleteFunc(all, func(c container.Summary) bool { return !wanted[node(c)] })
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("drover: no running container is of a run named %s (drover run --each --name %s …)", run, run)
	}
	slices.SortFunc(all, func(x, y container.Summary) int { return strings.Compare(node(x), node(y)) })
	return all, nil
}

func (e *each) execIn(ctx context.Context, id string, o docker.ExecCreateOptions, detach bool, stdout, stderr io.Writer) (code int, err error) {
	c := e.docker.Client()
	made, err := c.ExecCreate(ctx, id, o)
	if err != nil {
		return 1, err
	}
	if detach {
		_, err = c.ExecStart(ctx, made.ID, docker.ExecStartOptions{Detach: true})
		return 0, err
	}
	a, err := c.ExecAttach(ctx, made.ID, docker.ExecAttachOptions{})
	if err != nil {
		return startCode(err), err
	}
	defer a.Close()
	stop := context.AfterFunc(ctx, a.Close)
	defer stop()
	if _, err := stdcopy.StdCopy(stdout, stderr, a.Reader); err != nil {
		return 125, err
	}
	r, err := c.ExecInspect(ctx, made.ID, docker.ExecInspectOptions{})
	return r.ExitCode, err
}
