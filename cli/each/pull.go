package each

import (
	"context"
	"fmt"

	docker "github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/jsonmessage"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// pull pulls to every node. The first node pulls from the registry, the others from the
// first.
func (e *each) pull(cmd *cobra.Command, args []string) error {
	ctx := cmd.Context()
	nodes, err := e.nodes(ctx)
	if err != nil {
		return err
	}
	var o *docker.ImagePullOptions
	ref := ""
	cmd.SetContext(client.Intercept(ctx, client.Calls{Pull: func(_ context.Context, asked string, options docker.ImagePullOptions) (docker.ImagePullResponse, error) {
		ref, o = asked, &options
		return nil, errTaken
	}}))
	err = e.inner(cmd, args)
	cmd.SetContext(ctx)
	if o == nil {
		return err
	}
	out := newFolder(e.docker.Out(), e.docker.Err(), names(nodes, (*dv1.NodeInfo).GetName))
	defer out.close()
	quiet := cmd.Flags().Lookup("quiet").Value.String() == "true"
	ends := make([]outcome, len(nodes))
	one := func(i int) outcome {
		stdout := out.writer(i, false)
		defer func() { _ = stdout.Close() }()
		ends[i] = outcome{node: nodes[i].Name}
		r, err := e.docker.Client().ImagePull(client.WithOn(ctx, "node=="+nodes[i].Id), ref, *o)
		if err == nil && quiet {
			err = r.Wait(ctx)
		} else if err == nil {
			err = jsonmessage.DisplayJSONMessagesStream(r, stdout, 0, false, nil)
			_ = r.Close()
		}
		if err != nil {
			ends[i].code, ends[i].err = 1, err
		} else if quiet {
			_, _ = fmt.Fprintln(stdout, ref)
		}
		return ends[i]
	}
	if one(0).err != nil || len(nodes) == 1 {
		return e.end(ends[:1])
	}
	_ = e.all(len(nodes)-1, func(i int) outcome { one(i + 1); return outcome{} })
	return e.end(ends)
}
