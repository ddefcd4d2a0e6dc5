package engineapi

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/drover/drover/controller/command"
	"github.com/drover/drover/controller/create"
	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/fields"
	"github.com/drover/drover/pkg/life"
	"github.com/drover/drover/pkg/mounts"
	"github.com/drover/drover/pkg/volumes"
)

// view is a container as clients see it: what raft has, what its agent observed
// last, and its request merged with its image.
type view struct {
	snap *state.Snapshot
	t    *dv1.Task
	st   *dv1.TaskStatus // of the current life, or one that the log does not have yet; nil if none
	*shape
	image *dv1.Image
	ref   string // the image as the user wrote it
	node  string
	host  string // its host name if none was asked for
	quiet string // how long its node has been silent, "" if it isn't
}

// current returns the status of a task's current attempt, nil if none was reported but
// those of earlier lives.
func current(seen *fleet.Observations, t *dv1.Task) *dv1.TaskStatus {
	if st := seen.Status(hexID(t)); st.GetAttempt() == t.Attempt && !life.Of(st).Before(life.Of(t)) {
		return st
	}
	return nil
}

func (s *server) view(snap *state.Snapshot, seen *fleet.Observations, t *dv1.Task) *view {
	spec := snap.Spec(t.SpecId)
	v := &view{snap: snap, t: t, st: current(seen, t), shape: s.shapes.of(snap, spec), node: t.NodeId, host: hexID(t)[:12]}
	if n := snap.Node(t.NodeId); n != nil {
		v.node = n.Name
	}
	if mode := v.req.HostConfig.NetworkMode; mode.IsContainer() { // it has that of the other one
		if other, e := command.FindTask(snap, mode.ConnectedContainer()); e == nil {
			v.host = cmp.Or(s.shapeOf(snap, other).config.Hostname, hexID(other)[:12])
		}
	}
	if since, is := silence(seen, t.NodeId); is {
		v.quiet = since
	}
	if spec != nil {
		v.ref = spec.Image
		v.image = snap.Image(spec.Digest)
		if v.image == nil {
			v.image = &dv1.Image{Digest: spec.Digest}
		}
	}
	return v
}

// configured returns the container's effective configuration: docker's merge of
// image and request.
func (v *view) configured() *container.Config {
	c := v.config
	if c.Hostname == "" {
		c.Hostname = v.host
	}
	c.Labels = v.labels(c.Labels)
	return &c
}

func (v *view) labels(l map[string]string) map[string]string {
	out := maps.Clone(l)
	if out == nil {
		out = map[string]string{}
	}
	if v.node != "" {
		out[create.LabelNode] = v.node
	}
	return out
}

// exit returns how the current attempt ended, nil if it has not: a status may have the
// exit of a life that its agent began anew after.
func (v *view) exit() *dv1.Exit {
	if e := state.LastExit(v.t); e != nil {
		return e
	}
	if e := v.st.GetExit(); e != nil && !life.Of(e).Before(life.Of(v.st)) {
		return e
	}
	return nil
}

func (v *view) state() container.ContainerState {
	switch {
	case v.t.Attempt == 0:
		return container.StateCreated
	case v.exit() != nil:
		return container.StateExited
	case v.t.Failed != "" || v.st.GetPhase() == dv1.Phase_FAILED:
		if v.t.Exit != nil { // an earlier attempt ran
			return container.StateExited
		}
		return container.StateCreated
	case v.st.GetPaused():
		return container.StatePaused
	case v.t.Started != 0 || v.st.GetPhase() == dv1.Phase_ACTIVE:
		return container.StateRunning
	}
	return container.StateCreated
}

func (v *view) started() int64 {
	if v.st.GetStarted() != 0 {
		return v.st.Started
	}
	if v.t.Started != 0 {
		return v.t.Started
	}
	return v.t.Exit.GetStarted()
}

func (v *view) status(now time.Time) string {
	s := ""
	switch st := v.state(); st {
	case container.StateRunning, container.StatePaused:
		s = "Up " + units.HumanDuration(now.Sub(time.Unix(0, v.started())))
		if st == container.StatePaused {
			s += " (Paused)"
		}
	case container.StateExited:
		e := v.exit()
		if e == nil {
			e = v.t.Exit
		}
		s = fmt.Sprintf("Exited (%d) %s ago", e.GetCode(), units.HumanDuration(now.Sub(time.Unix(0, e.GetAt()))))
	default:
		s = "Created"
	}
	if v.quiet != "" {
		s += " (node silent " + v.quiet + ")"
	}
	return s
}

