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

const ipForward = "ipv4/ip_forward"

// route enables forwarding on this host, which containers need. A host that didn't
// forward before must not become its neighbours' router by that: as docker does, route
// first sets the policy of iptables' FORWARD to drop. After that the policy is the
// administrator's: it is set again only if the chain is gone. To make the host a router,
// enable forwarding before drover does, in sysctl.d.
func (n *Network) route() error {
	b, err := os.ReadFile(filepath.Join("/proc/sys/net", ipForward))
	if err != nil {
		return fmt.Errorf("reading whether this host forwards packets: %w", err)
	}
	if strings.TrimSpace(string(b)) == "1" {
		since, err := os.ReadFile(n.routesSince())
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("reading since when this host forwards packets: %w", err)
		}
		n.nft.setGuarded(n.boot != "" && string(since) == n.boot)
		return nil
	}
	if err := durable.WriteFile(n.routesSince(), []byte(n.boot), 0o600); err != nil {
		return err
	}
	n.nft.setGuarded(true)
	if err := n.nft.guard(nftables.ChainPolicyDrop); err != nil {
		return err
	}
	n.o.Log.Info("enabled forwarding for containers: the policy of the chain FORWARD drops other packets")
	return sysctl(ipForward, "1")
}

// unroute undoes route.
func (n *Network) unroute() error {
	if !n.nft.setGuarded(false) {
		return nil
	}
	return errors.Join(sysctl(ipForward, "0"), n.nft.guard(nftables.ChainPolicyAccept), os.Remove(n.routesSince()))
}

// routesSince holds the boot in which drover enabled forwarding.
func (n *Network) routesSince() string { return filepath.Join(n.o.Dir, "routes-since") }

func (t *table) setGuarded(v bool) (was bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, t.guarded = t.guarded, v
	return was
}

// guard sets the policy of iptables' FORWARD, and creates the chain if it is missing.
func (t *table) guard(policy nftables.ChainPolicy) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, err := readRuleset()
	if err != nil {
		return err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	ch := forwardChain()
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
func forwardChain() *nftables.Chain {
	drop := nftables.ChainPolicyDrop
	return &nftables.Chain{
		Name: "FORWARD", Table: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"}, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	}
}
