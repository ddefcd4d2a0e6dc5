package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"path/filepath"
	"time"

	"github.com/drover/drover/pkg/config"
	"github.com/drover/drover/pkg/unixsock"
)

// serveProfiles serves Go's profiles of this process on RUN/PROC-debug.sock, which only
// root and the socket's group can open, until stop is called.
func serveProfiles(ctx context.Context, c *config.Config, proc string) (stop func(), err error) {
	path := filepath.Join(c.RunDir, proc+"-debug.sock")
	if other, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		_ = other.Close() // its process holds the lock, so this one is about to exit
		return func() {}, nil
	}
	l, err := unixsock.Listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("serving profiles: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout: 10 * time.Second,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			if _, err := unixsock.Peer(path, conn); err != nil {
				_ = conn.Close()
			}
			return ctx
		},
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	return func() {
		_ = srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			logger(c, proc).Warn("the debug socket failed", "err", err)
		}
	}, nil
}
