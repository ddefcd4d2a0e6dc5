package network

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"

	"github.com/drover/drover/agent/network/routes"
)

// fabric keeps the host's links, routes and firewall as a topology needs them.
type fabric struct {
	o         Options
	nft       *table
	endpoints func() []Endpoint // of all sandboxes

	mu     sync.Mutex // orders changes; guards the fields below
	t      Topology
	ways   map[string]way
	host   host   // as last looked at
	around []Peer // the peers then
	want   plan
	have   routes.Picture // as last looked at, and changed since
	seen   bool           // have can be relied on

	told atomic.Pointer[told]
}

// told is what starts must know of the plan. They don't wait for changes of the host,
// which take their time.
type told struct {
	mtu  int              // of interfaces in networks without one of their own; 0 is the kernel's
	left map[string]error // as in plan
}

// apply brings the host to a topology.
func (f *fabric) apply(t Topology) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.t = t
	_, err := f.bring()
	return err
}

// repair looks at what the host has, and mends it.
func (f *fabric) repair() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = false
	return f.bring()
}

// bring makes the plan and carries it out. It must be called with mu held.
func (f *fabric) bring() (changed bool, err error) {
	left := f.want.left
	if !f.seen || !slices.Equal(f.around, f.t.Peers) {
		h, err := f.look()
		if err != nil {
			return false, err
		}
		f.host, f.around = h, f.t.Peers
	}
	f.want = f.plan(f.host)
	f.tell(left)
	// First what is compared with packets, so that none passes unseen.
	if err := f.nft.setFilter(f.want.filter); err != nil {
		return false, err
	}
	if !f.seen {
		have, err := routes.Read(f.want.Picture, f.o.Prefix)
		if err != nil {
			return false, fmt.Errorf("looking at the host's network: %w", err)
		}
		f.have = have
	}
	c := routes.Compare(f.have, f.want.Picture)
	if f.t.Self == "" {
		c = c.Additions() // nobody said yet what the fleet is
	}
	if c.None() {
		f.seen = true
		return false, nil
	}
	if err = c.Apply(); err != nil {
		err = fmt.Errorf("changing the host's network: %w", err)
	}
	err = errors.Join(err, f.announceMoved(f.have.Routes, c.Set))
	f.have, f.seen = f.want.Picture, err == nil && f.t.Self != ""
	return err == nil, err
}

// plan computes what the host should have now. It must be called with mu held.
func (f *fabric) plan(h host) plan {
	p := planFor(f.o, f.t, f.ways, h)
	for _, e := range f.endpoints() {
		if b := e.bridge(f.o); p.has(b) {
			p.Ports[e.Link] = b
		}
	}
	return p
}

// look returns what a plan depends on of the host. It must be called with mu held.
func (f *fabric) look() (host, error) {
	nets, err := routes.Addresses(func(link string) bool {
		return link == f.o.Bridge || link == f.o.Tunnel || routes.Numbered(link, f.o.Prefix)
	})
	if err != nil {
		return host{}, err
	}
	return host{f.self(), nets, f.measureTunnel()}, nil
}

// tell publishes what starts must know, and logs which networks are left out, which were
// not before.
func (f *fabric) tell(before map[string]error) {
	now := &told{left: f.want.left}
	for _, p := range f.t.Peers {
		if p.ID != f.t.Self && p.Addr.IsValid() && !f.ways[p.ID].proven {
			now.mtu = f.want.Links[f.o.Tunnel].MTU
		}
	}
	f.told.Store(now)
	for id, why := range now.left {
		if was := before[id]; was == nil || was.Error() != why.Error() {
			f.o.Log.Error("containers can't be connected to a network on this node", "network", short(id), "err", why)
		}
	}
}

// carries returns why this node does not carry a network, nil if it may.
func (f *fabric) carries(network string) error {
	if t := f.told.Load(); t != nil {
		return t.left[network]
	}
	return nil
}

// announceMoved tells the containers of this host that single addresses are behind the
// bridge from now on, which were on it before. Else they would go on sending to a
// container that left.
func (f *fabric) announceMoved(before map[netip.Prefix]routes.Route, changed []netip.Prefix) error {
	var errs []error
	for _, dst := range changed {
		if !dst.IsSingleIP() || !dst.Addr().Is4() {
			continue
		}
		bridge, was := f.bridgeFor(dst), linkTo(dst, before)
		if bridge != "" && was == bridge && f.want.Routes[dst].Dev != bridge {
			errs = append(errs, announce(bridge, f.want.Links[bridge].MAC, dst.Addr()))
		}
	}
	return errors.Join(errs...)
}

