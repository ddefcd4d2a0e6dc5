// Command drover-resolver is the resolver embedded in an agent: it answers the questions
// of the node's containers for names, also while there is no agent.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/drover/drover/agent/resolver/server"
)

// listenerFD is the agent's socket, open from the start: nobody waits for this process.
const listenerFD = 3

func main() {
	socket := flag.String("socket", "", "path of the socket that is descriptor 3, for people who look at processes")
	root := flag.String("root", "/", "of the host's files")
	idle := flag.Duration("idle", time.Minute, "end after so long without a container")
	flag.Parse()
	if err := run(*socket, *root, *idle); err != nil {
		fmt.Fprintln(os.Stderr, "drover-resolver:", err)
		os.Exit(1)
	}
}

func run(socket, root string, idle time.Duration) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	f := os.NewFile(listenerFD, socket)
	l, err := net.FileListener(f)
	if err != nil {
		return errors.Join(fmt.Errorf("descriptor %d is no listener: %w", listenerFD, err), f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return server.Run(ctx, server.Options{Listener: l, Root: root, Idle: idle, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
}
