// Package network connects containers: each has a sandbox, a network namespace with an
// endpoint in each of its networks. On the default bridge, addresses are of the node's
// own /24; networks of the fleet span all nodes, and their addresses are the fleet's
// choice. Packets go between nodes by routes (docs/decisions/0022). Published ports are
// bound by a socket before any rule refers to them. Which container needs what, and when,
// is up to the engine.
package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/drover/drover/pkg/failpoint"
)

// Options of a node's network.
type Options struct {
	Dir      string       // durable: one file per sandbox
	NetnsDir string       // where namespaces are mounted; volatile
	Bridge   string       // at most 15 characters
	Subnet   netip.Prefix // the node's own; the first address is the gateway
	Reserved []uint16     // host ports that can't be published
	Log      *slog.Logger

	// Topology is what Apply was told last: containers that run go on with it. Without
	// one, what the host has is kept until Apply is called.
	Topology   Topology
	Prefix     string // begins the names of other networks' bridges; "" is dvn
	Tunnel     string // the link to nodes behind routers; "" is dvx
	TunnelPort uint16 // UDP; 0 is 4789, VXLAN's
}

// Network is a node's bridges, routes, table and sandboxes. Safe for concurrent use.
type Network struct {
	o      Options
	boot   string
	nft    *table
	fire   *watcher
	fabric *fabric
	links  *watcher
	scout  *scout

	applying sync.Mutex // orders calls of Apply, and guards the next field
	topology Topology   // as it was told last

	mu        sync.Mutex          // guards the fields below; the caller orders calls with the same id
	nets      map[string]Fleet    // by id
	doors     map[doorKey]*holder // bound sockets of open doors
	closed    map[doorKey]bool    // doors whose ports are taken
	needed    map[doorKey]bool    // those that a container is about to bind
	sandboxes map[string]*Sandbox // by container
	taken     map[netip.Addr]string
	held      map[string][]*holder // bound sockets by container
	last      netip.Addr           // addresses are handed out in turn, so that freed ones are reused last
}

// Open creates the bridge and the table if they are missing, and binds the ports of
// sandboxes on disk again. After a reboot their links are gone: Attach recreates them,
// with the same address.
func Open(ctx context.Context, o Options) (*Network, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	for _, d := range []string{o.Dir, o.NetnsDir} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("creating the network's directory: %w", err)
		}
	}
	n := &Network{o: o, boot: bootID(), sandboxes: map[string]*Sandbox{}, taken: map[netip.Addr]string{}, held: map[string][]*holder{},
		doors: map[doorKey]*holder{}, closed: map[doorKey]bool{}, needed: map[doorKey]bool{}, topology: o.Topology}
	if err := n.load(); err != nil {
		return nil, err
	}
	warnOfLegacy(o.Log, legacyTables, o.Bridge)
	n.nft = newTable(o)
	n.fabric = &fabric{o: o, nft: n.nft, endpoints: n.endpoints, t: o.Topology}
	n.fabric.t.Doors = nil // until their ports are bound, after those of containers here
	n.nets = byID(o.Topology)
	if err := n.fabric.adopt(); err != nil {
		return nil, err
	}
	if _, err := n.fabric.repair(); err != nil {
		if _, missing := netlink.LinkByName(o.Bridge); missing != nil {
			return nil, err
		}
		o.Log.Error("containers may be unreachable: this host's network is not as it should be", "err", err)
	}
	var err error
	if n.fire, err = watch(n.nft.firewall(), o.Log); err != nil {
		return nil, err
	}
	links := n.fabric.links()
	links.mend = n.mend
	if n.links, err = watch(links, o.Log); err != nil {
		return nil, errors.Join(err, n.fire.Close())
	}
	if n.scout, err = newScout(n.fabric, o.Log); err != nil {
		return nil, errors.Join(err, n.fire.Close(), n.links.Close())
	}
	for _, s := range n.sandboxes {
		if err := n.bind(s); err != nil {
			o.Log.Error("a published port can't be bound again", "task", s.ID, "err", err)
			s = s.unpublished() // it is held to its addresses nevertheless
		}
		n.nft.intend(s)
	}
	err = n.enable(o.Topology)
	if len(o.Topology.Doors) > 0 {
		n.applying.Lock()
		err = errors.Join(err, n.carryOut(o.Topology))
		n.applying.Unlock()
	}
	if err == nil {
		_, err = n.nft.reconcile(true)
	}
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, ctx.Err()
}

