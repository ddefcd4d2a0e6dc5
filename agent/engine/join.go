package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/task"
)

// join returns a container's request and sets its facts as they are with the network of
// the container that it shares that of, if any: its namespace and, as in docker, its
// hostname and its files.
func (e *Engine) join(ctx context.Context, s task.Spec, f *spec.Facts) (container.CreateRequest, error) {
	c := s.Create
	if spec.NetworkOf(c) != spec.OtherNetwork {
		return c, nil
	}
	other, err := e.joined(s)
	if err != nil {
		return c, err
	}
	f.Dir, f.Netns = e.o.dir(other.ID), e.o.Network.NetnsPath(other.ID)
	if pid := e.pid(ctx, other.ID); pid > 0 && spec.NetworkOf(other.Create) != spec.OwnNetwork {
		f.Netns = fmt.Sprintf("/proc/%d/ns/net", pid)
	}
	var conf container.Config
	if c.Config != nil {
		conf = *c.Config
	}
	conf.Hostname, conf.Domainname = spec.Hostname(other.Create, other.ID, e.o.HostName), ""
	if other.Create.Config != nil {
		conf.Domainname = other.Create.Domainname
	}
	c.Config = &conf
	return c, nil
}

// joined returns the container whose network another one shares.
func (e *Engine) joined(s task.Spec) (prepared, error) {
	named := spec.Joined(s.Create)
	other, err := e.readSpec(named)
	if errors.Is(err, task.ErrNotFound) || named == "" {
		other, err = e.called(named)
	}
	if err == nil && other.ID == s.ID {
		return other, task.Refuse("cannot join own network namespace")
	}
	return other, err
}

// called returns the container of this node with a name or the beginning of an id.
func (e *Engine) called(name string) (prepared, error) {
	dirs, err := os.ReadDir(e.o.tasks())
	if err != nil {
		return prepared{}, fmt.Errorf("looking for container %s: %w", name, err)
	}
	var found []prepared
	for _, d := range dirs {
		s, err := e.readSpec(d.Name())
		if err != nil {
			continue // it is being removed, or damaged
		}
		if s.Name == strings.TrimPrefix(name, "/") && name != "" {
			return s, nil
		}
		if strings.HasPrefix(s.ID, name) {
			found = append(found, s)
		}
	}
	if name == "" || len(found) != 1 {
		return prepared{}, task.Refuse("joining network namespace of container: No such container: %s", name)
	}
	return found[0], nil
}

// joinable refuses, in docker's words, to share the network of a container that does not
// run.
func (e *Engine) joinable(ctx context.Context, s task.Spec) error {
	other, err := e.joined(s)
	if err != nil {
		return err
	}
	if e.pid(ctx, other.ID) > 0 {
		return nil
	}
	state := "exited"
	if a, err := e.readAttempt(other.ID); err == nil && a.Number == 0 {
		state = "created"
	}
	return task.Refuse("cannot join network namespace of a non running container: container %s is %s", other.Name, state)
}

// pid returns that of a container's process, 0 if it does not run.
func (e *Engine) pid(ctx context.Context, id string) uint32 {
	p, err := e.process(e.ctx(ctx), id)
	if err != nil || p == nil || p.Status == tasktypes.Status_STOPPED || p.Status == tasktypes.Status_CREATED {
		return 0
	}
	return p.Pid
}
