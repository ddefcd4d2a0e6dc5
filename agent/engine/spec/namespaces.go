package spec

import (
	"maps"
	"slices"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/pkg/fields"
)

// Network says where a container's network namespace comes from.
type Network int

const (
	NoNetwork    Network = iota // it has an empty one, which the runtime makes
	OwnNetwork                  // its sandbox
	HostNetwork                 // the host's
	OtherNetwork                // that of another container
)

// NetworkOf returns where a container's network namespace comes from.
func NetworkOf(c container.CreateRequest) Network {
	mode := mode(c)
	switch {
	case mode.IsHost():
		return HostNetwork
	case mode.IsContainer():
		return OtherNetwork
	case mode.IsNone(), c.HostConfig != nil && c.Config != nil && c.NetworkDisabled:
		return NoNetwork
	}
	return OwnNetwork
}

// Bridged reports whether a container is in the node's own network.
func Bridged(c container.CreateRequest) bool { return fields.Bridged(&c) }

// Joined returns the id of the container whose network namespace a container shares, ""
// for none.
func Joined(c container.CreateRequest) string { return mode(c).ConnectedContainer() }

func mode(c container.CreateRequest) container.NetworkMode {
	if c.HostConfig == nil {
		return ""
	}
	return c.HostConfig.NetworkMode
}

func namespaces(s *specs.Spec, c container.CreateRequest, netns string) {
	h := c.HostConfig
	switch NetworkOf(c) {
	case HostNetwork:
		share(s, specs.NetworkNamespace)
	case OwnNetwork, OtherNetwork: // the sandbox that is created at each start
		own(s, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns})
	}
	if h.PidMode.IsHost() {
		share(s, specs.PIDNamespace)
	}
	if h.IpcMode.IsHost() {
		share(s, specs.IPCNamespace)
	}
	if h.UTSMode.IsHost() {
		share(s, specs.UTSNamespace)
		s.Hostname = ""
	}
	switch {
	case h.CgroupnsMode.IsPrivate():
		own(s, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	case h.CgroupnsMode.IsHost():
		share(s, specs.CgroupNamespace)
	}
}

// share puts a container into the host's namespace.
func share(s *specs.Spec, of specs.LinuxNamespaceType) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == of })
}

func own(s *specs.Spec, ns specs.LinuxNamespace) {
	i := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == ns.Type })
	if i < 0 {
		s.Linux.Namespaces = append(s.Linux.Namespaces, ns)
		return
	}
	s.Linux.Namespaces[i] = ns
}

// sysctls are docker's defaults, overridden by the user's. In a network namespace of its
// own, any user may listen on any port and send ICMP echo requests.
func sysctls(s *specs.Spec, c container.CreateRequest) {
	all := map[string]string{}
	if c.Domainname != "" { // not the spec's field, which only runc 1.2 and later supports
		all["kernel.domainname"] = c.Domainname
	}
	if n := NetworkOf(c); n == OwnNetwork || n == NoNetwork {
		all["net.ipv4.ping_group_range"] = "0 2147483647"
		all["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	maps.Copy(all, c.HostConfig.Sysctls)
	if len(all) > 0 {
		s.Linux.Sysctl = all
	}
}
