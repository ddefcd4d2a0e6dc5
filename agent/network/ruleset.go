package network

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ruleset holds the kernel's chains of the families that containers use, and on demand their
// rules.
type ruleset struct {
	c      *nftables.Conn
	chains []*nftables.Chain
	read   map[*nftables.Chain][]rule
}

// rule holds what matters here about a rule: which packets it matches, and what it does.
type rule struct {
	handle   uint64
	userData []byte
	always   bool // matches each packet
	verdict  verdict
	target   string // the chain of a jump or goto
}

type verdict int

const (
	none verdict = iota // the next rule sees the packet too
	accepts
	drops // or rejects
	jumps
	goesTo
	returns
)

func (t *table) read() (*ruleset, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	r := &ruleset{c: c, read: map[*nftables.Chain][]rule{}}
	families := []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet, nftables.TableFamilyBridge}
	if _, ok := t.guarded[nftables.TableFamilyIPv6]; ok {
		families = append(families, nftables.TableFamilyIPv6)
	}
	for _, family := range families {
		chains, err := c.ListChainsOfTableFamily(family)
		if err != nil {
			return nil, fmt.Errorf("listing firewall chains: %w", err)
		}
		r.chains = append(r.chains, chains...)
	}
	return r, nil
}

func (r *ruleset) find(family nftables.TableFamily, table, name string) *nftables.Chain {
	for _, ch := range r.chains {
		if ch.Table.Family == family && ch.Table.Name == table && ch.Name == name {
			return ch
		}
	}
	return nil
}

// rules returns ch's rules in order. They are decoded here, since the library drops
// expressions that it doesn't know, and a rule without its condition would seem to match
// all packets.
func (r *ruleset) rules(ch *nftables.Chain) ([]rule, error) {
	if rules, ok := r.read[ch]; ok {
		return rules, nil
	}
	rules, err := readRules(ch)
	if err != nil {
		return nil, fmt.Errorf("reading chain %s of table %s: %w", ch.Name, ch.Table.Name, err)
	}
	r.read[ch] = rules
	return rules, nil
}

func readRules(ch *nftables.Chain) ([]rule, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(ch.Table.Name + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(ch.Name + "\x00")},
	})
	if err != nil {
		return nil, err
	}
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(ch.Table.Family), unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if err != nil {
		return nil, err
	}
	var rules []rule
	for _, m := range msgs {
		one, err := decodeRule(m.Data)
		if err != nil {
			return nil, err
		}
		rules = append(rules, one)
	}
	return rules, nil
}

// decodeRule decodes a message with one rule, after its header of 4 bytes.
func decodeRule(b []byte) (rule, error) {
	r := rule{always: true}
	if len(b) < 4 {
		return r, fmt.Errorf("a rule of %d bytes", len(b))
	}
	d, err := decoder(b[4:])
	if err != nil {
		return r, err
	}
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_RULE_HANDLE:
			r.handle = d.Uint64()
		case unix.NFTA_RULE_USERDATA:
			r.userData = d.Bytes()
		case unix.NFTA_RULE_EXPRESSIONS:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					d.Nested(r.expression)
				}
				return nil
			})
		}
	}
	return r, d.Err()
}

func decoder(b []byte) (*netlink.AttributeDecoder, error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return nil, fmt.Errorf("decoding a rule: %w", err)
	}
	d.ByteOrder = binary.BigEndian
	return d, nil
}

// expression adds an expression. What isn't known to match each packet is a condition.
func (r *rule) expression(d *netlink.AttributeDecoder) error {
	var name, extension, target string
	code, isVerdict := uint32(0), false
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_EXPR_NAME:
			name = d.String()
		case unix.NFTA_EXPR_DATA:
			switch name {
			case "match", "target":
				d.Nested(func(d *netlink.AttributeDecoder) error {
					for d.Next() {
						if d.Type() == unix.NFTA_TARGET_NAME { // same as NFTA_MATCH_NAME
							extension = d.String()
						}
					}
					return nil
				})
			case "immediate":
				d.Nested(func(d *netlink.AttributeDecoder) error {
					var err error
					code, target, isVerdict, err = immediate(d)
					return err
				})
			}
		}
	}
	switch {
	case name == "reject", name == "target" && extension == "REJECT":
		r.verdict = drops
	case name == "immediate" && isVerdict:
		r.verdict, r.target = verdictOf(code), target
	case name == "immediate", name == "counter", name == "log", name == "match" && extension == "comment",
		name == "target" && (extension == "LOG" || extension == "NFLOG" || extension == "TRACE"):
	default:
		r.always = false
	}
	return nil
}

func immediate(d *netlink.AttributeDecoder) (code uint32, target string, isVerdict bool, err error) {
	for d.Next() {
		if d.Type() != unix.NFTA_IMMEDIATE_DATA {
			continue
		}
		d.Nested(func(d *netlink.AttributeDecoder) error {
			for d.Next() {
				if d.Type() != unix.NFTA_DATA_VERDICT {
					continue
				}
				isVerdict = true
				d.Nested(func(d *netlink.AttributeDecoder) error {
					for d.Next() {
						switch d.Type() {
						case unix.NFTA_VERDICT_CODE:
							code = d.Uint32()
						case unix.NFTA_VERDICT_CHAIN:
							target = d.String()
						}
					}
					return nil
				})
			}
			return nil
		})
	}
	return code, target, isVerdict, nil
}

func verdictOf(code uint32) verdict {
	const nfDrop, nfAccept = 0, 1 // linux/netfilter.h
	switch int32(code) {
	case nfDrop:
		return drops
	case nfAccept:
		return accepts
	case unix.NFT_JUMP:
		return jumps
	case unix.NFT_GOTO:
		return goesTo
	case unix.NFT_RETURN:
		return returns
	}
	return none
}

// fate returns what a chain does with packets that no condition matches.
func (r *ruleset) fate(ch *nftables.Chain, seen map[*nftables.Chain]bool) (verdict, error) {
	if seen[ch] { // the kernel refuses loops
		return none, nil
	}
	seen[ch] = true
	rules, err := r.rules(ch)
	if err != nil {
		return none, err
	}
	for _, x := range rules {
		if !x.always {
			continue
		}
		v := x.verdict
		if v == jumps || v == goesTo {
			v = none
			if to := r.find(ch.Table.Family, ch.Table.Name, x.target); to != nil {
				if v, err = r.fate(to, seen); err != nil {
					return none, err
				}
			}
			if v == none && x.verdict == goesTo {
				v = returns
			}
		}
		switch v {
		case accepts, drops:
			return v, nil
		case returns:
			return r.policy(ch), nil
		}
	}
	return r.policy(ch), nil
}

// policy returns a base chain's policy; other chains have none.
func (r *ruleset) policy(ch *nftables.Chain) verdict {
	switch {
	case ch.Policy == nil:
		return none
	case *ch.Policy == nftables.ChainPolicyDrop:
		return drops
	}
	return accepts
}
