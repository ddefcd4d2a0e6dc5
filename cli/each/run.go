package each

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/docker/cli/cli"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	docker "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
)

// undoWithin bounds the removal of containers that are not started after all.
const undoWithin = 10 * time.Second

// errUnstarted reports that an interrupt came before a container's start.
var errUnstarted = errors.New("interrupted before it was started")

// made is a container on a node, or the reason why there is none.
type made struct {
	node string
	id   string
	err  error
}

// run creates a container on every node, then attaches to, starts and waits for all of
// them.
func (e *each) run(cmd *cobra.Command, args []string) error {
	nodes, err := e.nodes(cmd.Context())
	if err != nil {
		return err
	}
	all, o, err := e.create(cmd, args, nodes)
	if err != nil {
		return err
	}
	if cmd.Context().Err() != nil {
		e.undo(cmd.Context(), all)
		return cmd.Context().Err()
	}
	proxy := cmd.Flags().Lookup("sig-proxy").Value.String() == "true"
	ctx, starting, stop := e.signals(cmd.Context(), all, proxy)
	defer stop()
	out := newFolder(e.docker.Out(), e.docker.Err(), names(all, func(m made) string { return m.node }))
	defer out.close()
	return e.all(len(all), func(i int) outcome {
		m := all[i]
		if m.err != nil {
			return outcome{m.node, 125, m.err}
		}
		stdout, stderr := out.writer(i, false), out.writer(i, true)
		defer func() { _, _ = stdout.Close(), stderr.Close() }()
		code, err := e.follow(ctx, starting, m.id, o, stdout, stderr)
		if errors.Is(err, errUnstarted) {
			e.undo(ctx, all[i:i+1])
			return outcome{node: m.node, code: 130}
		}
		return outcome{m.node, code, err}
	})
}

// create makes docker's own command build its request, and has the fleet create a run
// over the nodes from it. A node that can't take part does not keep the others from
// running.
func (e *each) create(cmd *cobra.Command, args []string, nodes []*dv1.NodeInfo) (all []made, o docker.ContainerCreateOptions, err error) {
	name := cmd.Flags().Lookup("name").Value.String()
	ctx := cmd.Context()
	taken := false
	var failed error
	cmd.SetContext(client.Intercept(ctx, client.Calls{Create: func(_ context.Context, asked docker.ContainerCreateOptions) (docker.ContainerCreateResult, error) {
		o = asked
		r, err := e.createRun(ctx, name, o)
		if wire.KindOf(err) == dv1.Error_NO_IMAGE { // docker's command pulls it then
			return docker.ContainerCreateResult{}, errdefs.ErrNotFound.WithMessage(reason(e.s.Explain(err)))
		}
		if err != nil {
			failed = cli.StatusError{StatusCode: 125, Status: e.s.Explain(err)}
		}
		all, taken = outcomes(r, nodes), true
		for _, w := range r.GetWarnings() {
			e.say("%s", w)
		}
		return docker.ContainerCreateResult{}, errTaken
	}}))
	defer cmd.SetContext(ctx)
	if err = e.inner(cmd, args); taken {
		err = failed
	}
	return all, o, err
}

// createRun asks for a run of docker's request. Once it is asked for, an interrupt
// waits for the answer: without, nobody knew what to undo.
func (e *each) createRun(ctx context.Context, name string, o docker.ContainerCreateOptions) (*dv1.CreateRunResponse, error) {
	api, err := e.s.API()
	if err != nil {
		return nil, err
	}
	config := *o.Config
	config.Labels = maps.Clone(config.Labels)
	if config.Labels == nil {
		config.Labels = map[string]string{}
	}
	config.Labels[labelRun] = name
	if name == "" {
		b := make([]byte, 6)
		_, _ = rand.Read(b) // never fails
		config.Labels[labelRun] = hex.EncodeToString(b)
	}
	body, err := json.Marshal(container.CreateRequest{Config: &config, HostConfig: o.HostConfig, NetworkingConfig: o.NetworkingConfig})
	if err != nil {
		return nil, fmt.Errorf("encoding the request: %w", err)
	}
	asked := &dv1.CreateRunRequest{Body: body, Name: name, Mode: dv1.Run_EACH, On: e.constraints()}
	if o.Platform != nil {
		asked.Platform = platforms.Format(*o.Platform)
	}
	ctx, cancel := outlast(ctx, undoWithin)
	defer cancel()
	resp, err := api.Runs.Create(ctx, connect.NewRequest(asked))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// outlast returns a context that ends a while after ctx does.
func outlast(ctx context.Context, while time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(while, cancel) })
	return longer, func() { stop(); cancel() }
}

// outcomes are what a run made, and which of the nodes were passed over, by name.
func outcomes(r *dv1.CreateRunResponse, nodes []*dv1.NodeInfo) (all []made) {
	has := map[string]bool{}
	for _, t := range r.GetTasks() {
		has[t.NodeId] = true
		all = append(all, made{node: t.NodeName, id: t.Id})
	}
	for _, n := range nodes {
		if !has[n.Id] {
			all = append(all, made{node: n.Name, err: passedOver(r)})
		}
	}
	slices.SortFunc(all, func(a, b made) int { return strings.Compare(a.node, b.node) })
	return all
}

