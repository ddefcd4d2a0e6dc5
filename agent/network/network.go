// Package network gives containers a place on their node's bridge: a namespace,
// an address out of the node's own /24, and published ports that are bound by a
// socket before any rule points at them. Which container wants what, and when,
// is the engine's.
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/durable"
)

// Options of a node's network.
type Options struct {
	Dir      string       // durable: one file for each attachment
	NetnsDir string       // where namespaces are named; volatile
	Bridge   string       // at most 15 characters
	Subnet   netip.Prefix // the node's own; its first address is the gateway
	Reserved []uint16     // host ports that no container gets
	Log      *slog.Logger
}

// Attachment is a container's place. It is what its file holds.
type Attachment struct {
	Version   int
	ID        string
	Netns     string // path
	IP        netip.Addr
	Gateway   netip.Addr
	PrefixLen int
	MAC       string
	Ports     []Port // as bound
	Boot      string // the boot that made namespace and link
}

// Port is a published port, bound.
type Port struct {
	IP        string // "" is every address
	Proto     string
	Host      uint16
	Container uint16
}

// Network is a node's bridge, table and attachments. Safe for concurrent use.
type Network struct {
	o    Options
	boot string
	nft  *table
	fire *watcher

	mu    sync.Mutex // guards the fields below; attach and detach of one id are the caller's to order
	atts  map[string]*Attachment
	taken map[netip.Addr]string
	held  map[string][]*holder // bound sockets by attachment
	last  netip.Addr           // addresses are given out round the subnet, the just-freed last
}

// Open makes bridge and table where they are missing, and takes the persisted
// attachments' ports again. After a reboot their links are gone: Attach makes
// them anew, with the same address.
func Open(ctx context.Context, o Options) (*Network, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	for _, d := range []string{o.Dir, o.NetnsDir} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("making the network's folder: %w", err)
		}
	}
	n := &Network{o: o, boot: bootID(), atts: map[string]*Attachment{}, taken: map[netip.Addr]string{}, held: map[string][]*holder{}}
	if err := n.load(); err != nil {
		return nil, err
	}
	if err := ensureBridge(o.Bridge, n.gateway(), o.Subnet.Bits()); err != nil {
		return nil, err
	}
	warnOfLegacy(o.Log, legacyTables, o.Bridge)
	n.nft = newTable(o.Bridge, o.Subnet, o.Log)
	var err error
	if n.fire, err = watch(n.nft); err != nil {
		return nil, err
	}
	for _, a := range n.atts {
		if err := n.bind(a); err != nil {
			o.Log.Error("a published port could not be taken again", "task", a.ID, "err", err)
			continue
		}
		n.nft.intend(a)
	}
	err = n.route()
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
	case o.Log == nil:
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Subnet = o.Subnet.Masked()
	return nil
}

// Attach gives the container id a namespace, an address and its ports. Called
// again it gives what is there, and makes anew what a reboot took. A port that
// is taken is a *PortError, and nothing is left half-made.
func (n *Network) Attach(ctx context.Context, id string, ports []*dv1.Port) (*Attachment, error) {
	a, made, err := n.reserve(id, ports)
	if err != nil {
		return nil, err
	}
	if made {
		if err := n.bind(a); err != nil {
			return nil, errors.Join(err, n.forget(a))
		}
		if err := n.save(a); err != nil {
			return nil, errors.Join(err, n.forget(a))
		}
	}
	if err := n.link(a); err != nil {
		return nil, errors.Join(fmt.Errorf("connecting container %s: %w", short(id), err), n.Detach(ctx, id))
	}
	if err := n.publish(a); err != nil {
		return nil, errors.Join(err, n.Detach(ctx, id))
	}
	return a, ctx.Err()
}

