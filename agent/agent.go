// Package agent runs a host's agent: it starts containerd, the network, the engine and
// the reconciler, keeps a session with the control plane, and serves the node's own
// port. Containers and their shims outlive it.
package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/client"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/errgroup"

	"github.com/drover/drover/agent/containerd"
	"github.com/drover/drover/agent/engine"
	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/images/peers"
	"github.com/drover/drover/agent/images/registry"
	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/payload"
	"github.com/drover/drover/agent/resolver"
	"github.com/drover/drover/agent/session"
	"github.com/drover/drover/agent/socketproxy"
	"github.com/drover/drover/agent/streams"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/volume"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/logfile"
	"github.com/drover/drover/pkg/mux"
	"github.com/drover/drover/pkg/pki"
	upstream "github.com/drover/drover/pkg/registry"
)

// DefaultListen is the agent's own port on every address.
const DefaultListen = "0.0.0.0:7444"

// Config configures Run. DataDir, RunDir, NodeID, PKI and Advertise are required.
type Config struct {
	DataDir, RunDir string
	NodeID, Name    string
	ClusterID       string
	Version         string               // of drover, shown to people
	Controllers     []string             // host:port
	Preferred       string               // the one of Controllers that is on this host; "" for none
	SaveControllers func([]string) error // keeps them for the next start; nil: they are not kept
	PKI             string               // directory of the node's identity
	Listen          string               // host:port; "" is DefaultListen
	Advertise       string               // host that controllers dial; its port is the one listened on
	Socket          string               // for clients of a host without a controller; "" for none
	Bridge          string               // "" is drover0
	Gossip          string               // host:port; "" for none
	Mirror          string               // loopback host:port; "" for none
	Labels          map[string]string
	Spares          int      // shims that wait for a container; 0 for none
	Reserved        []uint16 // host ports that containers can't publish
	NoDoors         bool     // ports of other nodes' containers don't answer here
	Registries      []upstream.Mirror
	Logger          *slog.Logger // nil: none
	Tracer          trace.Tracer // nil: none
}

type agent struct {
	Config
	files  *pki.Files
	store  *task.Store
	reg    *upstream.Registry
	paths  payload.Paths
	box    session.Outbox
	status session.Status
	addr   string // host:port of our own port
	parts  *errgroup.Group
	ctx    context.Context // of parts
	alive  chan struct{}   // closed when containerd has answered once

	fleet *fleet
	peers *peers.Peers
	known atomic.Pointer[dv1.Welcome] // as of the last welcome or update

	stored atomic.Pointer[images.Store] // nil until the store is open

	namesLog string // of the resolver

	port *mux.Mux
	bulk net.Listener // of port

	mu     sync.Mutex // guards what is opened once the subnet is known
	up     bool
	daemon *client.Client
	net    *network.Network
	fabric *fabric
	names  *resolver.Resolver
	eng    *engine.Engine
	images *reporting
	rec    *task.Reconciler
}

