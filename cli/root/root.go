// Package root is the drover command: docker's own command tree on a fleet, less
// what a fleet doesn't have, and what it has beyond.
package root

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/command/commands"
	cliflags "github.com/docker/cli/cli/flags"
	dockerversion "github.com/docker/cli/cli/version"
	"github.com/moby/moby/client"
	"github.com/moby/term"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	otrace "go.opentelemetry.io/otel/trace"

	fleet "github.com/drover/drover/cli/client"
	"github.com/drover/drover/cli/host"
	"github.com/drover/drover/pkg/trace"
)

// without are docker's commands that a fleet doesn't have.
var without = map[string]bool{
	"swarm": true, "stack": true, "service": true, "config": true, "secret": true, "plugin": true,
	"checkpoint": true, "builder": true, "buildx": true, "trust": true, "manifest": true, "context": true, "compose": true,
}

// psFormat is docker's table with the node.
const psFormat = `table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Label "io.drover.node"}}`

// imagesFormat is docker's classic table.
const imagesFormat = `table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{if .CreatedSince}}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}`

// app is one call of the program.
type app struct {
	version string
	host    string
	docker  *command.DockerCli
	target  fleet.Target
	name    string       // of the command
	used    bool         // the fleet was, or would have been, asked
	lost    func() error // why output is missing
	tp      *sdk.TracerProvider
	span    otrace.Span
}

// Main runs the command and gives its exit code.
func Main(version string, args []string) int {
	for _, v := range []string{"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION"} {
		_ = os.Unsetenv(v) // another engine's
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	a := &app{version: version, lost: func() error { return nil }}
	root, err := a.command(ctx, args)
	if err == nil {
		root.SetArgs(args)
		err = root.ExecuteContext(ctx)
	}
	err = a.outcome(err, ctx.Err() != nil)
	a.finish(err)
	if err == nil || errdefs.IsCanceled(err) && ctx.Err() != nil {
		return 0
	}
	if msg := a.words(err); msg != "" {
		_, _ = fmt.Fprintln(os.Stderr, msg)
	}
	var status cli.StatusError
	if errors.As(err, &status) && status.StatusCode != 0 {
		return status.StatusCode
	}
	return 1
}

// outcome is how a command ended that came back with err: the fleet's own failures
// are 125, as docker's run has it, whatever code the container had.
func (a *app) outcome(err error, interrupted bool) error {
	var status cli.StatusError
	if !errors.As(err, &status) || status.Error() == "" { // no words of a refusal
		if lost := a.lost(); lost != nil && !interrupted {
			return cli.StatusError{Cause: err, StatusCode: 125, Status: "drover: " + lost.Error()}
		}
	}
	if err != nil && a.name == "run" && (unreachable(err) || errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "unable to upgrade to tcp, received 5")) {
		return cli.StatusError{Cause: err, StatusCode: 125, Status: a.words(err)}
	}
	return err
}