func (o *Options) validate() error {
	switch {
	case o.Dir == "":
		return errors.New("network: Dir is missing")
	case o.NetnsDir == "":
		return errors.New("network: NetnsDir is missing")
	case o.Bridge == "" || len(o.Bridge) > 15:
		return fmt.Errorf("network: Bridge %q must have 1 to 15 characters", o.Bridge)
	case !o.Subnet.IsValid() || !o.Subnet.Addr().Is4() || o.Subnet.Bits() > 29:
		return fmt.Errorf("network: Subnet %v must be IPv4 and hold at least 6 hosts", o.Subnet)
	}
	if o.Topology.Self != "" {
		if err := o.Topology.Validate(); err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Subnet = o.Subnet.Masked()
	o.Prefix, o.Tunnel, o.TunnelPort = cmp.Or(o.Prefix, "dvn"), cmp.Or(o.Tunnel, "dvx"), cmp.Or(o.TunnelPort, 4789)
	if len(o.Prefix) > maxName-len(fmt.Sprint(maxNumber)) || strings.HasPrefix(o.Bridge, o.Prefix) || strings.HasPrefix(o.Tunnel, o.Prefix) {
		return fmt.Errorf("network: Prefix %q must be short, and not begin the names %q and %q", o.Prefix, o.Bridge, o.Tunnel)
	}
	return nil
}

// Apply brings the node to a topology, which replaces the one before. It may be called
// with what it was told before, to mend what somebody else changed. On an error part of
// it may be in place; another call goes on.
func (n *Network) Apply(ctx context.Context, t Topology) error {
	if err := t.Validate(); err != nil {
		return err
	}
	n.applying.Lock()
	defer n.applying.Unlock()
	n.mu.Lock()
	n.nets = byID(t)
	n.mu.Unlock()
	n.topology = t
	err := errors.Join(n.enable(t), n.carryOut(t))
	n.scout.again()
	return errors.Join(err, ctx.Err())
}

// enable enables forwarding of what a topology's networks need.
func (n *Network) enable(t Topology) error {
	if err := n.route(forwarding4); err != nil {
		return err
	}
	if !slices.ContainsFunc(t.Networks, Fleet.has6) {
		return nil
	}
	return n.route(forwarding6)
}

func byID(t Topology) map[string]Fleet {
	out := map[string]Fleet{}
	for _, f := range t.Networks {
		out[f.ID] = f
	}
	return out
}

// endpoints returns those of all sandboxes.
func (n *Network) endpoints() []Endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []Endpoint
	for _, s := range n.sandboxes {
		out = append(out, s.Endpoints...)
	}
	return out
}

// Attach connects container id to networks, in a sandbox of its own: an endpoint in each,
// in their order, with its ports bound; with no network, it has only its loopback. Called
// again, it returns the existing sandbox as it is, and recreates what a reboot removed. A
// port that is taken is a *PortError, and nothing is left half-made.
func (n *Network) Attach(ctx context.Context, id string, to []Connection) (*Sandbox, error) {
	s, made, err := n.reserve(id, to)
	if err != nil {
		return nil, err
	}
	if made {
		if err := n.bind(s); err != nil {
			return nil, errors.Join(err, n.forget(s))
		}
		failpoint.Here("network.bind.after")
		if err := n.save(s); err != nil {
			return nil, errors.Join(err, n.forget(s))
		}
	}
	failpoint.Here("network.publish.before")
	if err := n.publish(s); err != nil {
		return nil, errors.Join(err, n.Detach(ctx, id))
	}
	failpoint.Here("network.publish.after")
	if err := n.link(s); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting container %s: %w", short(id), err), n.Detach(ctx, id))
	}
	return s, ctx.Err()
}

// Renew prepares the sandbox that an attempt of id left for another one, which gets the
// same addresses and ports. Its namespace stays if the container can't have changed it
// and left no connection behind: as in docker, none of the earlier attempt's are in the
// way of the next. A missing sandbox is no error.
func (n *Network) Renew(ctx context.Context, id string, changed bool) error {
	s := n.Get(id)
	if s == nil || !changed && unused(s) {
		return ctx.Err()
	}
	if err := unlink(s); err != nil {
		return fmt.Errorf("disconnecting container %s: %w", short(id), err)
	}
	failpoint.Here("network.renew.unlinked")
	return ctx.Err()
}

