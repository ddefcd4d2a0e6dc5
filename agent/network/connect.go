package network

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/drover/drover/agent/network/routes"
)

// Connect adds an endpoint to the sandbox of container id, which may run, and returns the
// sandbox as it is then. One that is connected to that network already stays as it is.
func (n *Network) Connect(ctx context.Context, id string, c Connection) (*Sandbox, error) {
	before := n.Get(id)
	if before == nil {
		return nil, fmt.Errorf("connecting container %s to %s: %w", short(id), c.Network, ErrNoSandbox)
	}
	if e := before.in(c.Network); e != nil {
		if !e.Unfinished {
			return before, ctx.Err()
		}
		if err := n.remove(before, c.Network); err != nil {
			return nil, fmt.Errorf("connecting container %s to %s: removing what is left of the last try: %w", short(id), c.Network, err)
		}
		before = n.Get(id)
	}
	if len(c.Ports) > 0 {
		return nil, fmt.Errorf("connecting container %s to %s: ports are published when it starts", short(id), c.Network)
	}
	if err := check([]Connection{c}); err != nil {
		return nil, fmt.Errorf("connecting container %s: %w", short(id), err)
	}
	mtu := n.fabric.mtu(n.fleet(c.Network))
	n.mu.Lock()
	e, err := n.endpoint(id, c, before.Endpoints)
	e.MTU, e.Unfinished = mtu, true
	n.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("connecting container %s to %s: %w", short(id), c.Network, err)
	}
	after := *before
	after.Endpoints = append(slices.Clone(before.Endpoints), e)
	finished, err := n.replace(before, &after)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connecting container %s to %s: %w", short(id), c.Network, err), n.remove(&after, c.Network))
	}
	return finished, ctx.Err()
}

// Disconnect removes an endpoint, with its published ports and connections. One that is
// missing is no error.
func (n *Network) Disconnect(ctx context.Context, id, network string) error {
	s := n.Get(id)
	if s == nil || s.in(network) == nil {
		return ctx.Err()
	}
	if err := n.remove(s, network); err != nil {
		return fmt.Errorf("disconnecting container %s from %s: %w", short(id), network, err)
	}
	return ctx.Err()
}

// ErrNoSandbox reports that a container has no sandbox.
var ErrNoSandbox = errors.New("it has no network of its own")

// replace makes a sandbox out of another one, with the last endpoint as a new one. The
// file is first, so that nothing is left that no file names.
func (n *Network) replace(before, after *Sandbox) (finished *Sandbox, err error) {
	if err := n.keep(after); err != nil {
		return nil, err
	}
	if err := n.nft.publish(after); err != nil {
		return nil, err
	}
	if err := relink(before, after, n.o); err != nil {
		return nil, err
	}
	finished = after.with(after.Endpoints[len(after.Endpoints)-1].Network, false)
	return finished, n.keep(finished)
}

// remove takes an endpoint out of a sandbox.
func (n *Network) remove(s *Sandbox, network string) error {
	gone := *s.in(network)
	if err := n.keep(s.with(network, true)); err != nil {
		return err
	}
	after := *s
	after.Endpoints = slices.DeleteFunc(slices.Clone(s.Endpoints), func(e Endpoint) bool { return e.Network == network })
	err := errors.Join(routes.RemoveLink(gone.Link), n.nft.publish(&after), reroute(&after))
	if err != nil {
		return err
	}
	n.release(s.ID, gone)
	if ferr := forgetAddresses(&Sandbox{Endpoints: []Endpoint{gone}}); ferr != nil {
		n.o.Log.Warn("senders may not reach whoever has a container's address next", "task", short(s.ID), "err", ferr)
	}
	return n.keep(&after)
}

// with returns a copy whose endpoint in a network is unfinished, or is not.
func (s *Sandbox) with(network string, unfinished bool) *Sandbox {
	out := *s
	out.Endpoints = slices.Clone(s.Endpoints)
	out.in(network).Unfinished = unfinished
	return &out
}

// release frees what an endpoint had.
func (n *Network) release(id string, e Endpoint) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.free(&Sandbox{Endpoints: []Endpoint{e}})
	n.held[id] = slices.DeleteFunc(n.held[id], func(h *holder) bool {
		if !slices.Contains(e.Ports, h.port) {
			return false
		}
		_ = h.Close()
		return true
	})
}

// keep replaces a sandbox by a changed copy, in its file too.
func (n *Network) keep(s *Sandbox) error {
	n.mu.Lock()
	n.sandboxes[s.ID] = s
	n.mu.Unlock()
	return n.save(s)
}

func (n *Network) fleet(id string) Fleet {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nets[id]
}

// relink creates the endpoints that are new in after.
func relink(before, after *Sandbox, o Options) error {
	return inNamespace(after, func(s *inside) error {
		for _, e := range after.Endpoints {
			if before.in(e.Network) != nil {
				continue
			}
			if err := s.plug(e, o); err != nil {
				return fmt.Errorf("connecting %s: %w", after.Netns, err)
			}
		}
		return s.routes(after)
	})
}

// reroute gives the default routes to the endpoints that have them now.
func reroute(s *Sandbox) error {
	err := inNamespace(s, func(in *inside) error { return in.routes(s) })
	if errors.Is(err, errNoNamespace) {
		return nil // a stopped container's
	}
	return err
}