// linkTo returns the link by which an address is reached, "" if by none.
func linkTo(dst netip.Prefix, by map[netip.Prefix]routes.Route) string {
	for bits := dst.Bits(); bits > 0; bits-- {
		if r, ok := by[netip.PrefixFrom(dst.Addr(), bits).Masked()]; ok {
			return r.Dev
		}
	}
	return ""
}

// bridgeFor returns the bridge of the network that has dst, "" if there is none here.
func (f *fabric) bridgeFor(dst netip.Prefix) string {
	for _, n := range f.t.Networks {
		if _, ok := n.subnet(dst); ok {
			return bridgeOf(f.o, n.Number)
		}
	}
	return ""
}

// self returns this node's address if it is the host's own: behind a translation of
// addresses it is not.
func (f *fabric) self() netip.Addr {
	for _, p := range f.t.Peers {
		if p.ID != f.t.Self || !p.Addr.IsValid() {
			continue
		}
		if addrs, err := net.InterfaceAddrs(); err == nil && isLocal(addrs, p.Addr.Unmap().AsSlice()) && !p.Addr.IsLoopback() {
			return p.Addr.Unmap()
		}
	}
	return netip.Addr{}
}

// What the tunnel adds to packets: Ethernet, VXLAN, UDP and IP.
const (
	overhead  = 14 + 8 + 8 + 20
	overhead6 = 14 + 8 + 8 + 40
)

// measureTunnel returns what fits through the tunnel to all peers.
func (f *fabric) measureTunnel() int {
	mtu := 0
	for _, p := range f.t.Peers {
		if p.ID == f.t.Self || !p.Addr.IsValid() {
			continue
		}
		added := overhead
		if p.Addr.Unmap().Is6() {
			added = overhead6
		}
		if m := uplinkMTU(p.Addr) - added; m > 0 && (mtu == 0 || m < mtu) {
			mtu = m
		}
	}
	return mtu
}

// uplinkMTU returns the MTU of the link by which an address is reached, 0 if it is not.
func uplinkMTU(to netip.Addr) int {
	rs, err := netlink.RouteGet(to.Unmap().AsSlice())
	if err != nil || len(rs) == 0 {
		return 0
	}
	if rs[0].MTU > 0 {
		return rs[0].MTU
	}
	l, err := netlink.LinkByIndex(rs[0].LinkIndex)
	if err != nil {
		return 0
	}
	return l.Attrs().MTU
}

// mtu returns that of interfaces in a network: 0 is the kernel's.
func (f *fabric) mtu(n Fleet) int {
	if n.MTU != 0 {
		return n.MTU
	}
	if t := f.told.Load(); t != nil {
		return t.mtu
	}
	return 0
}

// remove removes what the fabric made.
func (f *fabric) remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	nothing := routes.NewPicture()
	have, err := routes.Read(f.want.Picture, f.o.Prefix)
	if err != nil {
		return err
	}
	f.want, f.have, f.seen = plan{Picture: nothing}, nothing, false
	f.t = Topology{}
	clear(f.ways)
	return routes.Compare(have, nothing).Apply()
}

// setWays changes the ways to other nodes.
func (f *fabric) setWays(ways map[string]way) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if maps.Equal(f.ways, ways) {
		return nil
	}
	f.ways = maps.Clone(ways)
	_, err := f.bring()
	return err
}

// adopt takes over the direct ways of an earlier agent's routes, so that they stay until
// the nodes are known not to be there any more.
func (f *fabric) adopt() error {
	have, err := routes.Read(routes.NewPicture(), f.o.Prefix)
	if err != nil {
		return fmt.Errorf("looking at the host's network: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ways = map[string]way{}
	for _, p := range f.t.Peers {
		r, ok := have.Routes[p.Subnet]
		if !ok || r.To.IsValid() || !r.Via.IsValid() || r.Via != p.Addr.Unmap() {
			continue
		}
		if mac, ok := neighbourOn(r.Dev, r.Via); ok {
			f.ways[p.ID] = way{dev: r.Dev, mac: mac, proven: true}
		}
	}
	return nil
}

// neighbourOn returns what the kernel knows to be an address's hardware address.
func neighbourOn(dev string, a netip.Addr) (mac routes.MAC, ok bool) {
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return mac, false
	}
	all, err := netlink.NeighList(l.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		return mac, false
	}
	for _, n := range all {
		if n.IP.Equal(a.AsSlice()) && len(n.HardwareAddr) == len(mac) {
			return routes.MAC(n.HardwareAddr), true
		}
	}
	return mac, false
}
