package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/resolver/resolverapi"
	"github.com/drover/drover/agent/task"
)

// savedNames is the file of what the resolver was told of a container.
type savedNames struct {
	Version int
	Boot    string // in which the sandbox exists
	resolverapi.Sandbox
}

func (e *Engine) namesFile(id string) string { return filepath.Join(e.o.dir(id), "names.json") }

// writeNames need not survive a power cut: sandboxes don't.
func (e *Engine) writeNames(c resolverapi.Sandbox) error {
	b, err := json.Marshal(savedNames{1, e.boot, c})
	if err != nil {
		return fmt.Errorf("encoding the names of %s: %w", short(c.ID), err)
	}
	tmp := e.namesFile(c.ID) + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("storing the names of %s: %w", short(c.ID), err)
	}
	if err := os.Rename(tmp, e.namesFile(c.ID)); err != nil {
		return fmt.Errorf("storing the names of %s: %w", short(c.ID), err)
	}
	return nil
}

// changeFiles follows a change of a running container's networks: its addresses in
// hosts, beside what somebody wrote there, and the resolver, unless somebody changed
// resolv.conf.
func (e *Engine) changeFiles(s task.Spec, was, in *network.Sandbox, want []connection) error {
	names := ownNames(s.Create, spec.Hostname(s.Create, s.ID, e.o.HostName))
	if before, now := ownHosts(was, names), ownHosts(in, names); !slices.Equal(before, now) {
		err := e.edit(s.ID, spec.HostsFile, func(text string) string { return changedHosts(text, before, now) })
		if err != nil {
			return err
		}
	}
	if !inFleet(want) {
		return nil
	}
	h := s.Create.HostConfig
	if h == nil {
		h = &container.HostConfig{}
	}
	return e.edit(s.ID, spec.ResolvFile, func(text string) string {
		if text == resolvConf("/", h, true) {
			return resolverConf("/", h)
		}
		return text
	})
}

// maxEdited bounds what is read of a container's file: it can write there what it likes.
const maxEdited = 1 << 20

// edit changes a file that a container has mounted, in place. A longer one than any that
// drover writes is the container's own.
func (e *Engine) edit(id, name string, change func(text string) string) error {
	file := filepath.Join(e.o.dir(id), name)
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("reading %s of %s: %w", name, short(id), err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxEdited+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("reading %s of %s: %w", name, short(id), err)
	}
	if len(text) > maxEdited {
		e.o.Log.Warn("a file of a container is too long to be changed with its networks", "task", short(id), "file", name)
		return nil
	}
	now := change(string(text))
	if now == string(text) {
		return nil
	}
	if err := os.WriteFile(file, []byte(now), 0o644); err != nil {
		return fmt.Errorf("writing %s of %s: %w", name, short(id), err)
	}
	return nil
}

// changedHosts takes the lines of was out of a hosts file and adds those of now.
func changedHosts(text string, was, now []string) string {
	var out []string
	for l := range strings.Lines(text) {
		l = strings.TrimSuffix(l, "\n")
		if i := slices.Index(was, l); i >= 0 && !slices.Contains(now, l) {
			continue
		}
		out = append(out, l)
	}
	for _, l := range now {
		if !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n") + "\n"
}

func inFleet(want []connection) bool {
	return slices.ContainsFunc(want, func(c connection) bool { return c.endpoint != nil })
}

// hostResolver is the host's resolv.conf as docker reads it, and what a container
// overrides.
type hostResolver struct {
	servers, search, options, other []string
	overrides                       []string
	ndots                           string // who chose it
}

func readHostResolver(root string, h *container.HostConfig) (r hostResolver) {
	for _, f := range readResolv(filepath.Join(root, hostResolv)) {
		switch {
		case len(f) < 2:
		case f[0] == "nameserver":
			r.servers = append(r.servers, f[1])
		case f[0] == "search" || f[0] == "domain":
			r.search = f[1:]
		case f[0] == "options":
			r.options = append(r.options, f[1:]...)
		default:
			r.other = append(r.other, strings.Join(f, " "))
		}
	}
	if slices.Equal(r.servers, []string{"127.0.0.53"}) { // systemd-resolved's own
		var real []string
		for _, f := range readResolv(filepath.Join(root, resolvedResolv)) {
			if f[0] == "nameserver" && len(f) > 1 {
				real = append(real, f[1])
			}
		}
		if len(real) > 0 {
			r.servers = real
		}
	}
	if hasNdots(r.options) {
		r.ndots = "host"
	}
	if h == nil {
		return r
	}
	if len(h.DNS) > 0 {
		r.servers, r.overrides = nil, append(r.overrides, "nameservers")
		for _, a := range h.DNS {
			r.servers = append(r.servers, a.String())
		}
	}
	if len(h.DNSSearch) > 0 {
		r.search = slices.DeleteFunc(slices.Clone(h.DNSSearch), func(s string) bool { return s == "." })
		r.overrides = append(r.overrides, "search")
	}
	if len(h.DNSOptions) > 0 {
		r.options, r.ndots = slices.Clone(h.DNSOptions), ""
		r.overrides = append(r.overrides, "options")
		if hasNdots(r.options) {
			r.ndots = "override"
		}
	}
	return r
}

func hasNdots(options []string) bool {
	return slices.ContainsFunc(options, func(o string) bool { return o == "ndots" || strings.HasPrefix(o, "ndots:") })
}

// choosesNdots reports whether the user or the host says which names are asked for as
// they are.
func choosesNdots(root string, h *container.HostConfig) bool {
	return readHostResolver(root, h).ndots != ""
}

// resolverConf is the resolv.conf of a container whose names the node's resolver
// answers, with docker's remarks on how it came to be.
func resolverConf(root string, h *container.HostConfig) string {
	r := readHostResolver(root, h)
	r.options = slices.DeleteFunc(r.options, func(o string) bool {
		name, n, _ := strings.Cut(o, ":")
		i, err := strconv.Atoi(n)
		return name == "ndots" && (err != nil || i < 0)
	})
	if !hasNdots(r.options) { // a name without a dot is asked for as it is, before the search domains
		r.options, r.ndots = append(r.options, "ndots:0"), "internal"
	}
	var b strings.Builder
	b.WriteString("# Generated by drover.\n# This file can be edited; drover will not make further changes once it\n# has been modified.\n\n")
	b.WriteString("nameserver " + resolverapi.Address + "\n")
	if len(r.search) > 0 {
		b.WriteString("search " + strings.Join(r.search, " ") + "\n")
	}
	b.WriteString("options " + strings.Join(r.options, " ") + "\n")
	for _, o := range r.other {
		b.WriteString(o + "\n")
	}
	b.WriteString("\n# Based on host file: '/etc/resolv.conf' (internal resolver)\n")
	if len(r.servers) == 0 {
		b.WriteString("# NO EXTERNAL NAMESERVERS DEFINED\n")
	} else {
		shown := slices.Clone(r.servers)
		if !slices.Contains(r.overrides, "nameservers") {
			for i, s := range shown {
				shown[i] = "host(" + s + ")"
			}
		}
		b.WriteString("# ExtServers: [" + strings.Join(shown, " ") + "]\n")
	}
	b.WriteString("# Overrides: [" + strings.Join(r.overrides, " ") + "]\n# Option ndots from: " + r.ndots + "\n")
	return b.String()
}
