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
func (e *Engine) writeFiles(s task.Spec, in *network.Sandbox) error {
	name := spec.Hostname(s.Create, s.ID, e.o.HostName)
	h := s.Create.HostConfig
	if h == nil {
		h = &container.HostConfig{}
	}
	names, _ := spec.Networks(s.Create)
	for file, text := range map[string]string{
		spec.HostsFile:    hostsText("/", s.Create, name, in, e.o.Network.Gateway()),
		spec.HostnameFile: name + "\n",
		spec.ResolvFile:   resolvConf("/", h, len(names) > 0),
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
	if _, host := spec.Networks(c); host {
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
	names := name
	if c.Config != nil && c.Domainname != "" {
		names = name + "." + c.Domainname + " " + name
	}
	if in != nil {
		for _, e := range in.Endpoints {
			for _, a := range e.Addresses {
				text += a.Addr().String() + "\t" + names + "\n"
			}
		}
	}
	return text
}