// Detach removes everything that id has here. A missing sandbox is no error. After an
// error the sandbox is still there, with what it has, and another call goes on.
func (n *Network) Detach(ctx context.Context, id string) error {
	n.mu.Lock()
	s := n.sandboxes[id]
	n.mu.Unlock()
	if s == nil {
		return ctx.Err()
	}
	failpoint.Here("network.detach.before")
	if err := errors.Join(unlink(s), n.nft.unpublish(s)); err != nil {
		return fmt.Errorf("disconnecting container %s: %w", short(id), err)
	}
	failpoint.Here("network.detach.unlinked")
	if ferr := forgetAddresses(s); ferr != nil {
		n.o.Log.Warn("senders may not reach a container when it starts again", "task", short(id), "err", ferr)
	}
	err := n.forget(s)
	failpoint.Here("network.detach.after")
	return err
}

// List returns the ids of containers that have a sandbox, sorted.
func (n *Network) List() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := make([]string, 0, len(n.sandboxes))
	for id := range n.sandboxes {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	return ids
}

// Get returns a container's sandbox, nil if there is none. It must not be modified.
func (n *Network) Get(id string) *Sandbox {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sandboxes[id]
}

// Close ends what watches the host, and closes the sockets. Containers keep their network,
// and the host's firewall drover's rules.
func (n *Network) Close() error {
	errs := []error{n.fire.Close(), n.links.Close(), n.scout.Close(), n.leaveDoors()}
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, hs := range n.held {
		for _, h := range hs {
			errs = append(errs, h.Close())
		}
		delete(n.held, id)
	}
	return errors.Join(errs...)
}

// Destroy removes every sandbox, the table, the routes and the bridges.
func (n *Network) Destroy(ctx context.Context) error {
	errs := []error{n.fire.Close(), n.links.Close(), n.scout.Close()} // else they would recreate it
	for _, id := range n.List() {
		errs = append(errs, n.Detach(ctx, id))
	}
	errs = append(errs, n.unroute(forwarding4), n.unroute(forwarding6), n.fabric.remove(), n.nft.destroy(), n.leaveDoors())
	return errors.Join(errs...)
}

