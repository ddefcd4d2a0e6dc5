// Package host holds the commands that run on a fleet's hosts: drover up, controller,
// agent, and config. They only configure packages controller and agent.
package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"text/tabwriter"
	"time"

	"github.com/docker/cli/cli"
	"github.com/spf13/cobra"

	"github.com/drover/drover/agent"
	"github.com/drover/drover/cli/client"
	"github.com/drover/drover/controller"
	"github.com/drover/drover/pkg/config"
	"github.com/drover/drover/pkg/dial"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/trace"
	"github.com/drover/drover/pkg/unixsock"
)

// flags of all host commands.
type flags struct {
	file string
	set  map[string]*string
}

func addFlags(cmd *cobra.Command) *flags {
	f := &flags{set: map[string]*string{}}
	cmd.Flags().StringVar(&f.file, "config", "", "Configuration file (default "+config.DefaultFile+", if it is there)")
	for _, k := range config.Keys {
		if k.Flag {
			f.set[k.Name] = cmd.Flags().String(k.Name, "", k.Usage)
		}
	}
	return f
}

func (f *flags) load(cmd *cobra.Command) (*config.Config, error) {
	given := map[string]string{}
	for key, v := range f.set {
		if cmd.Flags().Changed(key) {
			given[key] = *v
		}
	}
	c, err := config.Load(f.file, given)
	if err != nil {
		return nil, err
	}
	if c.Advertise == "" {
		c.Advertise = outward(cmd.Context())
	}
	return c, nil
}

// outward returns this host's address on its default route. Nothing is sent.
func outward(ctx context.Context) string {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp4", "192.0.2.1:9")
	if err != nil {
		return "127.0.0.1"
	}
	defer func() { _ = c.Close() }()
	return c.LocalAddr().(*net.UDPAddr).IP.String()
}

func logger(c *config.Config, part string) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.LogLevel)) // validated when the configuration was read
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("proc", part)
}

// agentGC is Go's default: an agent is on each host, and should be small.
const agentGC = 100

// startedWithin is how long a process needs memory for its start.
const startedWithin = 10 * time.Second

// returnMemory returns what a process needed only for its start to the system, for an
// idle one would keep it: its next collection comes when the heap has doubled.
func returnMemory() (stop func() bool) { return time.AfterFunc(startedWithin, debug.FreeOSMemory).Stop }

// collectAt sets the GOGC of a daemon, unless its operator did.
func collectAt(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// Commands returns up, controller, agent and config.
func Commands(version string) []*cobra.Command {
	return []*cobra.Command{upCommand(), joinCommand(), controllerCommand(version), agentCommand(version), configCommand()}
}

// named returns run with the program's name in front of its errors, as commands about
// the fleet have it.
func named(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := run(cmd, args); err != nil {
			return fmt.Errorf("drover: %w", err)
		}
		return nil
	}
}

func controllerCommand(version string) *cobra.Command {
	cmd := &cobra.Command{Use: "controller", Short: "Manage the fleet's controllers; alone, run this host's in the foreground", Args: cli.NoArgs}
	f := addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := f.load(cmd)
		if err != nil {
			return err
		}
		stop, err := serveProfiles(cmd.Context(), c, "controller")
		if err != nil {
			return err
		}
		defer stop()
		defer returnMemory()()
		store := &trace.Store{}
		tp := trace.Provider("controller", c.NodeName, store)
		defer func() { _ = tp.Shutdown(context.WithoutCancel(cmd.Context())) }()
		collectAt(controller.GCPercent)
		return controller.Run(cmd.Context(), controller.Config{
			DataDir: c.DataDir, RunDir: c.RunDir, Listen: c.ControllerListen, Advertise: c.Advertise, Version: version,
			Registries: c.Mirrors(), Logger: logger(c, "controller"), Tracer: tp.Tracer("drover"), Traces: store, Stdout: io.Discard,
		})
	}
	cmd.AddCommand(recoverCommand(), snapshotCommand())
	return cmd
}

