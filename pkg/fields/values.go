package fields

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/sys/signal"

	"github.com/drover/drover/pkg/runtimes"
	"github.com/drover/drover/pkg/securityopt"
)

// CheckCreate refuses, with an *Error, a create request that no node could carry out as
// it stands, and returns the warnings about one that is valid. What depends on a node
// (its kernel, CPUs, files) is checked by the node.
func CheckCreate(r *container.CreateRequest) (warnings []string, err error) {
	h := r.HostConfig
	if h == nil {
		h = &container.HostConfig{}
	}
	for _, check := range []func() error{
		func() error { return checkConfig(r.Config) },
		func() error { return checkMounts(h) },
		func() error { return checkHost(h) },
		func() error { return checkModes(h) },
		func() error { return checkJoined(r.Config, h) },
		func() error { return checkNetwork(h, r.NetworkingConfig) },
		func() error { return checkResources(&h.Resources) },
	} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	if warnings, err = Create.Check(r); err != nil {
		return nil, err
	}
	return append(warnings, remarks(r, h)...), nil
}

// maxHostname is Linux's limit.
const maxHostname = 64

func checkConfig(c *container.Config) error {
	if c == nil {
		return nil
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return invalid("WorkingDir", "the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	if len(c.Hostname) > maxHostname {
		return invalid("Hostname", "hostname %q is too long (maximum %d bytes)", c.Hostname, maxHostname)
	}
	if c.StopSignal != "" {
		if _, err := signal.ParseSignal(c.StopSignal); err != nil {
			return invalid("StopSignal", "%v", err)
		}
	}
	for _, e := range c.Env {
		if e == "" || e[0] == '=' {
			return invalid("Env", "invalid environment variable: %s", e)
		}
	}
	return nil
}

// Reserved reports whether an annotation may not be set by users: it would control what
// runs the container, and could join it to the shim of another one.
func Reserved(annotation string) bool {
	return slices.ContainsFunc([]string{"io.containerd.", "io.kubernetes.cri", "io.drover."}, func(p string) bool { return strings.HasPrefix(annotation, p) })
}

func checkHost(h *container.HostConfig) error {
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return invalid("HostConfig.RestartPolicy", "%v", err)
	}
	switch t := h.LogConfig.Type; t {
	case "", "json-file", "local":
	case "none":
		return unavailable("HostConfig.LogConfig.Type", "a container without a log is")
	default:
		return invalid("HostConfig.LogConfig.Type", "logger: no log driver named '%s' is registered", t)
	}
	if h.Runtime != "" && !runtimes.Named(h.Runtime) && !filepath.IsAbs(h.Runtime) {
		return invalid("HostConfig.Runtime", "unknown or invalid runtime name: %s", h.Runtime)
	}
	if !h.Isolation.IsDefault() {
		return invalid("HostConfig.Isolation", "invalid isolation '%s' on linux", h.Isolation)
	}
	if _, err := securityopt.Parse(h.SecurityOpt); err != nil {
		return invalid("HostConfig.SecurityOpt", "%v", err)
	}
	for _, caps := range []struct {
		name string
		list []string
	}{{"CapAdd", h.CapAdd}, {"CapDrop", h.CapDrop}} {
		for _, c := range caps.list {
			if full := "CAP_" + strings.TrimPrefix(strings.ToUpper(c), "CAP_"); full != "CAP_ALL" && !slices.Contains(cap.Known(), full) {
				return invalid("HostConfig."+caps.name, "invalid %s: unknown capability: %q", caps.name, full)
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(h.Annotations)) {
		if k == "" {
			return invalid("HostConfig.Annotations", "invalid Annotations: the empty string is not permitted as an annotation key")
		}
		if Reserved(k) {
			return invalid("HostConfig.Annotations", "invalid HostConfig.Annotations: %s is not for users to set", k)
		}
	}
	for _, x := range h.ExtraHosts {
		name, ip, ok := strings.Cut(x, ":")
		if !ok || name == "" {
			return invalid("HostConfig.ExtraHosts", "bad format for add-host: %q", x)
		}
		if _, err := netip.ParseAddr(ip); err != nil && ip != "host-gateway" {
			return invalid("HostConfig.ExtraHosts", "invalid IP address in add-host: %q", ip)
		}
	}
	if h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000 {
		return invalid("HostConfig.OomScoreAdj", "Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	}
	if h.ShmSize < 0 {
		return invalid("HostConfig.ShmSize", "SHM size can not be less than 0")
	}
	return nil
}

// checkModes checks whose namespaces are shared.
func checkModes(h *container.HostConfig) error {
	switch {
	case !h.IpcMode.Valid():
		return invalid("HostConfig.IpcMode", "invalid IPC mode: %v", h.IpcMode)
	case h.IpcMode.IsContainer():
		return unavailable("HostConfig.IpcMode", "sharing another container's IPC namespace is")
	case !h.PidMode.Valid():
		return invalid("HostConfig.PidMode", "invalid PID mode: %v", h.PidMode)
	case h.PidMode.IsContainer():
		return unavailable("HostConfig.PidMode", "sharing another container's PID namespace is")
	case !h.UTSMode.Valid():
		return invalid("HostConfig.UTSMode", "invalid UTS mode: %v", h.UTSMode)
	case !h.CgroupnsMode.Valid():
		return invalid("HostConfig.CgroupnsMode", "invalid cgroup namespace mode: %v", h.CgroupnsMode)
	}
	return nil
}

// checkJoined refuses, in docker's words, what a container that shares another one's
// network would need one of its own for.
func checkJoined(c *container.Config, h *container.HostConfig) error {
	mode := h.NetworkMode
	if !mode.IsContainer() && mode != "container" {
		return nil
	}
	if c == nil {
		c = &container.Config{}
	}
	const conflict = "conflicting options: "
	switch {
	case mode.ConnectedContainer() == "":
		return invalid("HostConfig.NetworkMode", "invalid network mode: invalid container format container:<name|id>")
	case c.Hostname != "":
		return invalid("Hostname", conflict+"hostname and the network mode")
	case len(h.Links) > 0:
		return invalid("HostConfig.Links", conflict+"container type network can't be used with links. This would result in undefined behavior")
	case len(h.DNS) > 0:
		return invalid("HostConfig.Dns", conflict+"dns and the network mode")
	case len(h.ExtraHosts) > 0:
		return invalid("HostConfig.ExtraHosts", conflict+"custom host-to-IP mapping and the network mode")
	case len(h.PortBindings) > 0 || h.PublishAllPorts:
		return invalid("HostConfig.PortBindings", conflict+"port publishing and the container type network mode")
	case len(c.ExposedPorts) > 0:
		return invalid("ExposedPorts", conflict+"port exposing and the container type network mode")
	}
	return nil
}

func checkNetwork(h *container.HostConfig, n *network.NetworkingConfig) error {
	mode := h.NetworkMode
	if mode.IsHost() && len(h.Links) > 0 {
		return invalid("HostConfig.Links", "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	if n != nil {
		for _, name := range slices.Sorted(maps.Keys(n.EndpointsConfig)) {
			if err := checkBeside(mode, name, n.EndpointsConfig[name]); err != nil {
				return err
			}
		}
	}
	for port, bindings := range h.PortBindings {
		if !port.IsValid() || port.Num() == 0 {
			return invalid("HostConfig.PortBindings", "invalid port specification: %q", port.String())
		}
		for _, b := range bindings {
			if b.HostPort == "" {
				continue
			}
			if _, err := network.ParsePortRange(b.HostPort); err != nil {
				return invalid("HostConfig.PortBindings", "invalid port specification: %q", b.HostPort)
			}
		}
	}
	return nil
}

// checkBeside checks one network of a container with a mode, which may be another one.
func checkBeside(mode container.NetworkMode, name string, e *network.EndpointSettings) error {
	own := container.NetworkMode(name)
	if own.IsUserDefined() {
		if mode.IsHost() || mode.IsNone() || mode.IsContainer() {
			return invalid("NetworkingConfig.EndpointsConfig."+name, "conflicting options: cannot attach both user-defined and non-user-defined network-modes")
		}
		return nil
	}
	if networkName(own) != networkName(mode) {
		return unavailable("NetworkingConfig.EndpointsConfig."+name, "a network of docker's own beside HostConfig.NetworkMode is")
	}
	switch {
	case e == nil:
		return nil
	case mode.IsContainer() && len(e.MacAddress) > 0:
		return invalid("NetworkingConfig.EndpointsConfig."+name+".MacAddress", "conflicting options: mac-address and the network mode")
	}
	return checkBridged(name, e)
}

func networkName(m container.NetworkMode) container.NetworkMode {
	if m == "" || m.IsDefault() {
		return network.NetworkBridge
	}
	return m
}

// minMemory is docker's minimum: a process can't start with less.
const minMemory = 6 << 20

func checkResources(r *container.Resources) error {
	switch {
	case r.Memory != 0 && r.Memory < minMemory:
		return invalid("HostConfig.Memory", "Minimum memory limit allowed is 6MB")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return invalid("HostConfig.MemorySwap", "Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0:
		return invalid("HostConfig.MemorySwap", "You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemorySwappiness != nil && (*r.MemorySwappiness < -1 || *r.MemorySwappiness > 100):
		return invalid("HostConfig.MemorySwappiness", "Invalid value: %v, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case r.MemoryReservation != 0 && r.MemoryReservation < minMemory:
		return invalid("HostConfig.MemoryReservation", "Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > r.Memory:
		return invalid("HostConfig.MemoryReservation", "Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return invalid("HostConfig.CpuPeriod", "Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return invalid("HostConfig.CpuQuota", "Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.NanoCPUs < 0:
		return invalid("HostConfig.NanoCpus", "range of CPUs is from 0.01")
	case r.CPUShares < 0:
		return invalid("HostConfig.CpuShares", "invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1_000_000):
		return invalid("HostConfig.CpuPeriod", "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return invalid("HostConfig.CpuQuota", "CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.IOMaximumBandwidth != 0 || r.IOMaximumIOps != 0:
		return invalid("HostConfig.IOMaximumIOps", "Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps")
	}
	for _, rule := range r.DeviceCgroupRules {
		if _, err := DeviceRule(rule); err != nil {
			return invalid("HostConfig.DeviceCgroupRules", "%v", err)
		}
	}
	return nil
}

// remarks returns docker's warnings about requests that are valid, but may not do what
// was expected.
func remarks(r *container.CreateRequest, h *container.HostConfig) (out []string) {
	if h.OomKillDisable != nil && *h.OomKillDisable && h.Memory == 0 {
		out = append(out, "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	if h.CPUPercent > 0 {
		out = append(out, "linux does not support CPU percent. Percent discarded.")
	}
	if len(h.PortBindings) > 0 && !PublishesPorts(r) {
		mode := "none"
		if h.NetworkMode.IsHost() {
			mode = "host"
		}
		out = append(out, fmt.Sprintf("Published ports are discarded when using %s network mode", mode))
	}
	return out
}

// PublishesPorts reports whether a container has a network in which its ports can be
// published.
func PublishesPorts(r *container.CreateRequest) bool {
	if r.Config != nil && r.NetworkDisabled {
		return false
	}
	return r.HostConfig == nil || !r.HostConfig.NetworkMode.IsHost() && !r.HostConfig.NetworkMode.IsNone() && !r.HostConfig.NetworkMode.IsContainer()
}
