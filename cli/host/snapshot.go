package host

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/controller/state"
)

func snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "snapshot FILE", Short: "Show what is in a snapshot of the fleet's state", Args: cli.ExactArgs(1),
		Long: `Show what is in a snapshot of the fleet's state, a file that a controller wrote:

  drover controller snapshot /var/lib/drover/controller/raft/snapshots/*/state.bin

Its checksums are checked. Two controllers at the same index have the same hash.
With --json, each record is a line.`,
	}
	kind := cmd.Flags().String("kind", "", "Only records of this kind: task, node, tag, ...")
	lines := cmd.Flags().Bool("json", false, "Print each record as a line of JSON")
	cmd.RunE = named(func(cmd *cobra.Command, args []string) error {
		f, err := os.Open(args[0])
		if err != nil {
			return fmt.Errorf("opening the snapshot: %w", err)
		}
		defer func() { _ = f.Close() }()
		snap, err := state.Read(f)
		if err != nil {
			return fmt.Errorf("reading %s: %w", args[0], err)
		}
		return showSnapshot(cmd.OutOrStdout(), snap, *kind, *lines)
	})
	return cmd
}

// showSnapshot prints a line about the state and the number of records of each kind or,
// as lines of JSON, the records themselves; kind "" is all.
func showSnapshot(w io.Writer, s *state.Snapshot, kind string, lines bool) error {
	var kinds, counts []string
	for name, records := range s.Records() {
		kinds = append(kinds, name)
		if kind != "" && name != kind {
			continue
		}
		n := 0
		for m := range records {
			n++
			if !lines {
				continue
			}
			b, err := protojson.Marshal(m)
			if err != nil {
				return fmt.Errorf("showing a record of kind %s: %w", name, err)
			}
			if _, err := fmt.Fprintf(w, "%s\n", b); err != nil {
				return err
			}
		}
		counts = append(counts, fmt.Sprintf("%s %d", name, n))
	}
	if kind != "" && !slices.Contains(kinds, kind) {
		return fmt.Errorf("no kind is called %q: there are %s", kind, strings.Join(kinds, ", "))
	}
	if lines {
		return nil
	}
	_, err := fmt.Fprintf(w, "index %d, time %s, hash %x\n%s\n", s.Index(), time.Unix(0, s.Time()).UTC().Format(time.RFC3339), s.Hash(), strings.Join(counts, ", "))
	return err
}