func agentCommand(version string) *cobra.Command {
	cmd := &cobra.Command{Use: "agent", Short: "Run this host's agent in the foreground", Args: cli.NoArgs}
	f := addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := f.load(cmd)
		if err != nil {
			return err
		}
		id, err := identity.Load(c.DataDir)
		if err != nil {
			return fmt.Errorf("this host is in no fleet: drover up creates one, drover join joins one: %w", err)
		}
		sink, err := remote(identity.AgentPKI(c.DataDir), id.Controllers)
		if err != nil {
			return err
		}
		stop, err := serveProfiles(cmd.Context(), c, "agent")
		if err != nil {
			return err
		}
		defer stop()
		defer returnMemory()()
		collectAt(agentGC)
		tp := trace.Provider("agent", id.Name, sink)
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), time.Second)
			defer cancel()
			_ = tp.Shutdown(ctx)
		}()
		if err := hint(c, id.Node, id.Controllers); err != nil {
			return err
		}
		preferred, socket := "", unixsock.File(c.RunDir)
		if identity.HasController(c.DataDir) {
			preferred, socket = net.JoinHostPort(c.Advertise, fmt.Sprint(agent.Port(c.ControllerListen))), ""
		}
		return agent.Run(cmd.Context(), agent.Config{
			Preferred: preferred, Socket: socket,
			SaveControllers: func(all []string) error {
				return errors.Join(identity.SaveControllers(c.DataDir, all), hint(c, id.Node, all))
			},
			Version: version, DataDir: c.DataDir, RunDir: c.RunDir, NodeID: id.Node, Name: id.Name, ClusterID: id.Cluster, Controllers: id.Controllers,
			PKI: identity.AgentPKI(c.DataDir), Listen: c.AgentListen, Advertise: c.Advertise, Bridge: c.Bridge, Labels: c.Labels,
			Reserved: []uint16{agent.Port(c.ControllerListen), agent.Port(c.AgentListen), agent.Port(c.GossipListen), agent.Port(c.MirrorListen)},
			Gossip:   c.GossipListen, Mirror: c.MirrorListen, Spares: c.Spares, NoDoors: !c.Doors,
			Registries: c.Mirrors(), Logger: logger(c, "agent"), Tracer: tp.Tracer("drover"),
		})
	}
	return cmd
}

// hint tells this host's clients where the fleet is, in case the socket does not answer.
func hint(c *config.Config, node string, controllers []string) error {
	h := client.Hints{Node: node, Controllers: controllers}
	if dir := identity.AdminPKI(c.DataDir); identity.HasController(c.DataDir) {
		h.Identity = dir
	}
	b, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("encoding the hints for clients: %w", err)
	}
	if err := os.MkdirAll(c.RunDir, 0o755); err != nil {
		return fmt.Errorf("creating the run directory: %w", err)
	}
	return durable.WriteFile(filepath.Join(c.RunDir, client.HintsFile), b, 0o644)
}

// remote returns a sink that sends an agent's spans to whichever controller answers.
func remote(dir string, controllers []string) (*trace.Remote, error) {
	files, err := pki.LoadFiles(dir)
	if err != nil {
		return nil, fmt.Errorf("reading the agent's identity: %w", err)
	}
	conf := pki.PeerClientTLS(files, "http/1.1", pki.Kinds(pki.KindController))
	return &trace.Remote{HTTP: &http.Client{Transport: &http.Transport{DialTLSContext: dial.Dialer(conf, func() []string { return controllers }), MaxIdleConns: 1}, Timeout: 5 * time.Second},
		URL: func() string { return "https://controller" }}, nil
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Show this host's configuration, and where each value came from", Args: cli.NoArgs}
	f := addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := f.load(cmd)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 3, ' ', 0)
		_, _ = fmt.Fprintln(w, "KEY\tVALUE\tFROM")
		for _, k := range config.Keys {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", k.Name, k.Text(c), c.Origin(k.Name))
		}
		return w.Flush()
	}
	return cmd
}