// reserve finds or creates the sandbox in memory.
func (n *Network) reserve(id string, to []Connection) (s *Sandbox, made bool, err error) {
	if err := check(to); err != nil {
		return nil, false, fmt.Errorf("connecting container %s: %w", short(id), err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.sandboxes[id]; s != nil {
		return s, false, nil
	}
	s = &Sandbox{Version: sandboxVersion, ID: id, Netns: n.NetnsPath(id)}
	for _, c := range to {
		e, err := n.endpoint(id, c, s.Endpoints)
		if err != nil {
			n.free(s)
			return nil, false, fmt.Errorf("connecting container %s to %s: %w", short(id), c.Network, err)
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	n.sandboxes[id] = s
	return s, true, nil
}

// endpoint chooses what a connection leaves open, and takes its addresses. It must be
// called with mu held.
func (n *Network) endpoint(id string, c Connection, beside []Endpoint) (Endpoint, error) {
	e, err := c.endpoint(id, beside)
	if err != nil {
		return e, err
	}
	if c.Network == Bridge {
		ip, err := n.freeAddr()
		if err != nil {
			return e, err
		}
		e.Bridge, e.Addresses, e.Gateway = n.o.Bridge, []netip.Prefix{netip.PrefixFrom(ip, n.o.Subnet.Bits())}, n.gateway()
	} else if err := n.place(&e, c); err != nil {
		return e, err
	}
	e.MAC = cmp.Or(e.MAC, mac(e.Addresses[0].Addr()))
	for _, a := range e.Addresses {
		n.taken[a.Addr()] = id
	}
	return e, nil
}

// place puts an endpoint into a network of the fleet. It must be called with mu held.
func (n *Network) place(e *Endpoint, c Connection) error {
	f, ok := n.nets[c.Network]
	if !ok {
		return ErrUnknownNetwork
	}
	if err := n.fabric.carries(c.Network); err != nil {
		return err
	}
	e.Bridge = bridgeOf(n.o, f.Number)
	for _, a := range c.Addresses {
		s, ok := f.subnet(netip.PrefixFrom(a, a.BitLen()))
		switch {
		case !ok || a == s.Gateway || e.address(func(b netip.Addr) bool { return b.Is4() == a.Is4() }).IsValid():
			return fmt.Errorf("it can't have the address %v", a)
		case n.taken[a] != "":
			return fmt.Errorf("the address %v is that of container %s", a, short(n.taken[a]))
		}
		e.Addresses = append(e.Addresses, netip.PrefixFrom(a, s.Prefix.Bits()))
		if f.Internal {
			continue
		}
		if a.Is4() {
			e.Gateway = s.Gateway
		} else {
			e.Gateway6 = gateway6
		}
	}
	if len(e.Addresses) == 0 {
		return errors.New("it has no address there")
	}
	return nil
}

// ErrUnknownNetwork reports a connection to a network that Apply was not told of.
var ErrUnknownNetwork = errors.New("this node was not told of the network yet")

// free returns addresses to the pool. It must be called with mu held.
func (n *Network) free(s *Sandbox) {
	for _, e := range s.Endpoints {
		for _, a := range e.Addresses {
			delete(n.taken, a.Addr())
		}
	}
}

// freeAddr must be called with mu held.
func (n *Network) freeAddr() (netip.Addr, error) {
	first := n.gateway().Next()
	ip := n.last
	for range 1 << (32 - n.o.Subnet.Bits()) {
		if ip = ip.Next(); !n.o.Subnet.Contains(ip) || !n.o.Subnet.Contains(ip.Next()) { // the last is broadcast
			ip = first
		}
		if _, ok := n.taken[ip]; !ok {
			n.last = ip
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address is left in this node's %v: %d containers run here", n.o.Subnet, len(n.sandboxes))
}

// bind binds the ports of a new sandbox, choosing those given as 0.
func (n *Network) bind(s *Sandbox) error {
	var hs []*holder
	for i := range s.Endpoints {
		for j := range s.Endpoints[i].Ports {
			h, err := n.hold(&s.Endpoints[i].Ports[j])
			if err != nil {
				for _, h := range hs {
					_ = h.Close()
				}
				return err
			}
			hs = append(hs, h)
		}
	}
	n.mu.Lock()
	n.held[s.ID] = hs
	n.mu.Unlock()
	return nil
}

// publish ensures that the sockets of s are bound and its rules are in place.
func (n *Network) publish(s *Sandbox) error {
	n.mu.Lock()
	_, held := n.held[s.ID]
	n.mu.Unlock()
	if !held {
		if err := n.bind(s); err != nil {
			return err
		}
	}
	return n.nft.publish(s)
}

func (n *Network) link(s *Sandbox) error {
	if s.Boot == n.boot && linked(s) {
		return nil
	}
	failpoint.Here("network.link.before")
	if err := unlink(s); err != nil {
		return err
	}
	for i := range s.Endpoints {
		mtu := n.fabric.mtu(n.fleet(s.Endpoints[i].Network))
		n.mu.Lock()
		s.Endpoints[i].MTU = mtu
		n.mu.Unlock()
	}
	if err := link(s, n.o); err != nil {
		return err
	}
	failpoint.Here("network.link.after")
	s.Boot = n.boot
	return n.save(s)
}

func (n *Network) forget(s *Sandbox) error {
	n.mu.Lock()
	hs := n.held[s.ID]
	delete(n.held, s.ID)
	delete(n.sandboxes, s.ID)
	n.free(s)
	n.mu.Unlock()
	var errs []error
	for _, h := range hs {
		errs = append(errs, h.Close())
	}
	n.released(hs)
	if err := os.Remove(n.file(s.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("forgetting a sandbox: %w", err))
	}
	return errors.Join(errs...)
}

func (n *Network) file(id string) string { return filepath.Join(n.o.Dir, id+".json") }

// Gateway returns the node's own address on the bridge.
func (n *Network) Gateway() netip.Addr { return n.gateway() }

// NetnsPath returns where Attach mounts the namespace of container id.
func (n *Network) NetnsPath(id string) string { return filepath.Join(n.o.NetnsDir, short(id)) }

func (n *Network) gateway() netip.Addr { return n.o.Subnet.Addr().Next() }

func short(id string) string { return id[:min(12, len(id))] }

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
