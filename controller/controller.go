// Package controller runs a host's controller: it starts the parts of the control
// plane in an order that survives power cuts, serves them, and stops them. What they
// decide and answer is theirs.
//
// The order: lock, identity files, listeners (503 until ready), raft, barrier,
// unseal and first proposals, sessions and API. They stop in reverse order, so that
// requests in progress still have a log.
package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/drover/drover/controller/access"
	"github.com/drover/drover/controller/admission"
	"github.com/drover/drover/controller/agents"
	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/controller/consensus"
	"github.com/drover/drover/controller/dispatch"
	"github.com/drover/drover/controller/engineapi"
	views "github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/fleetapi"
	"github.com/drover/drover/controller/gateway"
	"github.com/drover/drover/controller/membership"
	"github.com/drover/drover/controller/moves"
	"github.com/drover/drover/controller/peer"
	"github.com/drover/drover/controller/runs"
	"github.com/drover/drover/controller/state"
	"github.com/drover/drover/controller/vault"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/grant"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/registry"
	"github.com/drover/drover/pkg/route"
	"github.com/drover/drover/pkg/timing"
	traces "github.com/drover/drover/pkg/trace"
	"github.com/drover/drover/pkg/unixsock"
)

// DefaultListen is all addresses of the host, on the control plane's port.
const DefaultListen = "0.0.0.0:7443"

// GCPercent is the GOGC of a controller's process whose operator set none. Collecting was
// a sixth of what a leader of a thousand nodes used: its heap is small for how much a
// request allocates, and each session has several stacks to scan.
const GCPercent = 200

// Config configures Run. DataDir and RunDir are required.
type Config struct {
	DataDir    string // holds the identities that bootstrap.Up made
	RunDir     string // holds drover.sock and, for once, recovery-key
	Listen     string // host:port; "" is DefaultListen
	Advertise  string // host[:port] that others dial; "" is the address listened on, unless that is a wildcard
	Version    string // of drover, for display
	Registries []registry.Mirror
	Logger     *slog.Logger  // nil: none
	Tracer     trace.Tracer  // nil: none
	Traces     *traces.Store // where spans are collected; nil: a store of its own
	Stdout     io.Writer     // the recovery key is printed here, once; nil is os.Stdout
	// OnReady is called when requests are served, with the port's address.
	OnReady func(net.Addr)
}

func (c *Config) validate() error {
	switch {
	case c.DataDir == "":
		return errors.New("controller: DataDir is required")
	case c.RunDir == "":
		return errors.New("controller: RunDir is required")
	}
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if c.Traces == nil {
		c.Traces = &traces.Store{}
	}
	if c.Stdout == nil {
		c.Stdout = os.Stdout
	}
	if c.OnReady == nil {
		c.OnReady = func(net.Addr) {}
	}
	return nil
}

type controller struct {
	Config
	dir        string
	unlock     func()
	files      *pki.Files
	registry   *registry.Registry
	grants     *grant.Maker
	identities access.Identities
	agents     *agents.Agents
	contact    string
	fail       func(error) // ends the controller; the first error counts

	fleet *views.Fleet
	peers *peer.Peers

	node    atomic.Pointer[consensus.Node] // nil before raft is open
	commits gate
	believe atomic.Bool // trust this clock, even far ahead of the state's time
	tuning  tuning
}

// tuning has what tests can't wait for; with the zero value the packages' defaults
// apply.
type tuning struct {
	gossipOverlap time.Duration
	patience      time.Duration
	pace          gateway.Pace
}

// Run runs a controller until ctx is done and returns nil, or returns the error that
// stopped it. It needs what bootstrap.Up wrote to DataDir.
func Run(ctx context.Context, cfg Config) error {
	c, err := load(cfg)
	if err != nil {
		return err
	}
	return c.end(c.run(ctx))
}

// end moves a removed controller's files aside.
func (c *controller) end(err error) error {
	if errors.Is(err, membership.ErrRemoved) {
		return errors.Join(err, identity.RemoveController(c.DataDir))
	}
	return err
}

// failure distinguishes what failed from a stop that the caller asked for.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

// load takes the lock, and reads this controller's identity.
func load(cfg Config) (_ *controller, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c := &controller{Config: cfg}
	c.dir = identity.ControllerDir(cfg.DataDir)
	if c.unlock, err = durable.Lock(c.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.unlock()
		}
	}()
	if c.files, err = pki.LoadFiles(identity.ControllerPKI(c.DataDir)); err != nil {
		return nil, fmt.Errorf("this host has no controller's identity, or a damaged one: %w", err)
	}
	c.grants = grant.NewMaker(c.files)
	if c.registry, err = registry.New(c.Registries); err != nil {
		return nil, fmt.Errorf("configuring registries: %w", err)
	}
	id, err := identity.Load(c.DataDir)
	if err == nil {
		c.contact = id.Node
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	c.identities = access.NewIdentities(func() *state.Snapshot {
		if n := c.node.Load(); n != nil {
			return n.Snapshot()
		}
		return nil
	})
	c.agents = agents.New(agents.Options{Files: c.files, Member: c.identities.Verify(pki.KindNode), Revoked: c.identities.NotRevoked})
	return c, nil
}

