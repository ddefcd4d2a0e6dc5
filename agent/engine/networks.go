package engine

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/resolver/resolverapi"
	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Fleet is what this node was told of the fleet's networks.
type Fleet interface {
	// Await blocks until the node carries traffic as it was told before the call.
	Await(ctx context.Context) error
	// Network returns one, nil if the node was not told of it.
	Network(id []byte) *dv1.Network
}

// Resolver answers containers' questions for names.
type Resolver interface {
	// Serve has it answer in a sandbox, and blocks until it does.
	Serve(ctx context.Context, s resolverapi.Sandbox) error
	Drop(id string)
}

// answersWithin bounds how long a start waits for the resolver. As docker does, it goes on
// without: names are answered as soon as there is one again.
const answersWithin = 3 * time.Second

// connection is what a container asks of one network.
type connection struct {
	network.Connection
	endpoint *dv1.Endpoint // nil: the node's own network
	of       *dv1.Network  // the endpoint's
}

// connections returns a container's, those first that docker would choose for the
// default route.
func (e *Engine) connections(s task.Spec, endpoints []*dv1.Endpoint) (all []connection, err error) {
	if spec.Bridged(s.Create) {
		all = append(all, connection{Connection: network.Connection{Network: network.Bridge}})
	}
	for _, x := range endpoints {
		c := connection{network.Connection{Network: hex.EncodeToString(x.NetworkId), MAC: x.Mac, Options: x.DriverOpts, GatewayPriority: int(x.GatewayPriority)}, x, e.o.Fleet.Network(x.NetworkId)}
		if c.of == nil {
			return nil, fmt.Errorf("connecting container %s to %x: this node was not told of the network", short(s.ID), x.NetworkId)
		}
		for _, a := range []string{x.Ip, x.Ip6} {
			if a == "" {
				continue
			}
			ip, err := netip.ParseAddr(a)
			if err != nil {
				return nil, fmt.Errorf("connecting container %s to %s: %w", short(s.ID), c.of.Name, err)
			}
			c.Addresses = append(c.Addresses, ip)
		}
		for _, a := range x.LinkLocal {
			ip, err := netip.ParseAddr(a)
			if err != nil {
				return nil, fmt.Errorf("connecting container %s to %s: %w", short(s.ID), c.of.Name, err)
			}
			c.LinkLocal = append(c.LinkLocal, ip)
		}
		all = append(all, c)
	}
	slices.SortStableFunc(all, func(a, b connection) int {
		return cmp.Or(cmp.Compare(b.GatewayPriority, a.GatewayPriority), cmp.Compare(a.inside(), b.inside()),
			cmp.Compare(len(b.Addresses), len(a.Addresses)), cmp.Compare(a.name(), b.name()))
	})
	return all, nil
}

// inside is 1 if a network leads nowhere else.
func (c connection) inside() int {
	if c.of.GetInternal() {
		return 1
	}
	return 0
}

func (c connection) name() string {
	if c.of == nil {
		return network.Bridge
	}
	return c.of.Name
}

// connect creates the sandbox of an attempt and the files that name it. nil: the
// container has no network of its own.
func (e *Engine) connect(ctx context.Context, s task.Spec, w *task.Wiring) (*network.Sandbox, error) {
	switch spec.NetworkOf(s.Create) {
	case spec.OwnNetwork:
	case spec.OtherNetwork:
		return nil, e.joinable(ctx, s)
	default:
		return nil, e.writeFiles(s, nil, nil)
	}
	if len(w.Endpoints) > 0 {
		if err := e.o.Fleet.Await(ctx); err != nil {
			return nil, err
		}
	}
	want, err := e.connections(s, w.Endpoints)
	if err != nil {
		return nil, err
	}
	if len(want) > 0 && want[0].inside() == 0 {
		want[0].Ports = w.Ports // docker's ports belong to the endpoint with the default route
	}
	to := make([]network.Connection, 0, len(want))
	for _, c := range want {
		to = append(to, c.Connection)
	}
	in, err := e.o.Network.Attach(ctx, s.ID, to)
	var pe *network.PortError
	if errors.As(err, &pe) {
		return nil, task.Refuse("driver failed programming external connectivity on endpoint %s (%s): %s", s.Name, short(s.ID), pe.Message)
	}
	if err != nil {
		return nil, err
	}
	if in, err = e.rewire(ctx, s.ID, in, want); err != nil { // what an interrupted try made
		return nil, err
	}
	if err := e.writeFiles(s, in, want); err != nil {
		return nil, err
	}
	return in, e.answer(ctx, s, in, want)
}

