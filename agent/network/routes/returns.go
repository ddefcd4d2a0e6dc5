package routes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A return is where IPv4 packets with a mark are sent, whatever their destination: a rule
// for the mark, and a default route in the table of the mark's number. The rules are next
// to each other, and packets without a mark jump over all of them, so that these pay for
// one however many there are.
const (
	gatePriority   = 7700
	returnPriority = 7701
	endPriority    = 7702
)

// Mark is a packet's mark.
type Mark uint32

func (m Mark) String() string { return fmt.Sprintf("%#x", uint32(m)) }

// ruleKind is what a rule is for.
type ruleKind int

const (
	otherRule ruleKind = iota
	gateRule
	returnRule
	endRule
)

// ruleMessage encodes a rule for RTM_NEWRULE and RTM_DELRULE.
func ruleMessage(kind ruleKind, m Mark) ([]byte, error) {
	b := make([]byte, 12) // struct fib_rule_hdr
	b[0] = unix.AF_INET
	e := netlink.NewAttributeEncoder()
	e.Uint8(unix.FRA_PROTOCOL, Protocol)
	switch kind {
	case gateRule:
		b[7] = unix.FR_ACT_GOTO
		e.Uint32(unix.FRA_PRIORITY, gatePriority)
		e.Uint32(unix.FRA_FWMARK, 0)
		e.Uint32(unix.FRA_FWMASK, ^uint32(0))
		e.Uint32(unix.FRA_GOTO, endPriority)
	case endRule:
		b[7] = unix.FR_ACT_NOP
		e.Uint32(unix.FRA_PRIORITY, endPriority)
	default:
		b[7] = unix.FR_ACT_TO_TBL
		e.Uint32(unix.FRA_PRIORITY, returnPriority)
		e.Uint32(unix.FRA_FWMARK, uint32(m))
		e.Uint32(unix.FRA_FWMASK, ^uint32(0))
		e.Uint32(unix.FRA_TABLE, uint32(m))
	}
	return attached(b, e)
}

// decodeRule returns what a rule is for; otherRule for what is not drover's.
func decodeRule(b []byte) (kind ruleKind, m Mark, err error) {
	if len(b) < 12 {
		return otherRule, 0, errors.New("a rule's message is short")
	}
	if b[0] != unix.AF_INET {
		return otherRule, 0, nil
	}
	d, err := netlink.NewAttributeDecoder(b[12:])
	if err != nil {
		return otherRule, 0, err
	}
	var protocol uint8
	var priority, mark, table uint32
	for d.Next() {
		switch d.Type() {
		case unix.FRA_PROTOCOL:
			protocol = d.Uint8()
		case unix.FRA_PRIORITY:
			priority = d.Uint32()
		case unix.FRA_FWMARK:
			mark = d.Uint32()
		case unix.FRA_TABLE:
			table = d.Uint32()
		}
	}
	if err := d.Err(); err != nil || protocol != Protocol {
		return otherRule, 0, err
	}
	switch {
	case priority == gatePriority && b[7] == unix.FR_ACT_GOTO:
		return gateRule, 0, nil
	case priority == endPriority && b[7] == unix.FR_ACT_NOP:
		return endRule, 0, nil
	case priority == returnPriority && b[7] == unix.FR_ACT_TO_TBL && mark == table:
		return returnRule, Mark(mark), nil
	}
	return otherRule, 0, nil
}

// inTable moves an encoded route into a table.
func inTable(b []byte, table Mark) []byte {
	b[4] = unix.RT_TABLE_UNSPEC
	b = binary.NativeEndian.AppendUint16(b, unix.SizeofRtAttr+4)
	b = binary.NativeEndian.AppendUint16(b, unix.RTA_TABLE)
	return binary.NativeEndian.AppendUint32(b, uint32(table))
}

var everywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// readReturns reads returns, and whether the rules around them are there. Of a return that
// lacks its rule or its route there is the zero Route.
func readReturns(c *netlink.Conn, name map[int]string, have *Picture) error {
	rules := make([]byte, 12)
	rules[0] = unix.AF_INET
	msgs, err := c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_GETRULE, Flags: netlink.Request | netlink.Dump}, Data: rules})
	if err != nil {
		return fmt.Errorf("listing routing rules: %w", err)
	}
	ruled, around := map[Mark]bool{}, map[ruleKind]bool{}
	for _, m := range msgs {
		kind, mark, err := decodeRule(m.Data)
		if err != nil {
			return fmt.Errorf("listing routing rules: %w", err)
		}
		if around[kind] = true; kind == returnRule {
			ruled[mark] = true
			have.Returns[mark] = Route{}
		}
	}
	have.Gated = around[gateRule] && around[endRule]
	filter := make([]byte, unix.SizeofRtMsg)
	filter[0], filter[5] = unix.AF_INET, Protocol
	if msgs, err = c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request | netlink.Dump}, Data: filter}); err != nil {
		return fmt.Errorf("listing the routes of returns: %w", err)
	}
	for _, m := range msgs {
		table, dst, r, ok, err := decodeAny(m.Data, name)
		if err != nil {
			return fmt.Errorf("listing the routes of returns: %w", err)
		}
		if !ok || table == unix.RT_TABLE_MAIN || dst != everywhere {
			continue
		}
		if !ruled[Mark(table)] {
			r = Route{}
		}
		have.Returns[Mark(table)] = r
	}
	return nil
}

// addReturns adds the changes of returns to b.
func (c Changes) addReturns(b *batch, index map[string]int) {
	rule := func(typ, flags uint16, kind ruleKind, m Mark) {
		data, err := ruleMessage(kind, m)
		b.add(typ, flags, data, err, m)
	}
	if c.Gate {
		rule(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, endRule, 0)
		rule(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, gateRule, 0)
	}
	for _, m := range c.SetReturns { // the route first: a packet without one is routed as others
		data, err := c.want.Returns[m].encode(everywhere, index)
		if err == nil {
			data = inTable(data, m)
		}
		b.add(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, data, err, m)
		rule(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, returnRule, m)
	}
	for _, m := range c.DelReturns {
		rule(unix.RTM_DELRULE, 0, returnRule, m)
		data, err := Route{Unreachable: true}.encode(everywhere, nil)
		if err == nil {
			data = inTable(anyRoute(data), m)
		}
		b.add(unix.RTM_DELROUTE, 0, data, err, m)
	}
	if c.Ungate {
		rule(unix.RTM_DELRULE, 0, gateRule, 0)
		rule(unix.RTM_DELRULE, 0, endRule, 0)
	}
}

// IsReturn reports whether a message is about a rule or a route of a return.
func IsReturn(m netlink.Message) bool {
	switch m.Header.Type {
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		kind, _, err := decodeRule(m.Data)
		return err == nil && kind != otherRule
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		table, dst, _, ok, err := decodeAny(m.Data, nil)
		return err == nil && ok && table != unix.RT_TABLE_MAIN && dst == everywhere
	}
	return false
}

// ReturnsUnlike says what of the rules and routes of returns is not as wanted.
func (c Changes) ReturnsUnlike(have Picture) []string {
	var out []string
	if c.Gate {
		out = append(out, "the routing rules around those of doors are missing")
	}
	if c.Ungate {
		out = append(out, "routing rules of doors are left, and there are no doors")
	}
	for _, m := range c.SetReturns {
		out = append(out, strings.TrimSpace(fmt.Sprintf("answers through the door %v go by %v, not by %v", m, have.Returns[m], c.want.Returns[m])))
	}
	for _, m := range c.DelReturns {
		out = append(out, fmt.Sprintf("the routing rule or route of the door %v is left", m))
	}
	return out
}