// ports returns the published ports, with host ports as they were bound.
func (v *view) ports() []*dv1.Port {
	if st := v.state(); st != container.StateRunning && st != container.StatePaused {
		return nil
	}
	if v.st != nil && len(v.st.Ports) > 0 {
		return v.st.Ports
	}
	return v.t.Ports
}

func hostIP(ip string) netip.Addr {
	if a, err := netip.ParseAddr(ip); err == nil {
		return a
	}
	return netip.IPv4Unspecified()
}

func (v *view) portSummary() []container.PortSummary {
	out := []container.PortSummary{}
	shown := map[network.Port]bool{}
	for _, p := range v.ports() {
		if port, ok := portOf(p); ok && p.Host != 0 {
			out = append(out, container.PortSummary{IP: hostIP(p.Ip), PrivatePort: port.Num(), PublicPort: uint16(p.Host), Type: string(port.Proto())})
			shown[port] = true
		}
	}
	if v.state() == container.StateRunning {
		for port := range v.unbound() {
			if !shown[port] {
				out = append(out, container.PortSummary{PrivatePort: port.Num(), Type: string(port.Proto())})
			}
		}
	}
	slices.SortFunc(out, func(a, b container.PortSummary) int {
		return (int(a.PrivatePort)-int(b.PrivatePort))*65536 + int(a.PublicPort) - int(b.PublicPort)
	})
	return out
}

func portOf(p *dv1.Port) (network.Port, bool) {
	port, err := network.ParsePort(fmt.Sprintf("%d/%s", p.Container, p.Proto))
	return port, err == nil
}

// unbound returns the ports that a container exposes in a network of its own, and those
// that it publishes in vain: of a container in internal networks only, no port is bound.
func (v *view) unbound() network.PortSet {
	out := network.PortSet{}
	if !fields.PublishesPorts(&v.req) {
		return out
	}
	maps.Copy(out, v.configured().ExposedPorts)
	for _, p := range v.ports() {
		if port, ok := portOf(p); ok && p.Host == 0 {
			out[port] = struct{}{}
		}
	}
	return out
}

func (v *view) portMap() network.PortMap {
	m := network.PortMap{}
	if st := v.state(); st != container.StateRunning && st != container.StatePaused {
		return m
	}
	for port := range v.unbound() {
		m[port] = nil
	}
	for _, p := range v.ports() {
		if port, ok := portOf(p); ok && p.Host != 0 {
			m[port] = append(m[port], network.PortBinding{HostIP: hostIP(p.Ip), HostPort: strconv.Itoa(int(p.Host))})
		}
	}
	return m
}

// networkMode returns docker's network mode, with default spelled out.
func (v *view) networkMode() string {
	switch m := string(v.req.HostConfig.NetworkMode); m {
	case "", "default":
		return "bridge"
	default:
		return m
	}
}

// networks returns what docker says of a container in its networks, by name. Addresses are
// there while it runs.
func (v *view) networks() map[string]*network.EndpointSettings {
	st := v.state()
	up := st == container.StateRunning || st == container.StatePaused
	out := map[string]*network.EndpointSettings{}
	if mode := v.networkMode(); fields.Bridged(&v.req) || mode == network.NetworkHost || mode == network.NetworkNone {
		e := &network.EndpointSettings{NetworkID: networkID(mode)}
		if up && v.st != nil && v.st.Ip != "" {
			e.EndpointID = hexID(v.t)
			e.IPAddress, _ = netip.ParseAddr(v.st.Ip)
			e.Gateway, _ = netip.ParseAddr(v.st.Gateway)
			e.IPPrefixLen = int(v.st.PrefixLen)
			_ = e.MacAddress.UnmarshalText([]byte(v.st.Mac))
		}
		out[mode] = e
	}
	for e := range v.snap.EndpointsOfTask(v.t.Id) {
		if n := v.snap.Network(e.NetworkId); n != nil && !e.Leaving {
			out[n.Name] = v.endpoint(n, e, up)
		}
	}
	return out
}

