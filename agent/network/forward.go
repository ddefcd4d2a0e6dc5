package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"

	"github.com/drover/drover/pkg/durable"
)

// forwarding is that of one family: the kernel's switch, and where it is noted that
// drover turned it on.
type forwarding struct {
	family nftables.TableFamily
	sysctl string
	since  string // file with the boot in which that was
}

var (
	forwarding4 = forwarding{nftables.TableFamilyIPv4, "ipv4/ip_forward", "routes-since"}
	forwarding6 = forwarding{nftables.TableFamilyIPv6, "ipv6/conf/all/forwarding", "routes-ipv6-since"}
)

// route enables forwarding on this host, which containers need. A host that didn't
// forward before must not become its neighbours' router by that: as docker does, route
// first sets the policy of iptables' FORWARD to drop. After that the policy is the
// administrator's: it is set again only if the chain is gone. To make the host a router,
// enable forwarding before drover does, in sysctl.d.
func (n *Network) route(f forwarding) error {
	b, err := os.ReadFile(filepath.Join("/proc/sys/net", f.sysctl))
	if err != nil {
		return fmt.Errorf("reading whether this host forwards packets: %w", err)
	}
	file := filepath.Join(n.o.Dir, f.since)
	if strings.TrimSpace(string(b)) == "1" {
		since, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("reading since when this host forwards packets: %w", err)
		}
		n.nft.setGuarded(f.family, n.boot != "" && string(since) == n.boot)
		return nil
	}
	if err := durable.WriteFile(file, []byte(n.boot), 0o600); err != nil {
		return err
	}
	n.nft.setGuarded(f.family, true)
	if err := n.nft.guard(f.family, nftables.ChainPolicyDrop); err != nil {
		return err
	}
	if f.family == nftables.TableFamilyIPv6 {
		if err := keepAdvertisements(); err != nil {
			return err
		}
	}
	n.o.Log.Info("enabled forwarding for containers: the policy of the chain FORWARD drops other packets", "sysctl", f.sysctl)
	return sysctl(f.sysctl, "1")
}

// keepAdvertisements lets the host's links take their router's advertisements as before:
// with the usual value, links of a host that forwards take none.
func keepAdvertisements() error {
	files, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || strings.TrimSpace(string(b)) != "1" {
			continue // it takes none, or is gone
		}
		if err := os.WriteFile(f, []byte("2"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("keeping the host's IPv6 router: %w", err)
		}
	}
	return nil
}

// unroute undoes route.
func (n *Network) unroute(f forwarding) error {
	if !n.nft.setGuarded(f.family, false) {
		return nil
	}
	return errors.Join(sysctl(f.sysctl, "0"), n.nft.guard(f.family, nftables.ChainPolicyAccept), os.Remove(filepath.Join(n.o.Dir, f.since)))
}

// setGuarded also makes the family one that is looked at.
func (t *table) setGuarded(family nftables.TableFamily, v bool) (was bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, t.guarded[family] = t.guarded[family], v
	return was
}

// guard sets the policy of iptables' FORWARD, and creates the chain if it is missing.
func (t *table) guard(family nftables.TableFamily, policy nftables.ChainPolicy) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, err := t.read()
	if err != nil {
		return err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	ch := forwardChain(family)
	if old := r.find(ch.Table.Family, ch.Table.Name, ch.Name); old != nil {
		if old.Hooknum == nil {
			t.log.Warn("this host forwards packets for containers, and its chain FORWARD has no hook: whether other packets are forwarded is up to its other rules")
			return nil
		}
		ch = &nftables.Chain{Name: old.Name, Table: old.Table} // type and hook can't be changed
	}
	ch.Policy = &policy
	c.AddTable(ch.Table)
	c.AddChain(ch)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("setting the policy of the chain FORWARD: %w", err)
	}
	return nil
}

// forwardChain is what iptables calls FORWARD.
func forwardChain(family nftables.TableFamily) *nftables.Chain {
	drop := nftables.ChainPolicyDrop
	return &nftables.Chain{
		Name: "FORWARD", Table: &nftables.Table{Family: family, Name: "filter"}, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	}
}