func (a *app) command(ctx context.Context, args []string) (*cobra.Command, error) {
	stdin, stdout, stderr := term.StdStreams()
	out := stdout
	if shown(args) {
		out = &heading{w: stdout}
	}
	dc, err := command.NewDockerCli(command.WithBaseContext(ctx), command.WithInputStream(stdin), command.WithOutputStream(out), command.WithErrorStream(stderr),
		command.WithUserAgent("drover/"+a.version))
	if err != nil {
		return nil, fmt.Errorf("preparing the commands: %w", err)
	}
	a.docker = dc
	dockerversion.Version = a.version
	root := &cobra.Command{
		Use: "drover [OPTIONS] COMMAND [ARG...]", Short: "The whole fleet as one Docker Engine", Long: "The whole fleet as one Docker Engine",
		SilenceUsage: true, SilenceErrors: true, TraverseChildren: true, DisableFlagsInUseLine: true, SuggestionsMinimumDistance: 2,
	}
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return unknown(cmd, args[0])
	}
	root.Args = cobra.ArbitraryArgs
	root.SetIn(dc.In())
	root.SetOut(dc.Out())
	root.SetErr(dc.Err())
	opts, _ := cli.SetupRootCommand(root)
	for _, f := range []string{"config", "context", "tls", "tlscacert", "tlscert", "tlskey", "tlsverify", "log-level", "debug"} {
		if fl := root.Flags().Lookup(f); fl != nil {
			fl.Hidden = true
		}
	}
	if fl := root.Flags().Lookup("host"); fl != nil {
		fl.Usage = "Where the fleet answers: unix://PATH or tcp://HOST:PORT (" + fleet.EnvHost + ")"
	}
	root.Annotations = map[string]string{}
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return a.before(cmd, opts) }
	commands.AddCommands(root, dc)
	for _, c := range root.Commands() {
		if c.Name() == "node" { // Swarm's
			root.RemoveCommand(c)
		}
		if without[c.Name()] {
			root.RemoveCommand(c)
		}
	}
	for _, c := range host.Commands(a.version) {
		if c.Name() == "controller" {
			c.AddCommand(a.controllerCommands()...)
		}
		root.AddCommand(c)
	}
	root.AddCommand(a.nodeCommand(), a.tokenCommand())
	a.spread(root)
	root.AddCommand(a.traceCommand())
	visit(root, rename)
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		// Completions run without what comes ahead of commands, and ask the fleet too.
		return root, a.complete(opts)
	}
	return root, nil
}

// before is done ahead of every command: docker's own setup, and the operation's span.
func (a *app) before(cmd *cobra.Command, opts *cliflags.ClientOptions) error {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {})) // a trace that is lost is no failure of the command
	if !cmd.HasParent() {
		return nil
	}
	switch cmd.Name() {
	case "up", "join", "controller", "recover", "snapshot", "agent", "config", "completion", "bash", "zsh", "fish", "powershell", "help":
		return nil
	}
	a.name = cmd.Name()
	if len(opts.Hosts) > 0 {
		a.host = opts.Hosts[len(opts.Hosts)-1]
	}
	opts.Hosts, opts.TLS, opts.TLSVerify, opts.Context, opts.TLSOptions = nil, false, false, "", nil
	var err error
	if a.target, err = fleet.Find(a.host); err != nil {
		return err
	}
	if traced(cmd) {
		if err := a.trace(cmd); err != nil {
			return err
		}
	}
	if err := a.docker.Initialize(opts, command.WithInitializeClient(func(*command.DockerCli) (client.APIClient, error) { return a.client() })); err != nil {
		return err
	}
	c := a.docker.ConfigFile()
	if c.PsFormat == "" {
		c.PsFormat = psFormat
	}
	if c.ImagesFormat == "" {
		c.ImagesFormat = imagesFormat
	}
	return nil
}

// complete is before, for completions.
func (a *app) complete(opts *cliflags.ClientOptions) error {
	cmd := &cobra.Command{Use: "trace"}
	(&cobra.Command{Use: "drover"}).AddCommand(cmd)
	return a.before(cmd, opts)
}

func traced(cmd *cobra.Command) bool {
	switch cmd.Name() {
	case "trace":
		return false
	}
	p := cmd.Parent()
	return p == nil || p.Name() != "node" && p.Name() != "token" && p.Name() != "controller"
}

func (a *app) trace(cmd *cobra.Command) error {
	h, err := a.target.HTTP()
	if err != nil {
		return err
	}
	hostname, _ := os.Hostname()
	a.tp = trace.Provider("drover", hostname, &trace.Remote{HTTP: h, URL: func() string { return "http://drover" }})
	ctx, span := a.tp.Tracer("drover").Start(cmd.Context(), strings.Join(strings.Fields(cmd.CommandPath()), " "))
	a.span = span
	cmd.SetContext(ctx)
	return nil
}