func (v *view) endpoint(n *dv1.Network, e *dv1.Endpoint, up bool) *network.EndpointSettings {
	out := &network.EndpointSettings{NetworkID: hex.EncodeToString(n.Id), Aliases: e.Aliases, DriverOpts: e.DriverOpts, GwPriority: int(e.GatewayPriority)}
	out.DNSNames = state.NamesIn(v.t, e)
	for _, alias := range slices.Sorted(maps.Keys(e.Links)) {
		out.Links = append(out.Links, e.Links[alias]+":"+alias)
	}
	if e.AskedIp != "" || e.AskedIp6 != "" || len(e.LinkLocal) > 0 {
		out.IPAMConfig = &network.EndpointIPAMConfig{}
		out.IPAMConfig.IPv4Address, _ = netip.ParseAddr(e.AskedIp)
		out.IPAMConfig.IPv6Address, _ = netip.ParseAddr(e.AskedIp6)
		for _, l := range e.LinkLocal {
			if a, err := netip.ParseAddr(l); err == nil {
				out.IPAMConfig.LinkLocalIPs = append(out.IPAMConfig.LinkLocalIPs, a)
			}
		}
	}
	if !up {
		return out
	}
	out.EndpointID = hex.EncodeToString(e.Id)
	_ = out.MacAddress.UnmarshalText([]byte(e.Mac))
	out.IPAddress, out.Gateway, out.IPPrefixLen = addressed(n, e.Ip)
	out.GlobalIPv6Address, out.IPv6Gateway, out.GlobalIPv6PrefixLen = addressed(n, e.Ip6)
	return out
}

// addressed returns an address with its subnet's gateway and prefix length. An internal
// network has no gateway to its containers.
func addressed(n *dv1.Network, text string) (ip, gateway netip.Addr, bits int) {
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, netip.Addr{}, 0
	}
	for _, s := range n.Subnets {
		p, err := netip.ParsePrefix(s.Prefix)
		if err != nil || !p.Contains(ip) {
			continue
		}
		if !n.Internal {
			gateway, _ = netip.ParseAddr(s.Gateway)
		}
		return ip, gateway, p.Bits()
	}
	return ip, gateway, ip.BitLen()
}

// networkID is stable: the default networks are the same across the fleet.
func networkID(name string) string {
	return fmt.Sprintf("%x", sha(name))
}

// mounts returns a container's mount points in docker's shape, sorted by destination: the
// binds of its request, and what the log has of volumes and of other containers.
func (v *view) mounts() []container.MountPoint {
	out := []container.MountPoint{}
	points, _ := mounts.Of(v.req.HostConfig) // they were checked before they were committed
	for _, p := range points {
		switch p.Type {
		case mount.TypeBind:
			m := container.MountPoint{Type: p.Type, Source: p.Source, Destination: p.Target, Mode: p.Mode, RW: !p.ReadOnly, Propagation: mount.PropagationRPrivate}
			if o := p.BindOptions; o != nil && o.Propagation != "" {
				m.Propagation = o.Propagation
			}
			out = append(out, m)
		case mount.TypeTmpfs:
			out = append(out, container.MountPoint{Type: p.Type, Destination: p.Target, RW: !p.ReadOnly})
		}
	}
	for _, m := range v.t.GetMounts() {
		p := container.MountPoint{Type: mount.TypeBind, Source: m.Source, Destination: m.Target, Mode: m.Mode, RW: !m.ReadOnly, Propagation: mount.Propagation(cmp.Or(m.Propagation, string(mount.PropagationRPrivate)))}
		if len(m.VolumeId) > 0 {
			p.Type, p.Propagation, p.Driver = mount.TypeVolume, "", volumes.Local
			if of := v.snap.Volume(m.VolumeId); of != nil {
				p.Name, p.Source = of.Name, mountpoint(of)
			}
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b container.MountPoint) int { return strings.Compare(a.Destination, b.Destination) })
	return out
}

func rfc3339(ns int64) string {
	if ns == 0 {
		return "0001-01-01T00:00:00Z"
	}
	return time.Unix(0, ns).UTC().Format(time.RFC3339Nano)
}
