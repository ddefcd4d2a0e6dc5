package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/network/routes"
)

// A door is a node where a port answers that a container on another node, its holder, has
// published (docs/decisions/0028). The door leads to the same port of the holder's gateway
// address, where the holder's own rule leads to the container; so a door opens nothing that
// the holder has not published, and need not know the container's address. The client's
// address is kept: the holder sends answers back through the door, which it knows by the
// hardware address of the first packet.

// Door is a port that another node's container has published on all addresses.
type Door struct {
	Proto string
	Port  uint16
	Node  string // the holder
}

// doorKey is what a node can have once.
type doorKey struct {
	proto string
	port  uint16
}

func (d Door) key() doorKey { return doorKey{d.Proto, d.Port} }

func (d Door) validate() error {
	if !slices.Contains(protocols, d.Proto) || d.Port == 0 || d.Node == "" {
		return fmt.Errorf("topology: the door %d/%s to node %q", d.Port, d.Proto, d.Node)
	}
	return nil
}

// markOf is the mark of what has come through a door, by the door's gateway address: no two
// nodes have one.
func markOf(gateway netip.Addr) routes.Mark {
	b := gateway.As4()
	return routes.Mark(binary.BigEndian.Uint32(b[:]))
}

// zoneOf keeps connections of one client through two doors apart, which are alike to the
// holder but for the door. Doors of one zone only don't do so.
func zoneOf(gateway netip.Addr) uint16 {
	b := gateway.As4()
	return max(binary.BigEndian.Uint16(b[1:]), 1)
}

// throughTunnel is a node's own address that is only reached through the tunnel: that of
// its subnet, which no container has. What a host sends to its own 127.0.0.1 takes this
// way, since its answers are only taken from links that pass on addresses of 127/8.
func throughTunnel(gateway netip.Addr) netip.Addr {
	return netip.PrefixFrom(gateway, gateway.BitLen()-1).Masked().Addr()
}

// doorway says that what a node lets in as a door comes from a hardware address on a link.
type doorway struct {
	station
	gateway netip.Addr // of the node
}

// entry is an open door: a port and the gateway address of its holder.
type entry struct {
	doorKey
	to netip.Addr
}

// doors plans which doors are open here, and the ways back through others'.
func (p *plan) doors(t Topology, hops map[string]hop, ways map[string]way, tunnel string) {
	reached := map[string]bool{}
	for _, peer := range t.Peers {
		h, ok := hops[peer.ID]
		if _, routed := p.Routes[peer.Subnet]; !ok || !routed {
			continue
		}
		p.Routes[netip.PrefixFrom(throughTunnel(h.end), 32)] = h.tunnel
		reached[peer.ID] = true
		if !peer.Door {
			continue
		}
		back := h.v4
		back.Src = netip.Addr{}
		p.Returns[markOf(h.end)] = back
		p.filter.doorways = append(p.filter.doorways, doorway{station{tunnel, tunnelMAC(h.end)}, h.end})
		if w := ways[peer.ID]; w.dev != "" {
			p.filter.doorways = append(p.filter.doorways, doorway{station{w.dev, w.mac}, h.end})
		}
	}
	p.Gated = len(p.Returns) > 0
	for _, d := range t.Doors {
		if reached[d.Node] {
			p.filter.doors = append(p.filter.doors, entry{d.key(), hops[d.Node].end})
		}
	}
}

// openDoors binds the ports of a topology's doors, takes those of other doors out, and
// returns the topology with those doors only whose ports are bound: a port that a process
// or a container of this node uses stays theirs. It must be called with applying held.
func (n *Network) openDoors(t Topology) (open Topology, over []*holder) {
	wanted := map[doorKey]bool{}
	open, open.Doors = t, nil
	for _, d := range t.Doors {
		if k := d.key(); !wanted[k] && d.Node != t.Self {
			wanted[k] = true
			if n.openDoor(k) {
				open.Doors = append(open.Doors, d)
			}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	maps.DeleteFunc(n.closed, func(k doorKey, _ bool) bool { return !wanted[k] })
	for k, h := range n.doors {
		if !wanted[k] {
			over = append(over, h)
			delete(n.doors, k)
		}
	}
	return open, over
}

// openDoor binds a door's port, unless it is bound already. A container that starts finds
// it bound and known, or free.
func (n *Network) openDoor(k doorKey) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.doors[k] == nil && !n.needed[k] && !slices.Contains(n.o.Reserved, k.port) {
		if h, err := listen(&Port{Proto: k.proto, Host: k.port}); err == nil {
			n.doors[k] = h
		}
	}
	if n.doors[k] == nil {
		if !n.closed[k] {
			n.o.Log.Info("a port of another node's container does not answer here: this node uses the number itself", "port", k.port, "proto", k.proto)
		}
		n.closed[k] = true
		return false
	}
	delete(n.closed, k)
	return true
}

// leaveDoors releases the ports of all doors.
func (n *Network) leaveDoors() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for k, h := range n.doors {
		errs = append(errs, h.Close())
		delete(n.doors, k)
	}
	return errors.Join(errs...)
}

