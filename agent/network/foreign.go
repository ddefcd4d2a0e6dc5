package network

import (
	"bytes"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// An accept in our table doesn't override a drop in another one (ufw, docker, firewalld,
// the host's own). In a forward chain that drops what no rule of it accepts, two rules
// at its head accept the bridge's packets, as docker does in FORWARD; what may reach a
// container is decided by our own forward chain. Conditional drops are the
// administrator's decision, but take effect only after ours: rules that must come first
// belong in docker's DOCKER-USER, which stays first.

// change is a change to somebody else's chain.
type change struct {
	ch    *nftables.Chain
	make  bool   // create the chain too, with policy drop
	pass  bool   // add our rules, after this rule unless it is 0
	gone  []rule // our rules to remove
	rear  uint64
	mark  []byte
	rules []match // ours
}

// userChain is where docker has administrators put rules for containers.
const userChain = "DOCKER-USER"

// plan returns the changes to others' chains.
func (t *table) plan(r *ruleset) []change {
	var out []change
	for _, ch := range r.chains {
		if ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward || ch.Type != nftables.ChainTypeFilter ||
			ch.Table.Name == t.name() || ch.Table.Family == nftables.TableFamilyBridge {
			continue
		}
		v, err := r.fate(ch, map[*nftables.Chain]bool{})
		if err != nil {
			t.warn(ch, "a chain of this host's firewall can't be read: published ports can't be reached if it drops what is forwarded", err)
			continue
		}
		c := change{ch: ch, mark: t.mark(), rules: t.passing()}
		current := 0
		rules, _ := r.rules(ch) // already read by fate
		for _, x := range rules {
			if t.made(x) {
				c.gone = append(c.gone, x)
			}
			if bytes.Equal(x.userData, t.mark()) {
				current++
			}
			if x.verdict == jumps && x.target == userChain {
				c.rear = x.handle
			}
		}
		c.pass = v == drops
		if wanted := len(c.rules); c.pass && len(c.gone) == wanted && current == wanted || !c.pass && len(c.gone) == 0 {
			continue
		}
		out = append(out, c)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		if fw := forwardChain(family); t.guarded[family] && r.find(fw.Table.Family, fw.Table.Name, fw.Name) == nil {
			out = append(out, change{ch: fw, make: true, pass: true, mark: t.mark(), rules: t.passing()})
		}
	}
	return out
}

// passing returns what chains that drop all must let pass: what goes from or to bridges,
// and through doors.
func (t *table) passing() (out []match) {
	links := [][]byte{ifname(t.bridge)}
	if t.several {
		links = append(links, begins(t.prefix))
	}
	for _, link := range links {
		out = append(out, is(inLink, link), is(outLink, link))
	}
	if len(t.doors) > 0 {
		out = append(out, ctMark(t.mark4()))
	}
	return out
}

// made reports whether a rule is drover's, including those of builds that marked rules
// with bytes that are no comment, and put them in front of docker's DOCKER-USER.
func (t *table) made(x rule) bool {
	return bytes.Equal(x.userData, t.mark()) || string(x.userData) == "drover:"+t.bridge
}

// do adds the change to c's batch.
func (f change) do(c *nftables.Conn) error {
	if f.make {
		c.AddTable(f.ch.Table)
		c.AddChain(f.ch)
	}
	for _, x := range f.gone {
		if err := c.DelRule(&nftables.Rule{Table: f.ch.Table, Chain: f.ch, Handle: x.handle}); err != nil {
			return err
		}
	}
	if !f.pass {
		return nil
	}
	for _, m := range f.rules {
		r := &nftables.Rule{Table: f.ch.Table, Chain: f.ch, UserData: f.mark, Position: f.rear, Exprs: all(m, match{&expr.Counter{}}, accept())}
		if f.rear != 0 {
			c.AddRule(r) // after the rule at the position
		} else {
			c.InsertRule(r)
		}
	}
	return nil
}

// tell logs the result of a change.
func (t *table) tell(f change, err error) {
	switch {
	case err != nil:
		t.warn(f.ch, "this host's firewall drops forwarded packets, and takes no rule of drover's: published ports can't be reached until it accepts what goes through the bridge "+t.bridge, err)
	case f.pass:
		delete(t.warned, f.ch.Table.Name+"/"+f.ch.Name)
		t.log.Info("this host's firewall drops forwarded packets: accepting those of containers", "table", f.ch.Table.Name, "chain", f.ch.Name)
	}
}

// warn warns once per chain, since the failure recurs with each check.
func (t *table) warn(ch *nftables.Chain, what string, err error) {
	if key := ch.Table.Name + "/" + ch.Name; !t.warned[key] {
		t.warned[key] = true
		t.log.Warn(what, "table", ch.Table.Name, "chain", ch.Name, "err", err)
	}
}

// legacyTables names the iptables-legacy tables in use, which nftables doesn't show.
const legacyTables = "/proc/thread-self/net/ip_tables_names"

// warnOfLegacy warns about what drover can't fix.
func warnOfLegacy(log *slog.Logger, file, bridge string) {
	if b, err := os.ReadFile(file); err == nil && slices.Contains(strings.Fields(string(b)), "filter") {
		log.Warn("this host filters with iptables-legacy too, which drover doesn't look at: where its FORWARD drops, published ports can't be reached until it accepts what goes through the bridge", "bridge", bridge)
	}
}

// removeForeign removes our rules from others' chains. It must be called with mu held.
func (t *table) removeForeign() error {
	r, err := t.read()
	if err != nil {
		return err
	}
	c, err := dial()
	if err != nil {
		return err
	}
	for _, ch := range r.chains {
		rules, err := r.rules(ch)
		if err != nil {
			return err
		}
		f := change{ch: ch}
		for _, x := range rules {
			if t.made(x) {
				f.gone = append(f.gone, x)
			}
		}
		if err := f.do(c); err != nil {
			return err
		}
	}
	return c.Flush()
}
