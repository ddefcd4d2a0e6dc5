package network

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/vishvananda/netns"
)

// Counters returns what went through a container's interfaces, by their names in it, as
// the container sees it. A container without a sandbox of its own has none.
func (n *Network) Counters(id string) (map[string]container.NetworkStats, error) {
	s := n.Get(id)
	if s == nil || len(s.Endpoints) == 0 {
		return nil, nil
	}
	ns, err := netns.GetFromPath(s.Netns)
	if err != nil {
		return nil, fmt.Errorf("opening the network of %s: %w", short(id), err)
	}
	defer func() { _ = ns.Close() }()
	var table []byte
	err = onThreadIn(ns, func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the counters of %s: %w", short(id), err)
	}
	all, err := parseCounters(table)
	if err != nil {
		return nil, fmt.Errorf("reading the counters of %s: %w", short(id), err)
	}
	own := map[string]container.NetworkStats{}
	for _, e := range s.Endpoints { // not lo, and not what the kernel puts into each namespace
		if c, there := all[e.Name]; there {
			own[e.Name] = c
		}
	}
	return own, nil
}

// parseCounters reads the table of /proc/net/dev, of proc(5): after two lines of titles,
// a line per interface of its name and eight numbers for each direction.
func parseCounters(table []byte) (map[string]container.NetworkStats, error) {
	out := map[string]container.NetworkStats{}
	for line := range bytes.Lines(table) {
		name, rest, ok := strings.Cut(string(line), ":")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		if len(f) < 16 {
			return nil, fmt.Errorf("unexpected line %q", line)
		}
		var v [16]uint64
		for i := range v {
			var err error
			if v[i], err = strconv.ParseUint(f[i], 10, 64); err != nil {
				return nil, fmt.Errorf("unexpected line %q", line)
			}
		}
		out[strings.TrimSpace(name)] = container.NetworkStats{RxBytes: v[0], RxPackets: v[1], RxErrors: v[2], RxDropped: v[3],
			TxBytes: v[8], TxPackets: v[9], TxErrors: v[10], TxDropped: v[11]}
	}
	return out, nil
}