// carryOut brings the host to a topology, as far as its doors' ports are free. It must be
// called with applying held.
func (n *Network) carryOut(t Topology) error {
	open, over := n.openDoors(t)
	errs := []error{n.fabric.apply(open)}
	for _, h := range over { // no rule leads there any more
		errs = append(errs, h.Close())
	}
	return errors.Join(errs...)
}

// mend brings the host to what it was told, and tries again to open doors whose ports were
// taken.
func (n *Network) mend() (changed bool, err error) {
	if len(n.Closed()) > 0 {
		n.applying.Lock()
		defer n.applying.Unlock()
		if err := n.carryOut(n.topology); err != nil {
			return false, err
		}
	}
	return n.fabric.repair()
}

// takeFromDoor closes a door whose port a container of this node needs, and returns who
// holds the port then. If there is no such door it returns taken. On all addresses that is
// the door's own socket: a closed one is still bound for a moment if a program is started
// meanwhile, which has a copy until it runs.
func (n *Network) takeFromDoor(p *Port, taken error) (*holder, error) {
	k := doorKey{p.Proto, p.Host}
	n.mu.Lock()
	door := n.doors[k]
	if door == nil {
		n.mu.Unlock()
		return nil, taken
	}
	delete(n.doors, k)
	n.closed[k], n.needed[k] = true, true
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.needed, k)
	}()
	err := n.fabric.closeDoor(k)
	if err == nil && p.IP == "" {
		door.port = *p
		return door, nil
	}
	if err = errors.Join(err, door.Close()); err != nil {
		return nil, fmt.Errorf("closing the door %d/%s: %w", k.port, k.proto, err)
	}
	return listen(p)
}

// closeDoor removes a door from the topology that is applied.
func (f *fabric) closeDoor(k doorKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.t.Doors = slices.DeleteFunc(slices.Clone(f.t.Doors), func(d Door) bool { return d.key() == k })
	_, err := f.bring()
	return err
}

// released has doors opened that wait for one of these ports.
func (n *Network) released(hs []*holder) {
	n.mu.Lock()
	waits := slices.ContainsFunc(hs, func(h *holder) bool { return n.closed[doorKey{h.port.Proto, h.port.Host}] })
	n.mu.Unlock()
	if waits {
		n.links.again()
	}
}

// Closed returns the doors that are not open here, for their ports are taken, sorted.
func (n *Network) Closed() []Port {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []Port
	for k := range n.closed {
		out = append(out, Port{Proto: k.proto, Host: k.port})
	}
	slices.SortFunc(out, func(a, b Port) int { return int(a.Host) - int(b.Host) })
	return out
}

// forgetDoors drops connections through doors that lead elsewhere than they should now: of
// doors that changed, and datagrams to what held a port before its door was open.
func forgetDoors(before, after []entry, mark routes.Mark) error {
	was, now, changed := doorMap(before), doorMap(after), map[doorKey]bool{}
	for k, to := range now {
		if was[k] != to {
			changed[k] = true
		}
	}
	for k := range was {
		if _, ok := now[k]; !ok {
			changed[k] = true
		}
	}
	if len(changed) == 0 {
		return nil
	}
	return forget(unix.AF_INET, func(f *netlink.ConntrackFlow) bool {
		k := doorKey{protocolNames[f.Forward.Protocol], f.Forward.DstPort}
		if !changed[k] || f.Mark != uint32(mark) && k.proto != "udp" {
			return false
		}
		from, ok := netip.AddrFromSlice(f.Reverse.SrcIP)
		if from = from.Unmap(); f.Mark == uint32(mark) {
			to, open := now[k]
			return !open || ok && from != to && from != throughTunnel(to)
		}
		// Nobody has translated it: it went to the socket.
		return f.Forward.DstIP.Equal(f.Reverse.SrcIP) && now[k].IsValid()
	})
}

func doorMap(all []entry) map[doorKey]netip.Addr {
	out := make(map[doorKey]netip.Addr, len(all))
	for _, e := range all {
		out[e.doorKey] = e.to
	}
	return out
}
