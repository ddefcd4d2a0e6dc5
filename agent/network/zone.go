package network

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// zonesChain has one rule: what a door sends is in the door's own conntrack zone, in the
// direction in which it comes. A client may use one port for connections to several doors,
// which are alike to the holder; answers of these differ, since conntrack gives the second
// one another port.
const zonesChain = "zones"

// zone adds that rule in a transaction of its own, for the nftables library lacks zones of
// one direction. Until then connections are in the usual zone.
func (t *table) zone() error {
	exprs, err := encodeAll(all(t.throughDoor(), lookedUp("doorzones", inLink, fromMAC)))
	if err != nil {
		return err
	}
	set := netlink.NewAttributeEncoder()
	set.ByteOrder = binary.BigEndian
	set.String(unix.NFTA_EXPR_NAME, "ct")
	set.Nested(unix.NFTA_EXPR_DATA, func(e *netlink.AttributeEncoder) error {
		const original = 0 // IP_CT_DIR_ORIGINAL
		e.Uint32(unix.NFTA_CT_KEY, unix.NFT_CT_ZONE)
		e.Uint8(unix.NFTA_CT_DIRECTION, original)
		e.Uint32(unix.NFTA_CT_SREG, regs)
		return nil
	})
	b, err := set.Encode()
	if err != nil {
		return fmt.Errorf("encoding the rule of zones: %w", err)
	}
	err = addRule(t.name(), zonesChain, t.mark(), append(exprs, b))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
		t.unzoned = true
		t.log.Warn("this kernel has no conntrack zones: of connections from one port of a client through several nodes only one works", "err", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("adding the rule of zones: %w", err)
	}
	return nil
}

func encodeAll(m match) ([][]byte, error) {
	var out [][]byte
	for _, x := range m {
		b, err := expr.Marshal(unix.NFPROTO_INET, x)
		if err != nil {
			return nil, fmt.Errorf("encoding the rule of zones: %w", err)
		}
		out = append(out, b)
	}
	return out, nil
}

// addRule adds a rule to a chain of an inet table.
func addRule(table, chain string, userData []byte, exprs [][]byte) error {
	e := netlink.NewAttributeEncoder()
	e.String(unix.NFTA_RULE_TABLE, table)
	e.String(unix.NFTA_RULE_CHAIN, chain)
	e.Nested(unix.NFTA_RULE_EXPRESSIONS, func(e *netlink.AttributeEncoder) error {
		for _, x := range exprs {
			e.Bytes(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, x)
		}
		return nil
	})
	e.Bytes(unix.NFTA_RULE_USERDATA, userData)
	attrs, err := e.Encode()
	if err != nil {
		return err
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	header := func(family byte, subsystem uint16) []byte {
		return append([]byte{family, unix.NFNETLINK_V0}, binaryutil.BigEndian.PutUint16(subsystem)...)
	}
	const batchBegin, batchEnd = 0x10, 0x11 // NFNL_MSG_BATCH_*
	msgs := []netlink.Message{
		{Header: netlink.Header{Type: batchBegin, Flags: netlink.Request}, Data: header(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)},
		{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Append},
			Data:   append(header(unix.NFPROTO_INET, 0), attrs...),
		},
		{Header: netlink.Header{Type: batchEnd, Flags: netlink.Request}, Data: header(unix.NFPROTO_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)},
	}
	if _, err := c.SendMessages(msgs); err != nil {
		return err
	}
	_, err = c.Receive() // the answer to the rule, or why the batch was refused
	return err
}