// Detach frees everything that id has here. What isn't there is no error.
func (n *Network) Detach(ctx context.Context, id string) error {
	n.mu.Lock()
	a := n.atts[id]
	n.mu.Unlock()
	if a == nil {
		return ctx.Err()
	}
	err := errors.Join(n.nft.unpublish(a), unlink(a, linkName(id)))
	if ferr := forgetAddress(a); ferr != nil {
		n.o.Log.Warn("senders may not reach a container when it starts again", "task", short(id), "err", ferr)
	}
	return errors.Join(err, n.forget(a))
}

// List gives the attached ids, sorted.
func (n *Network) List() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := make([]string, 0, len(n.atts))
	for id := range n.atts {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	return ids
}

// Get gives an attachment, nil if there is none.
func (n *Network) Get(id string) *Attachment {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.atts[id]
}

// Close lets go of the sockets and of the host's firewall; containers keep their
// network.
func (n *Network) Close() error {
	errs := []error{n.fire.Close()}
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

// Destroy removes every attachment, the table and the bridge.
func (n *Network) Destroy(ctx context.Context) error {
	errs := []error{n.fire.Close()} // else it would make the table again
	for _, id := range n.List() {
		errs = append(errs, n.Detach(ctx, id))
	}
	errs = append(errs, n.unroute(), n.nft.destroy(), removeLink(n.o.Bridge))
	return errors.Join(errs...)
}

// reserve finds or makes the attachment in memory.
func (n *Network) reserve(id string, ports []*dv1.Port) (a *Attachment, made bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a := n.atts[id]; a != nil {
		return a, false, nil
	}
	ip, err := n.freeAddr()
	if err != nil {
		return nil, false, err
	}
	a = &Attachment{
		Version: 1, ID: id, Netns: filepath.Join(n.o.NetnsDir, short(id)), IP: ip, Gateway: n.gateway(),
		PrefixLen: n.o.Subnet.Bits(), MAC: mac(ip),
	}
	for _, p := range ports {
		proto := p.GetProto()
		if proto == "" {
			proto = "tcp"
		}
		a.Ports = append(a.Ports, Port{IP: wildcard(p.GetIp()), Proto: proto, Host: uint16(p.GetHost()), Container: uint16(p.GetContainer())})
	}
	n.atts[id], n.taken[ip] = a, id
	return a, true, nil
}

// freeAddr is called with mu held.
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
	return netip.Addr{}, fmt.Errorf("no address is left in this node's %v: %d containers run here", n.o.Subnet, len(n.atts))
}

// bind takes the ports of a new attachment, choosing those that are asked as 0.
func (n *Network) bind(a *Attachment) error {
	var hs []*holder
	for i := range a.Ports {
		h, err := n.hold(&a.Ports[i])
		if err != nil {
			for _, h := range hs {
				_ = h.Close()
			}
			return err
		}
		hs = append(hs, h)
	}
	n.mu.Lock()
	n.held[a.ID] = hs
	n.mu.Unlock()
	return nil
}

// publish makes sure that a's sockets are held and its rules are there.
func (n *Network) publish(a *Attachment) error {
	n.mu.Lock()
	_, held := n.held[a.ID]
	n.mu.Unlock()
	if !held {
		if err := n.bind(a); err != nil {
			return err
		}
	}
	return n.nft.publish(a)
}

func (n *Network) link(a *Attachment) error {
	if a.Boot == n.boot && linked(a, linkName(a.ID)) {
		return nil
	}
	if err := unlink(a, linkName(a.ID)); err != nil {
		return err
	}
	if err := link(a, linkName(a.ID), n.o.Bridge); err != nil {
		return err
	}
	a.Boot = n.boot
	return n.save(a)
}

func (n *Network) forget(a *Attachment) error {
	n.mu.Lock()
	hs := n.held[a.ID]
	delete(n.held, a.ID)
	delete(n.atts, a.ID)
	delete(n.taken, a.IP)
	n.mu.Unlock()
	var errs []error
	for _, h := range hs {
		errs = append(errs, h.Close())
	}
	if err := os.Remove(n.file(a.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("forgetting an attachment: %w", err))
	}
	return errors.Join(errs...)
}

