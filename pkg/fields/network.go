package fields

import "github.com/moby/moby/api/types/network"

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
		{Path: "Force", Class: Refused, Why: "leaving a network by force is"},
	})
)

// endpoint lists the fields of a container's settings in one network. Clients that clone
// a container send back what docker reports of a running one.
func endpoint[T any](at string) []Row[T] {
	const told = "docker's to say, not the client's"
	return []Row[T]{
		{Path: at + ".IPAMConfig.IPv4Address", Class: Refused, Why: "chosen addresses are"},
		{Path: at + ".IPAMConfig.IPv6Address", Class: Refused, Why: "chosen addresses are"},
		{Path: at + ".IPAMConfig.LinkLocalIPs", Class: Refused, Why: "chosen addresses are"},
		{Path: at + ".Links", Class: Refused, Why: "links are"},
		{Path: at + ".Aliases", Class: Refused, Why: "aliases in a network are"},
		{Path: at + ".DriverOpts", Class: Refused, Why: "options of an endpoint are"},
		{Path: at + ".GwPriority", Class: Refused, Why: "priorities of gateways are"},
		{Path: at + ".NetworkID", Class: Inert, Why: told},
		{Path: at + ".EndpointID", Class: Inert, Why: told},
		{Path: at + ".Gateway", Class: Inert, Why: told},
		{Path: at + ".IPAddress", Class: Inert, Why: told},
		{Path: at + ".MacAddress", Class: Refused, Why: "chosen MAC addresses are"},
		{Path: at + ".IPPrefixLen", Class: Inert, Why: told},
		{Path: at + ".IPv6Gateway", Class: Inert, Why: told},
		{Path: at + ".GlobalIPv6Address", Class: Inert, Why: told},
		{Path: at + ".GlobalIPv6PrefixLen", Class: Inert, Why: told},
		{Path: at + ".DNSNames", Class: Inert, Why: told},
	}
}
