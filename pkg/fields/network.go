package fields

import (
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// NetworkCreate, Connect and Disconnect list the fields of network requests. What their
// values mean is decided with the fleet's state.
var (
	NetworkCreate = table([]Row[network.CreateRequest]{
		{Path: "Name", Class: Fleet},
		{Path: "Driver", Class: Fleet},
		{Path: "Scope", Class: Refused, Why: "scopes of networks are", But: []string{"local"}},
		{Path: "EnableIPv4", Class: Fleet},
		{Path: "EnableIPv6", Class: Fleet},
		{Path: "IPAM.Driver", Class: Refused, Why: "address drivers are", But: []string{"default"}},
		{Path: "IPAM.Options", Class: Inert, Why: "docker's own driver of addresses has none"},
		{Path: "IPAM.Config[].Subnet", Class: Fleet},
		{Path: "IPAM.Config[].IPRange", Class: Fleet},
		{Path: "IPAM.Config[].Gateway", Class: Fleet},
		{Path: "IPAM.Config[].AuxiliaryAddresses", Class: Fleet},
		{Path: "Internal", Class: Fleet},
		{Path: "Attachable", Class: Inert, Why: "Swarm's; any container may join"},
		{Path: "Ingress", Class: Refused, Why: "Swarm's routing mesh is"},
		{Path: "ConfigOnly", Class: Refused, Why: "networks of configuration only are"},
		{Path: "ConfigFrom", Class: Refused, Why: "networks of configuration only are"},
		{Path: "Options", Class: Fleet},
		{Path: "Labels", Class: Fleet},
	})
	Connect = table([]Row[network.ConnectRequest]{
		{Path: "Container", Class: Fleet},
	}, endpoint[network.ConnectRequest]("EndpointConfig"))
	Disconnect = table([]Row[network.DisconnectRequest]{
		{Path: "Container", Class: Fleet},
		{Path: "Force", Class: Inert, Why: "there is nothing left of a container that is gone"},
	})
)

// endpoint lists the fields of a container's settings in one network. Clients that clone
// a container send back what docker reports of a running one.
func endpoint[T any](at string) []Row[T] {
	const told = "docker's to say, not the client's"
	return []Row[T]{
		{Path: at + ".IPAMConfig.IPv4Address", Class: Fleet},
		{Path: at + ".IPAMConfig.IPv6Address", Class: Fleet},
		{Path: at + ".IPAMConfig.LinkLocalIPs", Class: Fleet},
		{Path: at + ".Links", Class: Fleet},
		{Path: at + ".Aliases", Class: Fleet},
		{Path: at + ".DriverOpts", Class: Fleet},
		{Path: at + ".GwPriority", Class: Fleet},
		{Path: at + ".NetworkID", Class: Inert, Why: told},
		{Path: at + ".EndpointID", Class: Inert, Why: told},
		{Path: at + ".Gateway", Class: Inert, Why: told},
		{Path: at + ".IPAddress", Class: Inert, Why: told},
		{Path: at + ".MacAddress", Class: Fleet},
		{Path: at + ".IPPrefixLen", Class: Inert, Why: told},
		{Path: at + ".IPv6Gateway", Class: Inert, Why: told},
		{Path: at + ".GlobalIPv6Address", Class: Inert, Why: told},
		{Path: at + ".GlobalIPv6PrefixLen", Class: Inert, Why: told},
		{Path: at + ".DNSNames", Class: Inert, Why: told},
	}
}

// Bridged reports whether a container is in its node's own network: as in docker, that is
// the default only for one that names no other.
func Bridged(r *container.CreateRequest) bool {
	if r.Config != nil && r.NetworkDisabled {
		return false
	}
	if r.HostConfig != nil && networkName(r.HostConfig.NetworkMode) != network.NetworkBridge {
		return false
	}
	if r.NetworkingConfig == nil || len(r.NetworkingConfig.EndpointsConfig) == 0 {
		return true
	}
	for name := range r.NetworkingConfig.EndpointsConfig {
		if networkName(container.NetworkMode(name)) == network.NetworkBridge {
			return true
		}
	}
	return false
}

// linksByDefault reports whether a request links containers of the default network. In
// others the endpoint has the links, and clients list them here too, where docker ignores
// them.
func linksByDefault(r *container.CreateRequest) bool {
	h := r.HostConfig
	return h != nil && len(h.Links) > 0 && !networkName(h.NetworkMode).IsUserDefined() && !h.NetworkMode.IsHost()
}

// CheckMAC refuses a MAC address that is asked for a whole container, as docker's API had it
// until 1.44, where that has no network of the fleet.
func CheckMAC(r *container.CreateRequest) error {
	if Bridged(r) {
		return unavailable("MacAddress", "chosen MAC addresses in the default network are")
	}
	if !PublishesPorts(r) {
		return invalid("MacAddress", "conflicting options: mac-address and the network mode")
	}
	return nil
}

// checkBridged refuses settings that only networks of the fleet have, in docker's words
// where it has some.
func checkBridged(name string, e *network.EndpointSettings) error {
	field := "NetworkingConfig.EndpointsConfig." + name
	switch c := e.IPAMConfig; {
	case c != nil && (c.IPv4Address.IsValid() || c.IPv6Address.IsValid()):
		return invalid(field+".IPAMConfig", "invalid endpoint settings:\nuser-specified IP address is supported on user-defined networks only")
	case len(e.Aliases) > 0:
		return invalid(field+".Aliases", "invalid endpoint settings:\nnetwork-scoped aliases are only supported for user-defined networks")
	case c != nil && len(c.LinkLocalIPs) > 0:
		return unavailable(field+".IPAMConfig.LinkLocalIPs", "chosen addresses in the default network are")
	case len(e.Links) > 0:
		return unavailable(field+".Links", "links in the default network are")
	case len(e.MacAddress) > 0:
		return unavailable(field+".MacAddress", "chosen MAC addresses in the default network are")
	case len(e.DriverOpts) > 0:
		return unavailable(field+".DriverOpts", "options of an endpoint in the default network are")
	}
	return nil
}
