package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/resolver"
	"github.com/drover/drover/agent/resolver/resolverapi"
	"github.com/drover/drover/agent/topology"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// fabric brings the node's network to what the node was told, at each change, and has
// the engine wait for that. It implements engine.Fleet and streams.Network.
type fabric struct {
	top  *topology.Topology
	self string
	shut bool // the node is no door
	net  interface {
		Apply(ctx context.Context, t network.Topology) error
		Check(ctx context.Context) ([]string, error)
		Ways(ctx context.Context) ([]network.Way, error)
	}
	log *slog.Logger

	mu      sync.Mutex // guards the fields below
	applied uint64     // version of the topology
	done    chan struct{}
}

// openNetwork opens the node's network as it was told before, and prepares what follows
// changes: neither runs yet. It must be called with a.mu held.
func (a *agent) openNetwork(ctx context.Context, subnet netip.Prefix) error {
	top := a.store.Topology()
	told, _, _, err := top.Fabric(a.NodeID)
	if err != nil {
		a.Logger.Error("part of what this node was told of the fleet's networks is unusable", "err", err)
	}
	if a.NoDoors {
		told.Doors = nil
	}
	a.net, err = network.Open(ctx, network.Options{
		Dir: filepath.Join(a.DataDir, "network"), NetnsDir: filepath.Join(a.RunDir, "netns"),
		Bridge: a.Bridge, Subnet: subnet, Reserved: a.Reserved, Topology: told, Log: a.Logger,
	})
	if err != nil {
		return fmt.Errorf("opening the node's network: %w", err)
	}
	a.fabric = &fabric{top: top, self: a.NodeID, shut: a.NoDoors, net: a.net, log: a.Logger, done: make(chan struct{})}
	a.names = resolver.New(resolver.Options{
		Binary: a.paths.Resolver, Dir: filepath.Join(a.RunDir, "resolver"), LogTo: a.namesLog,
		Node: a.NodeID, Names: top, Log: a.Logger,
	})
	pass(top, a.names)
	return nil
}

// Pauses before what failed is applied again.
const (
	fabricPause    = 500 * time.Millisecond
	maxFabricPause = 30 * time.Second
)

// run returns when ctx ends.
func (f *fabric) run(ctx context.Context) error {
	said, pause := "", fabricPause
	for {
		t, version, newer, err := f.top.Fabric(f.self)
		if err != nil && err.Error() != said {
			said = err.Error()
			f.log.Error("part of what this node was told of the fleet's networks is unusable", "err", err)
		}
		if f.shut {
			t.Doors = nil // told when it was one
		}
		again := time.NewTimer(time.Hour)
		again.Stop()
		if err := f.net.Apply(ctx, t); err != nil && ctx.Err() == nil {
			f.log.Error("the node's network is not as it should be; it is retried", "err", err, "in", pause)
			again.Reset(pause)
			pause = min(2*pause, maxFabricPause)
		} else {
			pause = fabricPause
		}
		// Also after an error: one network's must not stop containers of others, and who
		// needs what is missing is told.
		f.mark(version)
		select {
		case <-newer:
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return ctx.Err()
		}
		again.Stop()
	}
}

func (f *fabric) mark(version uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if version > f.applied {
		f.applied = version
		close(f.done)
		f.done = make(chan struct{})
	}
}

// Await implements engine.Fleet.
func (f *fabric) Await(ctx context.Context) error {
	version := f.top.Version()
	for {
		f.mu.Lock()
		enough, done := f.applied >= version, f.done
		f.mu.Unlock()
		if enough {
			return nil
		}
		select {
		case <-done:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the node's network: %w", ctx.Err())
		}
	}
}

// Network implements engine.Fleet.
func (f *fabric) Network(id []byte) *dv1.Network { return f.top.Network(id) }

// Check implements streams.Network. It looks once all that the node was told so far is in
// place.
func (f *fabric) Check(ctx context.Context) (out bulk.NetworkCheck, err error) {
	if err := f.Await(ctx); err != nil {
		return out, err
	}
	if out.Differences, err = f.net.Check(ctx); err != nil {
		return out, err
	}
	if _, _, _, err := f.top.Fabric(f.self); err != nil {
		out.Differences = append(out.Differences, "part of what the node was told is unusable: "+strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	out.Peers, out.Networks, err = f.top.Told()
	return out, err
}

// Ways implements streams.Network.
func (f *fabric) Ways(ctx context.Context) ([]bulk.Way, error) {
	all, err := f.net.Ways(ctx)
	out := make([]bulk.Way, 0, len(all))
	for _, w := range all {
		out = append(out, bulk.Way{Node: w.Peer, Link: w.Link, Direct: w.Direct, MTU: w.MTU, RTT: w.RTT})
	}
	return out, err
}

// pass has a resolver follow the topology.
func pass(top *topology.Topology, to *resolver.Resolver) {
	top.Watch(func(c topology.Change) {
		networks := make([]resolverapi.Network, 0, len(c.Networks))
		for _, n := range c.Networks {
			networks = append(networks, topology.NetworkName(n))
		}
		names := make([]resolverapi.Name, 0, len(c.Names))
		for _, n := range c.Names {
			names = append(names, topology.Name(n))
		}
		to.Changed(c.Gone, networks, names)
	})
}