func (n *Network) save(a *Attachment) error {
	b, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encoding the attachment of %s: %w", short(a.ID), err)
	}
	return durable.WriteFile(n.file(a.ID), b, 0o600)
}

func (n *Network) load() error {
	n.last = n.gateway()
	files, err := filepath.Glob(filepath.Join(n.o.Dir, "*.json"))
	if err != nil {
		return fmt.Errorf("reading attachments: %w", err)
	}
	for _, f := range files {
		a, err := readAttachment(f)
		if errors.Is(err, errUnreadable) {
			a, err = n.setAside(f, err)
		}
		if err != nil {
			return err
		}
		if a != nil {
			n.atts[a.ID], n.taken[a.IP] = a, a.ID
		}
	}
	return nil
}

// errUnreadable marks a file that says nothing, however often it is read.
var errUnreadable = errors.New("it can't be used")

func readAttachment(file string) (*Attachment, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading attachments: %w", err)
	}
	a := new(Attachment)
	err = json.Unmarshal(b, a)
	switch {
	case err != nil:
	case a.Version != 1:
		err = fmt.Errorf("it is of version %d, which this agent does not know", a.Version)
	case a.ID+".json" != filepath.Base(file) || a.Netns == "" || !a.IP.Is4():
		err = fmt.Errorf("it is that of %q at %q with %v", a.ID, a.Netns, a.IP)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the attachment %s: %w: %w", file, errUnreadable, err)
	}
	return a, nil
}

// setAside keeps a file that can't be used for people, so that one container does
// not keep a node from working. A container that still runs keeps its address;
// which ports it published is lost until it starts again.
func (n *Network) setAside(file string, why error) (*Attachment, error) {
	id := strings.TrimSuffix(filepath.Base(file), ".json")
	if err := os.Rename(file, file+".bad"); err != nil {
		return nil, fmt.Errorf("setting an attachment aside: %w", errors.Join(err, why))
	}
	a := &Attachment{Version: 1, ID: id, Netns: n.NetnsPath(id), Gateway: n.gateway(), PrefixLen: n.o.Subnet.Bits(), Boot: n.boot}
	ip, err := addressIn(a.Netns)
	if err != nil || !n.o.Subnet.Contains(ip) {
		n.o.Log.Error("an attachment was set aside; its container is not connected", "file", file+".bad", "err", errors.Join(why, err, unlink(a, linkName(id))))
		return nil, nil
	}
	a.IP, a.MAC = ip, mac(ip)
	n.o.Log.Error("an attachment was set aside; its container is connected, and its published ports are lost until it starts again", "file", file+".bad", "err", why)
	return a, n.save(a)
}

func (n *Network) file(id string) string { return filepath.Join(n.o.Dir, id+".json") }

// Gateway is the node's own address on the bridge.
func (n *Network) Gateway() netip.Addr { return n.gateway() }

// NetnsPath is where Attach names the namespace of id.
func (n *Network) NetnsPath(id string) string { return filepath.Join(n.o.NetnsDir, short(id)) }

func (n *Network) gateway() netip.Addr { return n.o.Subnet.Addr().Next() }

// Proto gives the ports as the API and raft know them.
func (a *Attachment) Proto() []*dv1.Port {
	var out []*dv1.Port
	for _, p := range a.Ports {
		out = append(out, &dv1.Port{Ip: p.IP, Proto: p.Proto, Host: uint32(p.Host), Container: uint32(p.Container)})
	}
	return out
}

// mac is docker's scheme: 02:42 and the address, so that none meets another.
func mac(ip netip.Addr) string {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}.String()
}

// linkName is the host's end of a container's cable.
func linkName(id string) string { return "dvr" + id[:min(12, len(id))] }

func short(id string) string { return id[:min(12, len(id))] }

func wildcard(ip string) string {
	if ip == "0.0.0.0" || ip == "::" {
		return ""
	}
	return ip
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
