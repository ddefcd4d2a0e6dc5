// Command drover-containerd is the containerd daemon embedded in an agent: only the
// plugins that drover uses, configured by flags, never by /etc/containerd.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	_ "github.com/containerd/containerd/v2/core/metrics/cgroups"
	_ "github.com/containerd/containerd/v2/core/metrics/cgroups/v2"
	"github.com/containerd/containerd/v2/core/mount"
	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/gc"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/sandbox"
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/healthcheck"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/mounts"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
)

func main() {
	root := flag.String("root", "", "durable data")
	state := flag.String("state", "", "volatile data; sockets of shims go beside it, into sh")
	address := flag.String("address", "", "unix socket; ADDRESS.ttrpc beside it is for shims")
	level := flag.String("log-level", "warn", "trace, debug, info, warn or error")
	flag.Parse()
	if err := run(*root, *state, *address, *level); err != nil {
		fmt.Fprintln(os.Stderr, "drover-containerd:", err)
		os.Exit(1)
	}
}

func run(root, state, address, level string) error {
	if root == "" || state == "" || address == "" {
		return errors.New("-root, -state and -address are required")
	}
	if err := log.SetLevel(level); err != nil {
		return fmt.Errorf("log level %q: %w", level, err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	config := &srvconfig.Config{
		Version: version.ConfigVersion, Root: root, State: state, TempDir: filepath.Join(root, "tmp"),
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": address},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": address + ".ttrpc"},
			"io.containerd.shim.v1.manager": map[string]any{"socket_dir": filepath.Join(filepath.Dir(state), "sh")},
		},
	}
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return fmt.Errorf("creating directories: %w", err)
	}
	if err := mount.SetTempMountLocation(filepath.Join(state, "mounts")); err != nil {
		return fmt.Errorf("setting the directory for mounts: %w", err)
	}
	if _, err := mount.CleanupTempMounts(0); err != nil {
		log.G(ctx).WithError(err).Warn("mounts of an earlier run were not removed")
	}
	for _, s := range []string{address, address + ".ttrpc"} {
		if err := os.Remove(s); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing a stale socket: %w", err)
		}
	}
	s, err := server.New(ctx, config)
	if err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	if err := s.Start(ctx); err != nil {
		return fmt.Errorf("serving: %w", err)
	}
	<-ctx.Done()
	s.Stop()
	return nil
}
