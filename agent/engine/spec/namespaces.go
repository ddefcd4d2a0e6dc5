package spec

import (
	"maps"
	"slices"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultNetwork is the name of a node's own network.
const DefaultNetwork = "bridge"

// Networks returns the names of the networks that a request asks for, in a network
// namespace of the container's own; host reports that it uses the host's instead.
func Networks(c container.CreateRequest) (names []string, host bool) {
	var mode container.NetworkMode
	if c.HostConfig != nil {
		mode = c.HostConfig.NetworkMode
	}
	switch {
	case mode.IsHost():
		return nil, true
	case mode.IsNone(), c.HostConfig != nil && c.Config != nil && c.NetworkDisabled:
		return nil, false
	}
	return []string{DefaultNetwork}, false
}

func namespaces(s *specs.Spec, c container.CreateRequest, netns string) {
	h := c.HostConfig
	switch names, host := Networks(c); {
	case host:
		share(s, specs.NetworkNamespace)
	case len(names) > 0: // the sandbox that is created at each start
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
	if _, host := Networks(c); !host {
		all["net.ipv4.ping_group_range"] = "0 2147483647"
		all["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	maps.Copy(all, c.HostConfig.Sysctls)
	if len(all) > 0 {
		s.Linux.Sysctl = all
	}
}