// Run runs an agent until ctx ends, and then returns nil, or until it fails. Containers
// keep running in both cases.
func Run(ctx context.Context, c Config) error {
	a, err := load(c)
	if err != nil {
		return err
	}
	unlock, err := durable.Lock(filepath.Join(c.DataDir, "agent"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := mountBelow(filepath.Join(c.RunDir, "mounts"), a.Logger); err != nil {
		return err
	}
	if a.store, err = task.OpenStore(filepath.Join(c.DataDir, "agent", "tasks.db")); err != nil {
		return err
	}
	defer func() { _ = a.store.Close() }()
	err = a.run(ctx)
	a.close()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func load(c Config) (*agent, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if c.Bridge == "" {
		c.Bridge = "drover0"
	}
	a := &agent{Config: c, alive: make(chan struct{}), fleet: openFleet(filepath.Join(c.DataDir, "agent"), c.Logger)}
	var err error
	if a.files, err = pki.LoadFiles(c.PKI); err != nil {
		return nil, fmt.Errorf("this host has no agent's identity, or a damaged one: %w", err)
	}
	if a.reg, err = upstream.New(c.Registries); err != nil {
		return nil, fmt.Errorf("configuring registries: %w", err)
	}
	if a.paths, err = payload.Extract(filepath.Join(c.DataDir, "bin")); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *agent) run(ctx context.Context) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.Listen)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", a.Listen, err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return errors.Join(err, l.Close())
	}
	a.addr = net.JoinHostPort(a.Advertise, port)
	a.port = mux.New(l, a.Logger)
	a.bulk = a.listen(a.port)
	a.parts, a.ctx = errgroup.WithContext(ctx)
	a.peers = a.openPeers()
	a.parts.Go(func() error { return ended(a.ctx, "the port "+a.addr, a.port.Run(a.ctx)) })
	a.parts.Go(func() error { return serveStatus(a.ctx, a.RunDir, a.alive, &a.status) })
	if a.Socket != "" {
		a.parts.Go(func() error {
			return socketproxy.Run(a.ctx, socketproxy.Options{Path: a.Socket, Controllers: a.controllers, Log: a.Logger,
				Conns: &a.fleet.dialed, TLS: a.toController(wire.ALPNSocket)})
		})
	}
	containerdLog := a.rotated("containerd.log")
	a.namesLog = a.rotated("resolver.log")
	a.parts.Go(func() error {
		first := sync.OnceFunc(func() { close(a.alive) })
		return containerd.Supervise(a.ctx, containerd.Options{
			Binary: a.paths.Containerd, Root: filepath.Join(a.DataDir, "containerd"), State: filepath.Join(a.RunDir, "containerd"),
			Socket: a.socket(), LogTo: containerdLog, Log: a.Logger,
		}, first)
	})
	a.parts.Go(func() error {
		select {
		case <-a.alive:
		case <-a.ctx.Done():
			return a.ctx.Err()
		}
		subnet, err := a.store.Subnet()
		if err == nil && subnet != "" {
			err = a.bring(a.ctx, subnet)
		}
		if err != nil {
			return err
		}
		return session.Run(a.ctx, session.Options{
			Controllers: a.controllers, Agent: a, Outbox: &a.box, Status: &a.status, Log: a.Logger,
			Conns: &a.fleet.dialed, TLS: a.toController(wire.ALPNSession),
		})
	})
	return a.parts.Wait()
}

// rotated returns the path of a log in DataDir, which is kept small until the agent ends.
func (a *agent) rotated(name string) string {
	log := filepath.Join(a.DataDir, name)
	a.parts.Go(func() error {
		logfile.Watch(a.ctx, log, logfile.MaxSize, func(err error) { a.Logger.Warn("a log can't be rotated", "log", name, "err", err) })
		return a.ctx.Err()
	})
	return log
}

// listen accepts the port's bulk connections, from members of the fleet only.
func (a *agent) listen(port *mux.Mux) net.Listener {
	members := pki.All(pki.Kinds(pki.KindController, pki.KindNode), a.fleet.known)
	return a.fleet.accepted.Listen(port.Handle(pki.PeerServerTLS(a.files, members), wire.ALPNBulk))
}

// toController dials any controller that was not revoked.
func (a *agent) toController(alpn string) *tls.Config {
	return pki.PeerClientTLS(a.files, alpn, pki.All(pki.Kinds(pki.KindController), a.fleet.notRevoked))
}

// controllers returns where to open a session: this host's own controller first, then
// the others in an order that differs from node to node, to spread sessions.
func (a *agent) controllers() []string {
	all := slices.Clone(a.Controllers)
	if w := a.known.Load(); w != nil && len(w.Controllers) > 0 {
		all = slices.Clone(w.Controllers)
	}
	weight := func(addr string) uint64 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(a.NodeID + addr))
		return h.Sum64()
	}
	slices.SortFunc(all, func(x, y string) int { return cmp.Compare(weight(x), weight(y)) })
	if i := slices.Index(all, a.Preferred); i > 0 {
		all[0], all[i] = all[i], all[0]
	}
	return all
}

func (a *agent) socket() string { return filepath.Join(a.RunDir, "containerd.sock") }

func ended(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%s: %w", what, err)
}

