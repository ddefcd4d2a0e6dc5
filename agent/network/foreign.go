package network

import (
	"bytes"
	"fmt"
	"log/slog"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// An accept in our table does not override a drop in another one (ufw, docker,
// firewalld). Where a forward chain's policy is to drop, two rules at its head
// let the bridge's packets through; they carry a mark by which they are found.

func (t *table) mark() []byte { return []byte("drover:" + t.bridge) }

func (t *table) passForeignDrops(log *slog.Logger) error {
	chains, err := t.droppers()
	if err != nil {
		return err
	}
	for _, ch := range chains {
		rules, err := t.c.GetRules(ch.Table, ch)
		if err != nil {
			return fmt.Errorf("reading chain %s of table %s: %w", ch.Name, ch.Table.Name, err)
		}
		if t.findMark(rules) != nil {
			continue
		}
		for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
			t.c.InsertRule(&nftables.Rule{Table: ch.Table, Chain: ch, UserData: t.mark(), Exprs: []expr.Any{
				&expr.Meta{Key: key, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(t.bridge)},
				&expr.Counter{},
				&expr.Verdict{Kind: expr.VerdictAccept},
			}})
		}
		log.Info("this host's firewall drops forwarded packets: containers are let through", "table", ch.Table.Name, "chain", ch.Name)
	}
	if err := t.c.Flush(); err != nil {
		return fmt.Errorf("adding rules to a foreign chain: %w", err)
	}
	return nil
}

func (t *table) removePasses() error {
	chains, err := t.droppers()
	if err != nil {
		return err
	}
	for _, ch := range chains {
		rules, err := t.c.GetRules(ch.Table, ch)
		if err != nil {
			return fmt.Errorf("reading chain %s of table %s: %w", ch.Name, ch.Table.Name, err)
		}
		for r := t.findMark(rules); r != nil; r = t.findMark(rules) {
			if err := t.c.DelRule(r); err != nil {
				return fmt.Errorf("removing a rule from chain %s: %w", ch.Name, err)
			}
			r.UserData = nil
		}
	}
	if err := t.c.Flush(); err != nil {
		return fmt.Errorf("removing rules from foreign chains: %w", err)
	}
	return nil
}

// droppers gives the forward chains of others whose policy is to drop.
func (t *table) droppers() ([]*nftables.Chain, error) {
	chains, err := t.c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("listing firewall chains: %w", err)
	}
	var out []*nftables.Chain
	for _, ch := range chains {
		forward := ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Type == nftables.ChainTypeFilter
		drops := ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		if forward && drops && ch.Table.Name != t.t.Name {
			out = append(out, ch)
		}
	}
	return out, nil
}

func (t *table) findMark(rules []*nftables.Rule) *nftables.Rule {
	for _, r := range rules {
		if bytes.Equal(r.UserData, t.mark()) {
			return r
		}
	}
	return nil
}
