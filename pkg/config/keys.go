package config

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/drover/drover/pkg/subnet"
)

// Key is one setting of a host.
type Key struct {
	Name  string // in files, as a flag, and as DROVER_NAME in the environment
	Usage string
	Flag  bool // every host command has a flag for it

	initial    any
	structured bool // a list or a map, which only a file can hold
	text       func(*Config) string
}

// Text formats the key's value for people.
func (k Key) Text(c *Config) string { return k.text(c) }

// Keys lists all keys that a file may set, in the order of documentation.
var Keys = []Key{
	{Name: "cluster-name", Usage: "Name of the fleet that the first host makes (its node-name if empty)", initial: "", text: func(c *Config) string { return c.ClusterName }},
	{Name: "data-dir", Usage: "Durable data: identities, the log, images, containers", Flag: true, initial: "/var/lib/drover", text: func(c *Config) string { return c.DataDir }},
	{Name: "run-dir", Usage: "Sockets and other volatile data; keep its path short", Flag: true, initial: "/run/drover", text: func(c *Config) string { return c.RunDir }},
	{Name: "node-name", Usage: "Name of this host in the fleet (its host name if empty)", Flag: true, initial: "", text: func(c *Config) string { return c.NodeName }},
	{Name: "advertise", Usage: "Address that other hosts dial (that of the default route if empty)", Flag: true, initial: "", text: func(c *Config) string { return c.Advertise }},
	{Name: "controller-listen", Usage: "Address of the API, sessions and raft", initial: "0.0.0.0:7443", text: func(c *Config) string { return c.ControllerListen }},
	{Name: "agent-listen", Usage: "Address of this node's own port", initial: "0.0.0.0:7444", text: func(c *Config) string { return c.AgentListen }},
	{Name: "gossip-listen", Usage: "Address of the gossip among agents; its port is the same on all hosts", initial: "0.0.0.0:7946", text: func(c *Config) string { return c.GossipListen }},
	{Name: "mirror-listen", Usage: "Loopback address where tools of this host pull the fleet's images; empty for none", initial: "127.0.0.1:5000", text: func(c *Config) string { return c.MirrorListen }},
	{Name: "bridge", Usage: "Name of the containers' bridge, at most 15 characters", initial: "drover0", text: func(c *Config) string { return c.Bridge }},
	{Name: "subnet-pool", Usage: "Where the nodes' /24 come from; set when the fleet is made, extended by drover node pool add", initial: "10.208.0.0/12", text: func(c *Config) string { return c.SubnetPool }},
	{Name: "network-pool", Usage: "Where the subnets of networks come from that nobody chose: a base, and the size of a subnet; set when the fleet is made, extended by drover node pool add --networks", initial: subnet.DefaultNetworkPool.String(), text: func(c *Config) string { return c.NetworkPool }},
	{Name: "doors", Usage: "Whether ports that containers of other nodes publish answer on this host too", initial: true, text: func(c *Config) string { return strconv.FormatBool(c.Doors) }},
	{Name: "raft-timing", Usage: "How fast controllers notice a dead leader: lan, wan or HEARTBEAT/ELECTION/LEASE; set when the fleet is made, later by drover controller timing", initial: "lan", text: func(c *Config) string { return c.RaftTiming }},
	{Name: "spares", Usage: "How many shims are started ahead of the containers that they will hold, once there was a start; 0 for none", initial: 1, text: func(c *Config) string { return strconv.Itoa(c.Spares) }},
	{Name: "log-level", Usage: "debug, info, warn or error", Flag: true, initial: "info", text: func(c *Config) string { return c.LogLevel }},
	{Name: "labels", Usage: "Of this node, for --on", initial: map[string]string{}, structured: true, text: labels},
	{Name: "registries", Usage: "How registries are reached", initial: []map[string]any{}, structured: true, text: registries},
}

func known(name string) bool { return slices.Contains(names(), name) }

func names() []string {
	out := make([]string, len(Keys))
	for i, k := range Keys {
		out[i] = k.Name
	}
	return out
}

func labels(c *Config) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		out = append(out, k+"="+c.Labels[k])
	}
	return strings.Join(out, ",")
}

func registries(c *Config) string {
	var out []string
	for _, r := range c.Registries {
		s := r.Name
		if r.Endpoint != "" {
			s += " at " + r.Endpoint
		}
		if r.PlainHTTP {
			s += " (plain HTTP)"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}