// bring opens what needs the node's subnet, once.
func (a *agent) bring(ctx context.Context, subnet string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.up {
		return nil
	}
	defer func() {
		if !a.up {
			a.shut() // the next welcome opens it again
		}
	}()
	prefix, err := netip.ParsePrefix(subnet)
	if err != nil {
		return fmt.Errorf("the node's subnet: %w", err)
	}
	if err := a.openNetwork(ctx, prefix); err != nil {
		return err
	}
	if a.daemon, err = containerd.Connect(a.socket()); err != nil {
		return err
	}
	stored := images.New(images.Options{Containerd: a.daemon, Registry: a.reg, Peers: a.peers.Clients, Public: a.peers.Public, Log: a.Logger})
	vols, err := volume.Open(volume.Options{Dir: filepath.Join(a.DataDir, "volumes"), RunDir: filepath.Join(a.RunDir, "volumes"), Node: a.NodeID, Log: a.Logger})
	if err != nil {
		return err
	}
	a.eng, err = engine.Open(engine.Options{
		DataDir: a.DataDir, RunDir: a.RunDir, NodeID: a.NodeID, HostName: a.Name, ClusterID: a.ClusterID,
		Containerd: a.daemon, ShimPath: a.paths.Shim, Network: a.net, Fleet: a.fabric, Resolver: a.names, Images: stored, Volumes: vols,
		Spares: a.Spares, Event: a.event, VolumeEvent: a.volumeEvent, Log: a.Logger,
		ArchivePath: func() (string, error) { return payload.Archive(filepath.Join(a.DataDir, "bin")) },
	})
	if err != nil {
		return err
	}
	answered, err := a.eng.Answered()
	if err != nil {
		return err
	}
	a.names.Restore(answered)
	a.stored.Store(stored)
	a.images = &reporting{store: stored, box: &a.box, changed: a.peers.Announce}
	if err := a.serveMirror(stored); err != nil {
		return err
	}
	a.rec = task.New(task.Options{Runtime: a.eng, Images: a.images, Volumes: vols, Store: a.store, Reporter: &a.box, Log: a.Logger, Tracer: a.Tracer})
	a.parts.Go(func() error { return a.rec.Run(a.ctx) })
	fabric, names := a.fabric, a.names
	a.parts.Go(func() error { return fabric.run(a.ctx) })
	a.parts.Go(func() error { return names.Run(a.ctx) })
	a.parts.Go(func() error {
		h := streams.Handler(a.eng, a.images, streams.Options{
			Log: a.Logger, Files: a.eng, Probe: a.probe, Pull: a.pulling, Calls: a.store,
			Reading: func(id string) streams.Reader { return a.rec.Reading(id) },
			Volumes: vols, Peer: a.peers.Client, Granted: a.peers.Granted, Network: fabric,
			Peers: registry.New(registry.Options{Store: stored.Content(), Log: a.Logger, May: a.peers.MayRead(stored)}),
		})
		return ended(a.ctx, "the node's port", bulk.Serve(a.ctx, a.bulk, h, a.Logger))
	})
	a.up = true
	return nil
}

// probe checks on behalf of a controller whether another node answers.
func (a *agent) probe(ctx context.Context, node, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer cancel()
	conf := pki.PeerClientTLS(a.files, wire.ALPNBulk, pki.All(pki.Kinds(pki.KindNode), a.fleet.notRevoked, func(p pki.Principal) error {
		if p.ID != node {
			return fmt.Errorf("%s is node %s, not %s", addr, p.ID, node)
		}
		return nil
	}))
	c, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("probing %s: %w", addr, err)
	}
	return c.Close()
}

// probeWithin bounds a direct probe.
const probeWithin = 300 * time.Millisecond

func (a *agent) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.shut()
	if a.peers != nil {
		a.peers.Close()
	}
}

// shut closes what bring opened. It must be called with mu held.
func (a *agent) shut() {
	a.stored.Store(nil)
	if a.eng != nil {
		_ = a.eng.Close()
	}
	if a.daemon != nil {
		_ = a.daemon.Close()
	}
	if a.net != nil {
		_ = a.net.Close()
	}
	a.eng, a.daemon, a.net, a.fabric, a.names = nil, nil, nil, nil, nil
}

// Port returns the port of a host:port, 0 if there is none.
func Port(addr string) uint16 {
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}
