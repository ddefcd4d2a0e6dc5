package each

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	docker "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"github.com/drover/drover/cli/client"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// undoWithin bounds the removal of containers that are not started after all.
const undoWithin = 10 * time.Second

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
	ctx, stop := e.signals(cmd.Context(), all, proxy)
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
		code, err := e.follow(ctx, m.id, o, stdout, stderr)
		return outcome{m.node, code, err}
	})
}

// create makes docker's own command build its request, and sends it for every node. A
// node that fails does not keep the others from running.
func (e *each) create(cmd *cobra.Command, args []string, nodes []*dv1.NodeInfo) (all []made, o docker.ContainerCreateOptions, err error) {
	run := cmd.Flags().Lookup("name").Value.String()
	named := run != ""
	if !named {
		b := make([]byte, 6)
		_, _ = rand.Read(b) // never fails
		run = hex.EncodeToString(b)
	}
	ctx := cmd.Context()
	taken := false
	cmd.SetContext(client.Intercept(ctx, client.Calls{Create: func(_ context.Context, asked docker.ContainerCreateOptions) (docker.ContainerCreateResult, error) {
		o = asked
		config := *o.Config
		config.Labels = maps.Clone(config.Labels)
		if config.Labels == nil {
			config.Labels = map[string]string{}
		}
		config.Labels[labelRun] = run
		o.Config = &config
		all = make([]made, len(nodes))
		one := func(i int) error {
			mine := o
			if mine.Name = ""; named {
				mine.Name = fmt.Sprintf("%s-%d", run, i+1)
			}
			r, err := e.docker.Client().ContainerCreate(client.WithOn(ctx, "node=="+nodes[i].Id), mine)
			for _, w := range r.Warnings {
				e.say("node %s: %s", nodes[i].Name, w)
			}
			all[i] = made{nodes[i].Name, r.ID, err}
			return err
		}
		// The first one finds out whether the image exists: if not, docker's command pulls
		// it.
		if err := one(0); errdefs.IsNotFound(err) {
			return docker.ContainerCreateResult{}, err
		}
		slots := make(chan struct{}, atOnce)
		var making sync.WaitGroup
		for i := 1; i < len(nodes); i++ {
			slots <- struct{}{}
			making.Go(func() {
				defer func() { <-slots }()
				_ = one(i) // errors are kept in all
			})
		}
		making.Wait()
		taken = true
		return docker.ContainerCreateResult{}, errTaken
	}}))
	defer cmd.SetContext(ctx)
	if err = e.inner(cmd, args); taken {
		err = nil
	}
	return all, o, err
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

// signals forwards received signals to every container. Its context outlives the
// command's, which ends at the first interrupt; it ends at the third one. Without proxy
// it ends at the first one, and the containers keep running.
func (e *each) signals(ctx context.Context, all []made, proxy bool) (context.Context, func()) {
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
				}
				if !proxy || interrupts > 2 {
					cancel()
					return
				}
				forwarding.Go(func() { e.kill(ctx, all, s.(syscall.Signal)) })
			case <-ctx.Done():
				return
			}
		}
	})
	return ctx, func() {
		signal.Stop(came)
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
// start.
func (e *each) follow(ctx context.Context, id string, o docker.ContainerCreateOptions, stdout, stderr io.Writer) (code int, err error) {
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