func (a *app) client() (client.APIClient, error) {
	a.used = true
	var tp otrace.TracerProvider = sdk.NewTracerProvider(sdk.WithSampler(sdk.NeverSample()))
	if a.tp != nil {
		tp = a.tp
	}
	c, err := a.target.Docker(tp)
	if l, ok := c.(interface{ Lost() error }); ok {
		a.lost = l.Lost
	}
	return c, err
}

// finish sends the operation's spans, unless nobody answered anyway.
func (a *app) finish(err error) {
	if a.tp == nil {
		return
	}
	if err != nil {
		a.span.SetStatus(codes.Error, a.words(err))
	}
	a.span.End()
	if !a.used || err != nil && client.IsErrConnectionFailed(err) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = a.tp.Shutdown(ctx)
}

// words are an error's, as drover says them.
func (a *app) words(err error) string {
	if err == nil {
		return ""
	}
	msg := err.Error()
	if unreachable(err) {
		return fmt.Sprintf("drover: nothing answers at %s: start it there (drover up), or name another host with -H or %s", a.target.Host, fleet.EnvHost)
	}
	return reword(msg)
}

func unreachable(err error) bool {
	msg := err.Error()
	return client.IsErrConnectionFailed(err) || strings.Contains(msg, "Cannot connect to the Docker daemon") || strings.Contains(msg, "cannot connect to the Docker daemon")
}

var rewording = strings.NewReplacer("docker: Error response from daemon: ", "drover: ", "docker: ", "drover: ", "'docker ", "'drover ", "Docker daemon", "drover", "Error response from daemon: ", "Error: ", "'docker login'", "'drover login'")

func reword(s string) string { return rewording.Replace(s) }

// unknown names the commands that were perhaps meant.
func unknown(cmd *cobra.Command, arg string) error {
	msg := fmt.Sprintf("drover: unknown command: drover %s", arg)
	if without[arg] {
		return fmt.Errorf("drover: docker's %s commands are not there on a fleet\n\nRun 'drover --help' for what is", arg)
	}
	if near := cmd.SuggestionsFor(arg); len(near) > 0 {
		msg += "\n\nDid you mean this?\n\t" + strings.Join(near, "\n\t")
	}
	return fmt.Errorf("%s\n\nRun 'drover --help' for more information", msg)
}

func visit(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		visit(sub, f)
	}
}

// rename makes docker's help speak of drover.
func rename(c *cobra.Command) {
	words := strings.NewReplacer("Dockerfile", "Dockerfile", "Docker Hub", "Docker Hub", "Docker Engine", "Docker Engine", "Docker daemon", "fleet", "the Docker CLI", "drover", "Docker", "drover", "docker ", "drover ")
	c.Short, c.Long, c.Example = words.Replace(c.Short), words.Replace(c.Long), words.Replace(c.Example)
	if a, ok := c.Annotations["aliases"]; ok {
		c.Annotations["aliases"] = words.Replace(a)
	}
}

// shown says whether args are a ps whose table is ours.
func shown(args []string) bool {
	ps := false
	for i, x := range args {
		switch {
		case x == "ps" && (i == 0 || !strings.HasPrefix(args[i-1], "-")), (x == "ls" || x == "list") && i > 0 && args[i-1] == "container":
			ps = true
		case x == "--format" || strings.HasPrefix(x, "--format="), x == "--quiet", x == "exec" || x == "run":
			return false
		}
	}
	return ps
}

// heading puts the last word of the first line into capitals, as the others are:
// docker's formatter takes a label's heading as it is written.
type heading struct {
	w    io.Writer
	line []byte // the first one, until it is whole
	done bool
}

func (h *heading) Write(p []byte) (int, error) {
	if h.done {
		return h.w.Write(p)
	}
	h.line = append(h.line, p...)
	first, rest, whole := strings.Cut(string(h.line), "\n")
	if !whole {
		return len(p), nil
	}
	h.done = true
	if title, is := strings.CutSuffix(strings.TrimRight(first, " "), "node"); is {
		first = title + "NODE"
	}
	if _, err := io.WriteString(h.w, first+"\n"+rest); err != nil {
		return 0, err
	}
	return len(p), nil
}
