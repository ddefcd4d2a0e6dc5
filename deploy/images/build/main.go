// Command build pushes the demo's images to a registry.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/drover/drover/deploy/images"
)

func main() {
	registry := flag.String("registry", "", "host:port of a registry that speaks plain HTTP")
	flag.Parse()
	if *registry == "" {
		fmt.Fprintln(os.Stderr, "build: -registry is missing")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	all, err := images.Build(ctx)
	if err == nil {
		err = all.Push(ctx, *registry)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}
