package engine

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
)

const (
	hostResolv = "etc/resolv.conf"
	// systemd-resolved puts only its own 127.0.0.53 into the host's file. This one has its
	// upstream servers.
	resolvedResolv = "run/systemd/resolve/resolv.conf"
)

// resolvConf derives a container's resolv.conf from that of the host whose root is
// given. In networks of its own, a container can't reach servers on the host's loopback
// or over IPv6, so these are left out; a host that has no others is assumed to run
// systemd-resolved. If no server is left after that, docker's default servers are used.
func resolvConf(root string, h *container.HostConfig, connected bool) string {
	lines := readResolv(filepath.Join(root, hostResolv))
	if connected && !slices.ContainsFunc(lines, reachable) {
		if real := readResolv(filepath.Join(root, resolvedResolv)); slices.ContainsFunc(real, reachable) {
			lines = real
		}
	}
	var out []string
	for _, f := range lines {
		switch {
		case f[0] == "nameserver" && (len(h.DNS) > 0 || connected && !reachable(f)),
			f[0] == "search" && len(h.DNSSearch) > 0, f[0] == "options" && len(h.DNSOptions) > 0:
			continue
		}
		out = append(out, strings.Join(f, " "))
	}
	for _, d := range h.DNS {
		out = append(out, "nameserver "+d.String())
	}
	if connected && len(h.DNS) == 0 && !slices.ContainsFunc(lines, reachable) {
		out = append(out, "nameserver 8.8.8.8", "nameserver 8.8.4.4")
	}
	if len(h.DNSSearch) > 0 && !slices.Equal(h.DNSSearch, []string{"."}) {
		out = append(out, "search "+strings.Join(h.DNSSearch, " "))
	}
	if len(h.DNSOptions) > 0 {
		out = append(out, "options "+strings.Join(h.DNSOptions, " "))
	}
	return strings.Join(out, "\n") + "\n"
}

// readResolv returns a file's lines as fields, without comments; none if it can't be
// read.
func readResolv(file string) [][]string {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	var out [][]string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) > 0 && f[0][0] != '#' && f[0][0] != ';' {
			out = append(out, f)
		}
	}
	return out
}

// reachable reports whether a line names a server that a container can reach: not on a
// loopback, and not over IPv6, which containers don't have yet.
func reachable(line []string) bool {
	if line[0] != "nameserver" || len(line) < 2 {
		return false
	}
	addr, err := netip.ParseAddr(line[1])
	return err == nil && addr.Is4() && !addr.IsLoopback()
}