func (c *controller) run(ctx context.Context) error {
	defer c.unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.fail = func(err error) { cancel(&failure{err}) }
	defer c.start(ctx, "connections to agents", c.agents.Run)()
	gw, err := gateway.Listen(ctx, gateway.Options{Listen: c.Listen, Advertise: c.Advertise, Socket: unixsock.File(c.RunDir), Files: c.files,
		Identities: c.identities, Logger: c.Logger, Linger: membership.Parting, Patience: c.tuning.patience, Pace: c.tuning.pace})
	if err != nil {
		return err
	}
	defer c.start(ctx, "the port "+gw.Addr().String(), gw.Run)()
	stopRequests := c.start(ctx, "requests", gw.Serve)
	defer stopRequests()
	first, err := bootstrap.Pending(c.DataDir)
	if err != nil {
		return err
	}
	node, err := consensus.Open(consensus.Options{
		ID: c.files.Principal.ID, Dir: filepath.Join(c.dir, "raft"), Addr: raft.ServerAddress(gw.Advertise()), Layer: gw.Raft(),
		Logger: c.Logger, Version: c.Version, OnCommit: c.commits.committed, OnRestore: c.commits.restore, Believe: c.believe.Load,
		Timing: timing.FromProto(first.GetInit().GetCluster().GetTiming()), TimingFile: identity.TimingFile(c.DataDir),
	})
	if err != nil {
		return err
	}
	defer func() {
		if err := node.Close(); err != nil {
			c.Logger.Warn("closing raft failed", "err", err)
		}
	}()
	c.node.Store(node)
	if !node.HasState() && first != nil {
		self := raft.Server{ID: raft.ServerID(c.files.Principal.ID), Address: raft.ServerAddress(gw.Advertise())}
		if err := node.Bootstrap([]raft.Server{self}); err != nil {
			return err
		}
	}
	defer c.start(ctx, "the proposer", node.Run)()
	place := membership.NewPlace(membership.PlaceOptions{Files: c.files, DataDir: c.DataDir, Addr: gw.Advertise(), Log: node,
		NotRevoked: c.identities.NotRevoked, Logger: c.Logger})
	defer c.start(ctx, "announcing itself", place.Announce)()
	defer c.start(ctx, "its place in the quorum", place.Run)()
	if err := c.serve(ctx, gw, node, place, stopRequests); err != nil && ctx.Err() == nil {
		return err
	}
	var broken *failure
	if errors.As(context.Cause(ctx), &broken) {
		return broken.error
	}
	return nil
}