// disconnect releases what connect created.
func (e *Engine) disconnect(ctx context.Context, id string) error {
	if err := os.Remove(e.namesFile(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forgetting the names of %s: %w", short(id), err)
	}
	e.o.Resolver.Drop(id)
	return e.o.Network.Detach(ctx, id)
}

// Rewire implements task.Runtime.
func (e *Engine) Rewire(ctx context.Context, id string, endpoints []*dv1.Endpoint) error {
	s, err := e.readSpec(id)
	if err != nil {
		return err
	}
	was := e.o.Network.Get(id)
	if was == nil { // it has no network of its own, or does not run
		return nil
	}
	if len(endpoints) > 0 {
		if err := e.o.Fleet.Await(ctx); err != nil {
			return err
		}
	}
	want, err := e.connections(s.Spec, endpoints)
	if err != nil {
		return err
	}
	in, err := e.rewire(ctx, id, was, want)
	if err != nil {
		return err
	}
	if err := e.changeFiles(s.Spec, was, in, want); err != nil {
		return err
	}
	return e.answer(ctx, s.Spec, in, want)
}

// rewire brings a sandbox to its connections, except for the node's own network, which a
// container keeps. An endpoint that has become another one is replaced.
func (e *Engine) rewire(ctx context.Context, id string, in *network.Sandbox, want []connection) (*network.Sandbox, error) {
	wanted := map[string]connection{}
	for _, c := range want {
		wanted[c.Network] = c
	}
	there := map[string]bool{}
	for _, x := range in.Endpoints {
		c, ok := wanted[x.Network]
		if x.Network == network.Bridge || ok && c.is(x) {
			there[x.Network] = true
			continue
		}
		if err := e.o.Network.Disconnect(ctx, id, x.Network); err != nil {
			return nil, err
		}
	}
	for _, c := range want {
		if there[c.Network] {
			continue
		}
		if _, err := e.o.Network.Connect(ctx, id, c.Connection); err != nil {
			return nil, err
		}
	}
	if now := e.o.Network.Get(id); now != nil {
		return now, nil
	}
	return nil, fmt.Errorf("connecting container %s: %w", short(id), network.ErrNoSandbox)
}

// is reports whether an endpoint was made for c, all of it.
func (c connection) is(x network.Endpoint) bool {
	var has []netip.Addr
	for _, a := range x.Addresses {
		has = append(has, a.Addr())
	}
	return !x.Unfinished && slices.Equal(has, c.Addresses) && (c.MAC == "" || c.MAC == x.MAC)
}

// answer has the resolver answer in a sandbox that is in a network of the fleet, or was.
// What it is told is in a file for the next agent.
func (e *Engine) answer(ctx context.Context, s task.Spec, in *network.Sandbox, want []connection) error {
	if !inFleet(want) {
		if _, err := os.Stat(e.namesFile(s.ID)); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	c := e.sandboxNames(s, in, want)
	if err := e.writeNames(c); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	if err := e.o.Resolver.Serve(within, c); err != nil {
		e.o.Log.Error("names are not answered in a container", "task", short(s.ID), "err", err)
	}
	return ctx.Err()
}

// sandboxNames is what the resolver must know of a sandbox.
func (e *Engine) sandboxNames(s task.Spec, in *network.Sandbox, want []connection) resolverapi.Sandbox {
	c := resolverapi.Sandbox{ID: s.ID, Netns: in.Netns, NdotsSet: choosesNdots("/", s.Create.HostConfig)}
	if h := s.Create.HostConfig; h != nil {
		c.Servers = h.DNS
	}
	for _, x := range want {
		c.Outside = c.Outside || x.inside() == 0
		if x.endpoint != nil {
			c.Networks = append(c.Networks, resolverapi.Endpoint{Network: x.Network, Links: x.endpoint.Links})
		}
	}
	return c
}

// Answered returns the sandboxes in which names are to be answered, as of the last change.
func (e *Engine) Answered() (all []resolverapi.Sandbox, err error) {
	files, err := filepath.Glob(e.namesFile("*"))
	if err != nil {
		return nil, fmt.Errorf("looking for containers' names: %w", err)
	}
	for _, f := range files {
		var s savedNames
		if err := readJSON(f, &s); err != nil {
			e.o.Log.Warn("the names of a container are not answered until it is connected anew", "file", f, "err", err)
			continue
		}
		if s.Boot == e.boot {
			all = append(all, s.Sandbox)
		}
	}
	return all, nil
}
