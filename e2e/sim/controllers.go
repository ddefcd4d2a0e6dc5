package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime/debug"

	"golang.org/x/sync/errgroup"

	"github.com/drover/drover/controller"
)

// controllerPart is one real controller, in a process of its own.
type controllerPart struct {
	DataDir, RunDir, Listen string
	Debug                   string // socket that serves net/http/pprof
	Log                     string // file
}

func (p controllerPart) run(ctx context.Context, ready func()) error {
	f, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(controller.GCPercent)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return serve(ctx, p.Debug, debugging()) })
	g.Go(func() error {
		return controller.Run(ctx, controller.Config{DataDir: p.DataDir, RunDir: p.RunDir, Listen: p.Listen, Version: "sim", Stdout: f,
			Logger: slog.New(slog.NewTextHandler(f, nil)), OnReady: func(net.Addr) { ready() }})
	})
	return g.Wait()
}

func debugging() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// serve serves HTTP on a unix socket until ctx ends.
func serve(ctx context.Context, socket string, h http.Handler) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: h}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}