// passedOver is why nodes have no container of a run. Which of them lacks what, the
// fleet counts only.
func passedOver(r *dv1.CreateRunResponse) error {
	var why []string
	total := len(r.GetTasks())
	for _, p := range r.GetPassedOver() {
		total += int(p.Nodes)
		why = append(why, fmt.Sprintf("%d %s", p.Nodes, p.Why))
	}
	if len(why) == 0 {
		return errors.New("no container was made here")
	}
	return fmt.Errorf("%d of %d nodes fit: %s", len(r.GetTasks()), total, strings.Join(why, ", "))
}

// undo removes containers that were not started.
func (e *each) undo(ctx context.Context, all []made) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	_ = e.all(len(all), func(i int) outcome {
		if all[i].id != "" {
			_, _ = e.docker.Client().ContainerRemove(ctx, all[i].id, docker.ContainerRemoveOptions{Force: true}) // best effort
		}
		return outcome{}
	})
}

// signals forwards received signals to every container. Its first context outlives the
// command's, which ends at the first interrupt; it ends at the third one. Without proxy
// it ends at the first one, and the containers keep running. The second context ends
// before the first interrupt is forwarded.
func (e *each) signals(ctx context.Context, all []made, proxy bool) (following, starting context.Context, stop func()) {
	starting, halt := context.WithCancel(ctx)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	came := make(chan os.Signal, 8)
	signal.Notify(came, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	var forwarding sync.WaitGroup
	forwarding.Go(func() {
		interrupts := 0
		for {
			select {
			case s := <-came:
				if s == syscall.SIGINT || s == syscall.SIGTERM {
					interrupts++
					halt()
				}
				if !proxy || interrupts > 2 {
					halt()
					cancel()
					return
				}
				forwarding.Go(func() { e.kill(ctx, all, s.(syscall.Signal)) })
			case <-ctx.Done():
				return
			}
		}
	})
	return ctx, starting, func() {
		signal.Stop(came)
		halt()
		cancel()
		forwarding.Wait()
	}
}

func (e *each) kill(ctx context.Context, all []made, s syscall.Signal) {
	var sending sync.WaitGroup
	for _, m := range all {
		if m.id != "" {
			sending.Go(func() {
				// One that has ended meanwhile needs no signal.
				_, _ = e.docker.Client().ContainerKill(ctx, m.id, docker.ContainerKillOptions{Signal: fmt.Sprint(int(s))})
			})
		}
	}
	sending.Wait()
}

// follow does what docker's run does with a container: attach, wait, start, and copy the
// output until the end. It returns the container's exit code, or docker's for a failed
// start. Once starting ends, it starts nothing, and returns errUnstarted.
func (e *each) follow(ctx, starting context.Context, id string, o docker.ContainerCreateOptions, stdout, stderr io.Writer) (code int, err error) {
	if starting.Err() != nil {
		return 0, errUnstarted
	}
	c := e.docker.Client()
	attached := o.Config.AttachStdout || o.Config.AttachStderr
	copied := make(chan struct{})
	var lost error // after copying
	if attached {
		a, err := c.ContainerAttach(ctx, id, docker.ContainerAttachOptions{Stream: true, Stdout: o.Config.AttachStdout, Stderr: o.Config.AttachStderr})
		if err != nil {
			return 125, err
		}
		defer func() { a.Close(); <-copied }()
		go func() {
			defer close(copied)
			_, lost = stdcopy.StdCopy(stdout, stderr, a.Reader)
		}()
	}
	until := container.WaitConditionNextExit
	if o.HostConfig != nil && o.HostConfig.AutoRemove {
		until = container.WaitConditionRemoved
	}
	var wait docker.ContainerWaitResult
	if attached {
		wait = c.ContainerWait(ctx, id, docker.ContainerWaitOptions{Condition: until})
	}
	if starting.Err() != nil { // no signal reached it yet
		return 0, errUnstarted
	}
	if _, err := c.ContainerStart(ctx, id, docker.ContainerStartOptions{}); err != nil {
		return startCode(err), err
	}
	if !attached {
		_, _ = fmt.Fprintln(stdout, id)
		return 0, nil
	}
	select {
	case r := <-wait.Result:
		if r.Error != nil {
			return 125, errors.New(r.Error.Message)
		}
		code = int(r.StatusCode)
	case err := <-wait.Error:
		return 125, err
	case <-ctx.Done():
		return 130, nil
	}
	select {
	case <-copied:
		return code, lost
	case <-ctx.Done():
		return 130, nil
	}
}

// startCode returns docker's exit code for a failed start.
func startCode(err error) int {
	msg := err.Error()
	for _, c := range []struct {
		words string
		code  int
	}{
		{"executable file not found", 127}, {"no such file or directory", 127},
		{syscall.EACCES.Error(), 126}, {syscall.EISDIR.Error(), 126},
	} {
		if strings.Contains(msg, c.words) {
			return c.code
		}
	}
	return 125
}
