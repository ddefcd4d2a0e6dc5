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

// route has this host forward packets, which containers need. A host that didn't
// must not become its neighbours' router by that: as docker does, the policy of
// iptables' FORWARD is set to drop first. It stays the administrator's: it is set
// again only where the chain is gone. Who wants the host to be a router turns
// forwarding on before drover does, in sysctl.d.
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
	n.o.Log.Info("this host forwards packets from now on, those of containers: others are dropped by the policy of the chain FORWARD")
	return sysctl(ipForward, "1")
}

// unroute undoes route.
func (n *Network) unroute() error {
	if !n.nft.setGuarded(false) {
		return nil
	}
	return errors.Join(sysctl(ipForward, "0"), n.nft.guard(nftables.ChainPolicyAccept), os.Remove(n.routesSince()))
}

// routesSince holds the boot in which drover turned forwarding on.
func (n *Network) routesSince() string { return filepath.Join(n.o.Dir, "routes-since") }

func (t *table) setGuarded(v bool) (was bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, t.guarded = t.guarded, v
	return was
}

// guard gives iptables' FORWARD a policy, and makes it where it is missing.
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
			t.log.Warn("this host forwards packets for containers, and its chain FORWARD is no hook's: whether others' packets are forwarded is up to its other rules")
			return nil
		}
		ch = &nftables.Chain{Name: old.Name, Table: old.Table} // its type and hook can't be changed
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