// serve takes the controller from an open log to serving requests, until ctx is
// done.
func (c *controller) serve(ctx context.Context, gw *gateway.Gateway, node *consensus.Node, place *membership.Place, stopRequests func()) error {
	if err := c.becomeReady(ctx, node); err != nil {
		return err
	}
	log := &tracedLog{Log: node, tracer: c.Tracer}
	others := peer.New(peer.Options{Self: c.files.Principal, Log: log, Contact: c.contact, Logger: c.Logger, TLS: func(id, alpn string) *tls.Config {
		return pki.PeerClientTLS(c.files, alpn, pki.All(pki.Kinds(pki.KindController), c.identities.NotRevoked, func(p pki.Principal) error {
			if p.ID != id {
				return fmt.Errorf("it is controller %.12s, not %.12s", p.ID, id)
			}
			return nil
		}))
	}})
	defer others.Close()
	defer c.start(ctx, "the connections to other controllers", others.Run)()
	v, err := bootstrap.Unseal(ctx, bootstrap.UnsealOptions{DataDir: c.DataDir, RunDir: c.RunDir, Files: c.files,
		Snapshot: log.Snapshot, Propose: others.Own, Stdout: c.Stdout, Logger: c.Logger})
	if err != nil {
		return err
	}
	keys := vault.NewKeeper(vault.KeeperOptions{Vault: v, Self: c.files.Principal, Log: node, Logger: c.Logger, Overlap: c.tuning.gossipOverlap})
	quorum := membership.NewQuorum(membership.QuorumOptions{Self: c.files.Principal.ID, Log: node, Status: others.Status, Logger: c.Logger})
	filler := runs.New(node, c.files.Principal.URI, c.Logger)
	clock := membership.NewClock(membership.ClockOptions{Self: c.files.Principal.ID, Snapshot: node.Snapshot, Ask: others.Clock, Believe: c.believe.Store, Logger: c.Logger})
	var local *views.Local // set below: the hub reports to it, and it reads the hub's
	hub := dispatch.New(dispatch.Options{Self: c.files.Principal.URI, Log: log, Logger: c.Logger, OnStatus: func(id string) { local.StatusChanged(id) }, OnEvent: func(e *dv1.Event) { local.Reported(e) }, Keys: v.GossipKeys, Grant: c.grants.For, Probe: func(ctx context.Context, id string) bool { return c.agents.Probe(ctx, log.Snapshot(), id) }})
	local = views.NewLocal(views.LocalOptions{Log: log, Reports: hub, Dial: c.agents.Client, Contact: c.contact})
	c.fleet, c.peers = views.New(local, others, log), others
	mover := moves.New(moves.Options{Fleet: c.fleet, Self: c.files.Principal.URI, Snapshot: node.Snapshot, Grant: c.grants.For, Logger: c.Logger})
	committed := func(effects []*dv1.Effect) {
		for _, room := range []interface{ Committed([]*dv1.Effect) }{gw, c.agents, keys, quorum, place, filler, mover} {
			room.Committed(effects)
		}
	}
	c.commits.open(func() { local.Seed(node.Snapshot()); gw.Seed(node.Snapshot()) }, func(effects []*dv1.Effect, index uint64) {
		hub.Committed(effects, index)
		local.Committed(effects, node.Snapshot().Time())
		committed(effects)
	}, func(before, after *state.Snapshot) {
		hub.Restored(after)
		local.Seed(after)
		committed(between(before, after))
	})
	defer c.start(ctx, "leadership", func(ctx context.Context) error {
		return lead(ctx, node, hub.Run, clock.Run, quorum.Run, keys.Run, filler.Run, mover.Run) // all that only a leader does
	})()
	defer c.start(ctx, "its host's admin", func(ctx context.Context) error {
		return vault.OwnAdmin(ctx, vault.AdminOptions{Dir: identity.AdminPKI(c.DataDir), Self: c.files.Principal,
			Snapshot: log.Snapshot, Propose: others.Own, Authority: v.Authority, Logger: c.Logger})
	})()
	apis := c.api(quorum, mover)
	soon, enough := context.WithTimeout(ctx, settle)
	c.fleet.CatchUp(soon) // otherwise it wouldn't know who was admitted while it was down
	enough()
	joins := admission.New(admission.Options{Snapshot: log.Snapshot, Propose: others.Propose, Vault: v, Logger: c.Logger})
	gw.Ready(gateway.Handlers{API: c.peers.API(apis), Sessions: c.peers.Sessions(hub.Handler()),
		Peers: c.peers.Controllers(local, c.Traces), Callers: c.peers.Callers(apis, hub.Handler()), Joins: joins})
	c.Logger.Info("controller is ready", "addr", gw.Addr().String(), "cluster", node.Snapshot().Cluster().GetId(), "index", node.Snapshot().Index(), "leads", node.Ready())
	c.OnReady(gw.Addr())
	<-ctx.Done()
	stopRequests() // before the log, which requests in progress need
	return nil
}

// apis are the fleet API, and docker's for all other paths.
type apis struct {
	ours   *fleetapi.API
	docker *engineapi.API
}

func (c *controller) api(quorum *membership.Quorum, mover *moves.Mover) apis {
	return apis{
		docker: engineapi.New(engineapi.Options{Fleet: c.fleet, Registry: c.registry, Logger: c.Logger, Tracer: c.Tracer, Version: c.Version, Grant: c.grants.For}),
		ours:   fleetapi.New(fleetapi.Options{Tracer: c.Tracer, Grant: c.grants.For, Traces: c.Traces, Gather: c.peers.Gather, Fleet: c.fleet, Move: mover.Move, Members: quorum.Members, Remove: quorum.Remove, Pin: func() string { return pki.Pin(c.files.Bundle[0].Raw) }}),
	}
}

// Match implements route.API.
func (a apis) Match(r *http.Request) (route.Route, http.Handler) {
	if rt, h := a.ours.Match(r); h != nil {
		return rt, h
	}
	return a.docker.Match(r)
}

// settle is how long a controller that knows its cluster waits for a leader before
// it serves what it has.
const settle = 3 * time.Second

// becomeReady waits until this member leads, or can follow: the log has the cluster,
// and this controller's copy of the data key.
func (c *controller) becomeReady(ctx context.Context, node *consensus.Node) error {
	late := time.NewTimer(settle)
	defer late.Stop()
	waited := false
	for {
		changed := node.Changed()
		if node.Ready() {
			return nil
		}
		snap := node.Snapshot()
		_, leader := node.Leader()
		if vault.Wrapped(snap, c.files.Principal.ID) != nil && (leader != "" && leader != c.files.Principal.ID || waited) {
			return nil
		}
		select {
		case <-changed:
		case <-late.C:
			waited = true
		case <-ctx.Done():
			return fmt.Errorf("waiting for the other controllers: %w", ctx.Err())
		}
	}
}

// start runs a part until the returned stop is called, which waits for it to return.
// If the part fails earlier, the controller stops.
func (c *controller) start(ctx context.Context, what string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // parts stop in order, not all at once
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			c.fail(fmt.Errorf("%s failed: %w", what, err))
		}
	}()
	return func() { cancel(); <-done }
}
