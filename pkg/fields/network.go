package fields

import "github.com/moby/moby/api/types/network"

// NetworkCreate, Connect and Disconnect list the fields of network requests, none of
// which is carried out yet. Their rows apply once networks exist.
var (
	NetworkCreate = table([]Row[network.CreateRequest]{
		{Path: "Name", Class: Fleet},
		{Path: "Driver", Class: Refused, Why: "network drivers other than bridge are", But: []string{"bridge"}},
		{Path: "Scope", Class: Refused, Why: "scopes of networks are", But: []string{"local"}},
		{Path: "EnableIPv4", Class: Refused, Why: "networks without IPv4 are", Asks: func(r *network.CreateRequest) bool { return r.EnableIPv4 != nil && !*r.EnableIPv4 }},
		{Path: "EnableIPv6", Class: Refused, Why: "IPv6 is"},
		{Path: "IPAM.Driver", Class: Refused, Why: "address drivers are", But: []string{"default"}},
		{Path: "IPAM.Options", Class: Refused, Why: "options of addresses are"},
		{Path: "IPAM.Config[].Subnet", Class: Refused, Why: "chosen subnets are"},
		{Path: "IPAM.Config[].IPRange", Class: Refused, Why: "chosen ranges are"},
		{Path: "IPAM.Config[].Gateway", Class: Refused, Why: "chosen gateways are"},
		{Path: "IPAM.Config[].AuxiliaryAddresses", Class: Refused, Why: "reserved addresses are"},
		{Path: "Internal", Class: Refused, Why: "internal networks are"},
		{Path: "Attachable", Class: Inert, Why: "Swarm's; any container may join"},
		{Path: "Ingress", Class: Refused, Why: "Swarm's routing mesh is"},
		{Path: "ConfigOnly", Class: Refused, Why: "networks of configuration only are"},
		{Path: "ConfigFrom", Class: Refused, Why: "networks of configuration only are"},
		{Path: "Options", Class: Refused, Why: "options of networks are"},
		{Path: "Labels", Class: Refused, Why: "labels of networks are"},
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
