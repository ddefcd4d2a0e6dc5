package network

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Bridge is the name of the node's own network.
const Bridge = "bridge"

// Connection is what a container requests of one network.
type Connection struct {
	Network string // Bridge, or the id of a network that Apply was told of
	// Addresses are those that the fleet chose, one of each family of the network. On
	// Bridge the node chooses.
	Addresses []netip.Addr
	LinkLocal []netip.Addr // in addition, of 169.254.0.0/16 or fe80::/10
	MAC       string       // "" is derived from the first address
	// Options are docker's driver options of an endpoint: the interface's name
	// (com.docker.network.endpoint.ifname; else eth0, eth1 ... as is free), and sysctls of
	// it (com.docker.network.endpoint.sysctls). Others are ignored.
	Options map[string]string
	// GatewayPriority decides whose gateway is the container's default route: the one with
	// the highest priority, the first of several. Internal networks have none.
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
	Bridge          string         // "" is the node's own, as in files of version 2
	Name            string         // of the interface in the container
	Link            string         // the host's end of its veth pair
	Addresses       []netip.Prefix // with the prefix length of the network
	LinkLocal       []netip.Prefix `json:",omitempty"`
	Gateway         netip.Addr     // the zero Addr: none, as on internal networks
	Gateway6        netip.Addr
	GatewayPriority int
	MAC             string
	MTU             int               `json:",omitempty"`
	Sysctls         map[string]string `json:",omitempty"` // below /proc/sys/net in the container
	Ports           []Port            // as bound
	// Unfinished means that it is being made or removed: of its link, any part may be there.
	Unfinished bool `json:",omitempty"`
}

// Port is a published port, bound.
type Port struct {
	IP        string // "" is every address
	Proto     string
	Host      uint16
	Container uint16
}

// Driver options of an endpoint, which are docker's.
const (
	optionName    = "com.docker.network.endpoint.ifname"
	optionSysctls = "com.docker.network.endpoint.sysctls"
)

// check refuses connections that no node can make.
func check(to []Connection) error {
	seen := map[string]bool{}
	for _, c := range to {
		if seen[c.Network] {
			return fmt.Errorf("it is connected to the network %s twice", c.Network)
		}
		seen[c.Network] = true
		if c.MAC == "" {
			continue
		}
		if hw, err := net.ParseMAC(c.MAC); err != nil || len(hw) != 6 || hw[0]&1 == 1 {
			return fmt.Errorf("invalid MAC address %q", c.MAC)
		}
	}
	return nil
}

// endpoint builds an endpoint for a connection, beside others of container id.
func (c Connection) endpoint(id string, beside []Endpoint) (Endpoint, error) {
	e := Endpoint{Network: c.Network, GatewayPriority: c.GatewayPriority, MAC: c.MAC}
	for i := 0; e.Link == ""; i++ {
		if l := linkName(id, i); !slices.ContainsFunc(beside, func(e Endpoint) bool { return e.Link == l }) {
			e.Link = l
		}
	}
	if len(e.Link) > maxName {
		return e, fmt.Errorf("it has %d endpoints already", len(beside))
	}
	named := func(name string) bool {
		return slices.ContainsFunc(beside, func(e Endpoint) bool { return e.Name == name })
	}
	e.Name = c.Options[optionName]
	for i := 0; e.Name == ""; i++ {
		if name := fmt.Sprint("eth", i); !named(name) {
			e.Name = name
		}
	}
	if named(e.Name) || e.Name == "lo" || len(e.Name) > maxName || strings.ContainsAny(e.Name, "/ \t\n:") || e.Name == "." || e.Name == ".." {
		return e, fmt.Errorf("%q can't be the name of an interface of it", e.Name)
	}
	for _, a := range c.LinkLocal {
		bits := 16
		if a.Is6() {
			bits = 64
		}
		if !a.IsLinkLocalUnicast() {
			return e, fmt.Errorf("%v is not a link-local address", a)
		}
		e.LinkLocal = append(e.LinkLocal, netip.PrefixFrom(a, bits))
	}
	for _, p := range c.Ports {
		e.Ports = append(e.Ports, Port{IP: wildcard(p.GetIp()), Proto: cmp.Or(p.GetProto(), "tcp"), Host: uint16(p.GetHost()), Container: uint16(p.GetContainer())})
	}
	var err error
	e.Sysctls, err = sysctlsFor(e.Name, c.Options[optionSysctls])
	return e, err
}

// sysctlsFor parses docker's list of an interface's sysctls: key=value, separated by
// commas, with IFNAME for its name.
func sysctlsFor(name, list string) (map[string]string, error) {
	out := map[string]string{}
	for s := range strings.SplitSeq(list, ",") {
		if s == "" {
			continue
		}
		key, value, ok := strings.Cut(s, "=")
		parts := strings.Split(key, ".")
		if !ok || len(parts) != 5 || parts[0] != "net" || !slices.Contains([]string{"ipv4", "ipv6", "mpls"}, parts[1]) ||
			!slices.Contains([]string{"conf", "neigh"}, parts[2]) || parts[3] != "IFNAME" || strings.ContainsAny(parts[4], "/") {
			return nil, fmt.Errorf("%q is not a sysctl of an interface, as net.ipv4.conf.IFNAME.log_martians=1", s)
		}
		parts[3] = name
		out[strings.Join(parts[1:], "/")] = value
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// Default returns the endpoint with the default route, else the first one; the zero
// Endpoint if there is none.
func (s *Sandbox) Default() Endpoint {
	if i := s.route(func(e Endpoint) bool { return e.Gateway.IsValid() || e.Gateway6.IsValid() }); i >= 0 {
		return s.Endpoints[i]
	}
	if len(s.Endpoints) > 0 {
		return s.Endpoints[0]
	}
	return Endpoint{}
}

// route returns which of the endpoints that may have it has a default route, -1 if none.
func (s *Sandbox) route(may func(Endpoint) bool) int {
	best := -1
	for i, e := range s.Endpoints {
		if may(e) && (best < 0 || e.GatewayPriority > s.Endpoints[best].GatewayPriority) {
			best = i
		}
	}
	return best
}

// unpublished returns a copy without published ports.
func (s *Sandbox) unpublished() *Sandbox {
	out := *s
	out.Endpoints = slices.Clone(s.Endpoints)
	for i := range out.Endpoints {
		out.Endpoints[i].Ports = nil
	}
	return &out
}

// in returns the endpoint in a network, nil if there is none.
func (s *Sandbox) in(network string) *Endpoint {
	for i := range s.Endpoints {
		if s.Endpoints[i].Network == network {
			return &s.Endpoints[i]
		}
	}
	return nil
}

// IPv4 returns the endpoint's IPv4 address, with the prefix length of its network; the
// zero Prefix if it has none.
func (e Endpoint) IPv4() netip.Prefix { return e.address(netip.Addr.Is4) }

// IPv6 is IPv4 of the other family.
func (e Endpoint) IPv6() netip.Prefix { return e.address(netip.Addr.Is6) }

func (e Endpoint) address(is func(netip.Addr) bool) netip.Prefix {
	for _, a := range e.Addresses {
		if is(a.Addr()) {
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

// mac follows docker's scheme, 02:42 and the address, so that no two are alike. Of IPv6
// it takes the last bytes.
func mac(ip netip.Addr) string {
	b := ip.AsSlice()
	b = b[len(b)-4:]
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}.String()
}

// linkLocal is the address that the kernel derives from a hardware address (EUI-64).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// maxName is how long the kernel lets a link's name be.
const maxName = 15

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
