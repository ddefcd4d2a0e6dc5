package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/drover/drover/pkg/failpoint"
)

// sandboxVersion is the version of files written by this build. In version 2 all
// endpoints were on the node's own bridge; version 1 stored the fields of a container's
// only endpoint at the top level.
const sandboxVersion = 3

const unsaved = ".new"

// save is for agents of this boot, which see all of it or nothing. What it describes does
// not survive a power cut, so nothing waits for the disk.
func (n *Network) save(s *Sandbox) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding the sandbox of %s: %w", short(s.ID), err)
	}
	if err := failpoint.Error("network.save.before"); err != nil {
		return err
	}
	file := n.file(s.ID)
	if err = os.WriteFile(file+unsaved, b, 0o600); err == nil {
		err = os.Rename(file+unsaved, file)
	}
	if err != nil {
		return fmt.Errorf("writing the sandbox of %s: %w", short(s.ID), err)
	}
	failpoint.Here("network.save.after")
	return nil
}

func (n *Network) load() error {
	n.last = n.gateway()
	files, err := filepath.Glob(filepath.Join(n.o.Dir, "*.json*"))
	if err != nil {
		return fmt.Errorf("reading sandboxes: %w", err)
	}
	for _, f := range files {
		switch filepath.Ext(f) {
		case ".json":
		case unsaved: // cut short
			if err := os.Remove(f); err != nil {
				return fmt.Errorf("reading sandboxes: %w", err)
			}
			continue
		default: // set aside
			continue
		}
		s, err := readSandbox(f)
		if errors.Is(err, errUnreadable) {
			s, err = n.salvage(f, err)
		}
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		n.sandboxes[s.ID] = s
		for _, e := range s.Endpoints {
			for _, a := range e.Addresses {
				n.taken[a.Addr()] = s.ID
			}
		}
	}
	return nil
}

// errUnreadable marks a file that will never be usable, however often it is read.
var errUnreadable = errors.New("unusable file")

func readSandbox(file string) (*Sandbox, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading sandboxes: %w", err)
	}
	s, err := decode(b)
	switch {
	case err != nil:
	case s.ID+".json" != filepath.Base(file) || s.Netns == "":
		err = fmt.Errorf("it is that of %q at %q", s.ID, s.Netns)
	case slices.ContainsFunc(s.Endpoints, Endpoint.unusable):
		err = fmt.Errorf("it has the endpoints %v", s.Endpoints)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the sandbox %s: %w: %w", file, errUnreadable, err)
	}
	return s, nil
}

func decode(b []byte) (*Sandbox, error) {
	var v struct{ Version int }
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	switch v.Version {
	case 1:
		return decode1(b)
	case 2, sandboxVersion:
		s := new(Sandbox)
		err := json.Unmarshal(b, s)
		s.Version = sandboxVersion
		return s, err
	}
	return nil, fmt.Errorf("it is of version %d, which this agent does not know", v.Version)
}

// unusable reports whether an endpoint can't be that of any container.
func (e Endpoint) unusable() bool {
	_, err := net.ParseMAC(e.MAC)
	return err != nil || e.Link == "" || e.Name == "" || len(e.Addresses) == 0 ||
		slices.ContainsFunc(e.Addresses, func(a netip.Prefix) bool { return !a.IsValid() })
}

func decode1(b []byte) (*Sandbox, error) {
	var a struct {
		ID, Netns, MAC, Boot string
		IP, Gateway          netip.Addr
		PrefixLen            int
		Ports                []Port
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, err
	}
	return &Sandbox{Version: sandboxVersion, ID: a.ID, Netns: a.Netns, Boot: a.Boot, Endpoints: []Endpoint{{
		Network: Bridge, Name: "eth0", Link: linkName(a.ID, 0), Addresses: []netip.Prefix{netip.PrefixFrom(a.IP, a.PrefixLen)},
		Gateway: a.Gateway, MAC: a.MAC, Ports: a.Ports,
	}}}, nil
}

// salvage finds out what an unusable file was about. Without a namespace, it is what a
// power cut left of a file, and nothing is connected.
func (n *Network) salvage(file string, why error) (*Sandbox, error) {
	id := strings.TrimSuffix(filepath.Base(file), ".json")
	if _, err := os.Lstat(n.NetnsPath(id)); errors.Is(err, os.ErrNotExist) {
		n.o.Log.Info("removed what is left of a sandbox", "file", file, "err", why)
		return nil, os.Remove(file)
	}
	return n.setAside(file, why)
}

// setAside renames an unusable file for inspection, so that one container does not stop
// a node from working. A container that is still running keeps its address; which ports
// it published is unknown until it starts again.
func (n *Network) setAside(file string, why error) (*Sandbox, error) {
	id := strings.TrimSuffix(filepath.Base(file), ".json")
	if err := os.Rename(file, file+".bad"); err != nil {
		return nil, fmt.Errorf("setting a sandbox aside: %w", errors.Join(err, why))
	}
	s := &Sandbox{Version: sandboxVersion, ID: id, Netns: n.NetnsPath(id), Boot: n.boot,
		Endpoints: []Endpoint{{Network: Bridge, Name: "eth0", Link: linkName(id, 0), Gateway: n.gateway()}}}
	e := &s.Endpoints[0]
	ip, err := addressIn(s.Netns, e.Name)
	if err != nil || !n.o.Subnet.Contains(ip) {
		n.o.Log.Error("set a sandbox aside: its container is not connected", "file", file+".bad", "err", errors.Join(why, err, unlink(s)))
		return nil, nil
	}
	e.Addresses, e.MAC = []netip.Prefix{netip.PrefixFrom(ip, n.o.Subnet.Bits())}, mac(ip)
	n.o.Log.Error("set a sandbox aside: its container is connected, but its published ports are lost until it starts again", "file", file+".bad", "err", why)
	return s, n.save(s)
}
