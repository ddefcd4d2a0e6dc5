package network

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Bridge is the name of the node's own network.
const Bridge = "bridge"

// Connection is what a container requests of one network.
type Connection struct {
	Network string
	Name    string // of the interface in the container; "" is eth0, eth1, ... by position
	// GatewayPriority decides whose gateway is the container's default route: the one with
	// the highest priority, the first of several.
	GatewayPriority int
	Ports           []*dv1.Port // to be published; host 0 is any
}

// Sandbox is a container's network, as in its file.
type Sandbox struct {
	Version   int
	ID        string // of the container
	Netns     string // path
	Endpoints []Endpoint
	Boot      string // the boot that made namespace and links
}

// Endpoint is a container's attachment to one network.
type Endpoint struct {
	Network         string
	Name            string         // of the interface in the container
	Link            string         // the host's end of its veth pair
	Addresses       []netip.Prefix // IPv4 only, yet
	Gateway         netip.Addr
	GatewayPriority int
	MAC             string
	Ports           []Port // as bound
}

// Port is a published port, bound.
type Port struct {
	IP        string // "" is every address
	Proto     string
	Host      uint16
	Container uint16
}

// check refuses what nodes don't support yet.
func check(to []Connection) error {
	if len(to) != 1 || to[0].Network != Bridge {
		return fmt.Errorf("a container has exactly one endpoint yet, on the network %q", Bridge)
	}
	return nil
}

// endpoint builds the endpoint for a connection, the i-th of container id.
func (c Connection) endpoint(i int, id string, at netip.Prefix, gateway netip.Addr) Endpoint {
	e := Endpoint{
		Network: c.Network, Name: cmp.Or(c.Name, fmt.Sprint("eth", i)), Link: linkName(id, i), Addresses: []netip.Prefix{at},
		Gateway: gateway, GatewayPriority: c.GatewayPriority, MAC: mac(at.Addr()),
	}
	for _, p := range c.Ports {
		e.Ports = append(e.Ports, Port{IP: wildcard(p.GetIp()), Proto: cmp.Or(p.GetProto(), "tcp"), Host: uint16(p.GetHost()), Container: uint16(p.GetContainer())})
	}
	return e
}

// Default returns the endpoint with the default route.
func (s *Sandbox) Default() Endpoint {
	first := s.Endpoints[0]
	for _, e := range s.Endpoints[1:] {
		if e.GatewayPriority > first.GatewayPriority {
			first = e
		}
	}
	return first
}

// IPv4 returns the endpoint's IPv4 address, with the prefix length of its network; the
// zero Prefix if it has none.
func (e Endpoint) IPv4() netip.Prefix {
	for _, a := range e.Addresses {
		if a.Addr().Is4() {
			return a
		}
	}
	return netip.Prefix{}
}

// Ports returns the published ports of all endpoints, as in the API and raft.
func (s *Sandbox) Ports() []*dv1.Port {
	var out []*dv1.Port
	for _, e := range s.Endpoints {
		for _, p := range e.Ports {
			out = append(out, &dv1.Port{Ip: p.IP, Proto: p.Proto, Host: uint32(p.Host), Container: uint32(p.Container)})
		}
	}
	return out
}

// mac follows docker's scheme, 02:42 and the address, so that no two are alike.
func mac(ip netip.Addr) string {
	b := ip.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}.String()
}

// linkName names the host's end of a container's i-th veth pair, within the kernel's 15
// characters.
func linkName(id string, i int) string {
	if i == 0 {
		return "dvr" + id[:min(12, len(id))]
	}
	return fmt.Sprintf("dvr%s-%d", id[:min(9, len(id))], i)
}

func wildcard(ip string) string {
	if ip == "0.0.0.0" || ip == "::" {
		return ""
	}
	return ip
}
