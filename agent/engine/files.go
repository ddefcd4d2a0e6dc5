package engine

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/task"
)

// writeFiles writes the container's hosts, hostname and resolv.conf for its sandbox, nil
// for none. They are changed in place, since a running container has them mounted.
func (e *Engine) writeFiles(s task.Spec, in *network.Sandbox, want []connection) error {
	name := spec.Hostname(s.Create, s.ID, e.o.HostName)
	h := s.Create.HostConfig
	if h == nil {
		h = &container.HostConfig{}
	}
	resolv := resolvConf("/", h, spec.NetworkOf(s.Create) == spec.OwnNetwork)
	if inFleet(want) {
		resolv = resolverConf("/", h)
	}
	for file, text := range map[string]string{
		spec.HostsFile:    hostsText("/", s.Create, name, in, e.o.Network.Gateway()),
		spec.HostnameFile: name + "\n",
		spec.ResolvFile:   resolv,
	} {
		if err := os.WriteFile(filepath.Join(e.o.dir(s.ID), file), []byte(text), 0o644); err != nil {
			return fmt.Errorf("writing %s of %s: %w", file, short(s.ID), err)
		}
	}
	return nil
}

const usualHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n" +
	"ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"

// hostsText returns a container's /etc/hosts: in the host's network, whose root is
// given, the host's own file; then requested hosts, and the container itself in its
// networks.
func hostsText(root string, c container.CreateRequest, name string, in *network.Sandbox, gateway netip.Addr) string {
	text := usualHosts
	if spec.NetworkOf(c) == spec.HostNetwork {
		if b, err := os.ReadFile(filepath.Join(root, "etc/hosts")); err == nil {
			text = string(b)
		}
	}
	if c.HostConfig != nil {
		for _, x := range c.HostConfig.ExtraHosts {
			host, addr, ok := strings.Cut(x, ":")
			if !ok {
				continue
			}
			if addr == "host-gateway" {
				addr = gateway.String()
			}
			text += addr + "\t" + host + "\n"
		}
	}
	for _, l := range ownHosts(in, ownNames(c, name)) {
		text += l + "\n"
	}
	return text
}

// ownNames returns a container's names in its hosts file: with its domain, and without.
func ownNames(c container.CreateRequest, name string) string {
	if c.Config != nil && c.Domainname != "" {
		name += "." + c.Domainname
	}
	if first, _, ok := strings.Cut(name, "."); ok {
		name += " " + first
	}
	return name
}

// ownHosts returns a container's lines in its hosts file, none without a sandbox.
func ownHosts(in *network.Sandbox, names string) (lines []string) {
	if in == nil {
		return nil
	}
	for _, e := range in.Endpoints {
		for _, a := range e.Addresses {
			lines = append(lines, a.Addr().String()+"\t"+names)
		}
	}
	return lines
}
