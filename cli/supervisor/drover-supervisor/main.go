// Command drover-supervisor is what `drover up` becomes. It is built small: its size is
// memory of every host.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"

	"github.com/drover/drover/cli/supervisor"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), supervisor.Signals...)
	defer stop()
	p, err := supervisor.Handed()
	if err == nil {
		debug.SetGCPercent(25)
		err = p.Run(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)).With("proc", "up"))
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "drover: "+err.Error())
		os.Exit(1) //nolint:gocritic // the signals' handlers go with the process
	}
}
