// Package trace is drover trace: it shows where the time of an operation went.
package trace

import (
	"context"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/output"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/trace"
)

// settled is how long after an operation all of its spans have arrived.
const settled = 600 * time.Millisecond

// Command returns drover trace.
func Command(s *client.Session) *cobra.Command {
	cmd := &cobra.Command{Use: "trace [last|ID]", Short: "Show where the time of an operation went", Args: cli.RequiresMaxArgs(1),
		Long: "Show where the time of an operation went, from the command to the container's process.\nWithout an argument it lists the latest operations."}
	raw := cmd.Flags().Bool("json", false, "Print the spans as JSON")
	limit := cmd.Flags().Uint32P("limit", "n", 20, "How many operations to list")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := s.API()
		if err != nil {
			return err
		}
		if len(args) == 0 {
			resp, err := api.Traces.List(cmd.Context(), connect.NewRequest(&dv1.ListTracesRequest{PageSize: *limit}))
			if err != nil {
				return err
			}
			return list(cmd.OutOrStdout(), resp.Msg.Traces, s.Now())
		}
		t, err := whole(cmd.Context(), api, args[0], s.Now)
		if err != nil {
			return err
		}
		if *raw {
			return output.JSON(cmd.OutOrStdout(), t, "  ")
		}
		return waterfall(cmd.OutOrStdout(), t)
	}
	return cmd
}

// whole fetches a trace with all of its spans, waiting for those of an operation that
// has only just ended.
func whole(ctx context.Context, api *client.API, id string, now func() time.Time) (*trace.Trace, error) {
	t, err := get(ctx, api, id)
	if err != nil {
		return nil, err
	}
	late := settled - now().Sub(end(t))
	if late <= 0 {
		return t, nil
	}
	select {
	case <-time.After(late):
		return get(ctx, api, t.ID)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func get(ctx context.Context, api *client.API, id string) (*trace.Trace, error) {
	resp, err := api.Traces.Get(ctx, connect.NewRequest(&dv1.GetTraceRequest{Id: id}))
	if err != nil {
		return nil, err
	}
	return trace.FromProto(resp.Msg.Trace), nil
}

func end(t *trace.Trace) time.Time {
	var last int64
	for _, s := range t.Spans {
		last = max(last, s.End)
	}
	return time.Unix(0, last)
}

func list(out io.Writer, all []*dv1.TraceSummary, now time.Time) error {
	var rows []string
	for _, t := range all {
		rows = append(rows, output.Row(output.ShortID(t.Id), t.Name, output.Ago(now, t.Start), ms(time.Duration(t.Duration)), t.Spans, firstLine(t.Error)))
	}
	return output.Table(out, "TRACE\tOPERATION\tSTARTED\tTOOK\tSPANS\tERROR", rows)
}
