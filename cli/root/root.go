// Package root is the drover command: docker's own command tree for a fleet, without
// what a fleet doesn't have, and with what it adds. The commands themselves are
// docker's, or in the packages named after their nouns.
package root

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
	"github.com/docker/cli/cli/command"
	cliflags "github.com/docker/cli/cli/flags"
	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	otrace "go.opentelemetry.io/otel/trace"

	fleet "github.com/drover/drover/cli/client"
	"github.com/drover/drover/pkg/trace"
)

// app is one run of the program.
type app struct {
	version string
	session *fleet.Session
	docker  *command.DockerCli
	name    string       // of the command
	used    bool         // the command uses the fleet, even if it was never reached
	lost    func() error // why output is missing
	tp      *sdk.TracerProvider
	span    otrace.Span
}

func newApp(version string) *app {
	return &app{version: version, lost: func() error { return nil }, session: &fleet.Session{
		Warn: func(msg string) { _, _ = fmt.Fprintln(os.Stderr, "drover: "+msg) },
	}}
}

// gcPercent is the GOGC of a command: most end before the collection that they would
// otherwise begin, for which its start leaves enough garbage. Daemons set their own.
const gcPercent = 400

// Main runs the command and returns its exit code.
func Main(version string, args []string) int {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	for _, v := range []string{"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION"} {
		_ = os.Unsetenv(v) // meant for another engine
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT) //nolint:forbidigo // the program's root context
	defer stop()
	a := newApp(version)
	root, err := a.command(ctx, args)
	if err == nil {
		root.SetArgs(args)
		err = root.ExecuteContext(ctx)
	}
	err = a.outcome(err, ctx.Err() != nil)
	a.finish(ctx, err)
	if err == nil || errdefs.IsCanceled(err) && ctx.Err() != nil {
		return 0
	}
	if msg := a.session.Explain(err); msg != "" {
		_, _ = fmt.Fprintln(os.Stderr, msg)
	}
	return exitCode(err)
}

func exitCode(err error) int {
	var status cli.StatusError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status) && status.StatusCode != 0:
		return status.StatusCode
	}
	return 1
}

// outcome maps the error of a command to its exit status: failures of the fleet are 125,
// as with docker run, whatever the container's exit code.
func (a *app) outcome(err error, interrupted bool) error {
	var status cli.StatusError
	if !errors.As(err, &status) || status.Error() == "" { // no message of a refusal
		if lost := a.lost(); lost != nil && !interrupted {
			return cli.StatusError{Cause: err, StatusCode: 125, Status: "drover: " + lost.Error()}
		}
	}
	if err != nil && a.name == "run" && (fleet.Unreachable(err) || errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "unable to upgrade to tcp, received 5")) {
		return cli.StatusError{Cause: err, StatusCode: 125, Status: a.session.Explain(err)}
	}
	return err
}

// before runs ahead of every command: docker's own setup, and the operation's span.
func (a *app) before(cmd *cobra.Command, opts *cliflags.ClientOptions) error {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {})) // a lost trace is no failure of the command
	if !asksTheFleet(cmd) {
		return nil
	}
	a.name = cmd.Name()
	host := ""
	if len(opts.Hosts) > 0 {
		host = opts.Hosts[len(opts.Hosts)-1]
	}
	opts.Hosts, opts.TLS, opts.TLSVerify, opts.Context, opts.TLSOptions = nil, false, false, "", nil
	var err error
	if a.session.Target, err = fleet.Find(host); err != nil {
		return err
	}
	if a.session.On == nil {
		a.session.On = fleet.DefaultOn()
	}
	if traced(cmd) {
		if err := a.trace(cmd); err != nil {
			return err
		}
	}
	if a.name == "exec" {
		cmd.SetContext(fleet.Assume(cmd.Context()))
	}
	if err := a.docker.Initialize(opts, command.WithInitializeClient(func(*command.DockerCli) (client.APIClient, error) { return a.client() })); err != nil {
		return err
	}
	c := a.docker.ConfigFile()
	if c.PsFormat == "" {
		c.PsFormat = psFormat
	}
	if c.VolumesFormat == "" {
		c.VolumesFormat = volumesFormat
	}
	if c.ImagesFormat == "" {
		c.ImagesFormat = imagesFormat
	}
	return nil
}

// asksTheFleet reports whether a command uses the fleet, rather than only this host or
// this program.
func asksTheFleet(cmd *cobra.Command) bool {
	if _, is := cmd.Annotations[annotationAbsent]; is || !cmd.HasParent() {
		return false
	}
	switch cmd.Name() {
	case "up", "join", "controller", "recover", "snapshot", "agent", "config", "completion", "bash", "zsh", "fish", "powershell", "help":
		return false
	}
	return true
}

// complete is before for shell completions.
func (a *app) complete(opts *cliflags.ClientOptions) error {
	cmd := &cobra.Command{Use: "trace"}
	(&cobra.Command{Use: "drover"}).AddCommand(cmd)
	return a.before(cmd, opts)
}

func traced(cmd *cobra.Command) bool {
	switch cmd.Name() {
	case "trace", "doctor":
		return false
	}
	p := cmd.Parent()
	return p == nil || !slices.Contains([]string{"node", "token", "controller", "doctor"}, p.Name())
}

func (a *app) trace(cmd *cobra.Command) error {
	spans, err := a.session.Spans()
	if err != nil {
		return err
	}
	hostname, _ := os.Hostname()
	a.tp = trace.Provider("drover", hostname, spans)
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
	c, err := a.session.Docker(tp)
	if l, ok := c.(interface{ Lost() error }); ok {
		a.lost = l.Lost
	}
	return c, err
}

// finish sends the operation's spans, unless nobody answered anyway.
func (a *app) finish(ctx context.Context, err error) {
	if a.tp == nil {
		return
	}
	if err != nil {
		a.span.SetStatus(codes.Error, a.session.Explain(err))
	}
	a.span.End()
	if !a.used || err != nil && client.IsErrConnectionFailed(err) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = a.tp.Shutdown(ctx)
}
