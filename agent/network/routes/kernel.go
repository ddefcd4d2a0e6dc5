package routes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/mdlayher/netlink"
	vish "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tries bounds how often a list that changed while it was read is asked for again.
const tries = 20

// whole returns a list of the kernel as it was at one time.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range tries {
		if all, err = list(); !errors.Is(err, vish.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// Read returns what the namespace has of what is drover's: of links those that want
// names, and bridges whose names are prefix and a number; neighbours on them; of ports
// those that want names.
func Read(want Picture, prefix string) (Picture, error) {
	have := NewPicture()
	all, err := whole(vish.LinkList)
	if err != nil {
		return have, fmt.Errorf("listing links: %w", err)
	}
	name := map[int]string{}
	for _, l := range all {
		name[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range all {
		a := l.Attrs()
		if _, ok := want.Ports[a.Name]; ok {
			have.Ports[a.Name] = name[a.MasterIndex]
		}
		w, wanted := want.Links[a.Name]
		if !wanted && (l.Type() != "bridge" || !Numbered(a.Name, prefix)) {
			continue
		}
		if have.Links[a.Name], err = readLink(l, w); err != nil {
			return have, err
		}
	}
	c, err := dial()
	if err != nil {
		return have, err
	}
	defer func() { _ = c.Close() }()
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if err := readRoutes(c, family, name, have.Routes); err != nil {
			return have, err
		}
	}
	if err := readReturns(c, name, &have); err != nil {
		return have, err
	}
	return have, readNeighbours(c, name, have)
}

// Numbered reports whether a name is prefix and a number.
func Numbered(name, prefix string) bool {
	number, ok := strings.CutPrefix(name, prefix)
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}

func readRoutes(c *netlink.Conn, family byte, name map[int]string, into map[netip.Prefix]Route) error {
	filter := make([]byte, unix.SizeofRtMsg)
	filter[0], filter[4], filter[5] = family, unix.RT_TABLE_MAIN, Protocol
	msgs, err := c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request | netlink.Dump}, Data: filter})
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, m := range msgs {
		dst, r, ok, err := decodeRoute(m.Data, name)
		if err != nil {
			return fmt.Errorf("listing routes: %w", err)
		}
		if ok {
			into[dst] = r
		}
	}
	return nil
}

func readNeighbours(c *netlink.Conn, name map[int]string, have Picture) error {
	msgs, err := c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_GETNEIGH, Flags: netlink.Request | netlink.Dump}, Data: make([]byte, unix.SizeofNdMsg)})
	if err != nil {
		return fmt.Errorf("listing neighbours: %w", err)
	}
	for _, m := range msgs {
		p, mac, ok, err := decodeNeighbour(m.Data, name)
		if err != nil {
			return fmt.Errorf("listing neighbours: %w", err)
		}
		if _, ours := have.Links[p.Dev]; ok && ours {
			have.Neighbours[p] = mac
		}
	}
	return nil
}

func readLink(l vish.Link, want Link) (Link, error) {
	a := l.Attrs()
	out := Link{MTU: a.MTU, Sysctls: map[string]string{}}
	copy(out.MAC[:], a.HardwareAddr)
	switch x := l.(type) {
	case *vish.Bridge:
	case *vish.Vxlan:
		if out.Port = x.Port; !x.FlowBased {
			out.Port = -1
		}
	default:
		out.Port = -1
	}
	if a.Flags&net.FlagUp == 0 {
		out.Port = -1 // to be configured
	}
	var err error
	for key, v := range want.Sysctls {
		if out.Sysctls[key], err = readSysctl(key); lacksIPv6(key, err) {
			out.Sysctls[key] = v // nothing is to be set
		}
	}
	addrs, err := whole(func() ([]vish.Addr, error) { return vish.AddrList(l, unix.AF_UNSPEC) })
	if err != nil {
		return out, fmt.Errorf("listing the addresses of %s: %w", a.Name, err)
	}
	for _, x := range addrs {
		out.Addrs = append(out.Addrs, prefixOf(x))
	}
	return out, nil
}

func prefixOf(a vish.Addr) netip.Prefix {
	ip, _ := netip.AddrFromSlice(a.IP)
	ones, _ := a.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones)
}

// Addresses returns those of all links but of those that except names, with the prefix
// lengths of their networks. IPv6 addresses with a lifetime are left out: any stranger on
// a link can advertise a prefix from which the host takes one.
func Addresses(except func(link string) bool) ([]netip.Prefix, error) {
	all, err := whole(func() ([]vish.Addr, error) { return vish.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return nil, fmt.Errorf("listing the host's addresses: %w", err)
	}
	var out []netip.Prefix
	for _, a := range all {
		if a.IP.To4() == nil && a.Flags&unix.IFA_F_PERMANENT == 0 {
			continue
		}
		l, err := vish.LinkByIndex(a.LinkIndex)
		var missing vish.LinkNotFoundError
		if errors.As(err, &missing) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("finding the link that has %v: %w", a.IPNet, err)
		}
		if !except(l.Attrs().Name) {
			out = append(out, prefixOf(a))
		}
	}
	return out, nil
}

// Apply makes the changes. It goes on after an error, and returns all of them.
func (c Changes) Apply() error {
	var errs []error
	for _, name := range c.AddLinks {
		if err := setLink(name, c.want.Links[name]); err != nil {
			errs = append(errs, err)
		}
	}
	for _, link := range c.Plug {
		if err := plug(link, c.want.Ports[link]); err != nil {
			errs = append(errs, err)
		}
	}
	if err := c.send(); err != nil {
		errs = append(errs, err)
	}
	for _, name := range c.DelLinks { // routes that led through them are elsewhere by now
		if err := RemoveLink(name); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (c Changes) send() error {
	index := map[string]int{}
	find := func(dev string) {
		if _, ok := index[dev]; dev == "" || ok {
			return
		}
		if l, err := net.InterfaceByName(dev); err == nil {
			index[dev] = l.Index
		}
	}
	b, err := newBatch()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(b.fd) }()
	for _, p := range c.Learn {
		find(p.Dev)
		data, err := p.encode(c.want.Neighbours[p], index)
		b.add(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, data, err, p.Addr)
	}
	for _, dst := range c.Set {
		r := c.want.Routes[dst]
		find(r.Dev)
		data, err := r.encode(dst, index)
		b.add(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, data, err, dst)
	}
	for _, dst := range c.Del {
		data, err := Route{Unreachable: true}.encode(dst, nil)
		if err == nil {
			data = anyRoute(data)
		}
		b.add(unix.RTM_DELROUTE, 0, data, err, dst)
	}
	for _, m := range c.SetReturns {
		find(c.want.Returns[m].Dev)
	}
	c.addReturns(b, index)
	for _, p := range c.Unlearn {
		find(p.Dev)
		if _, ok := index[p.Dev]; ok {
			data, err := p.encode(MAC{}, index)
			b.add(unix.RTM_DELNEIGH, 0, data, err, p.Addr)
		}
	}
	b.flush()
	if more := b.fails - mostErrors; more > 0 {
		b.errs = append(b.errs, fmt.Errorf("and %d more", more))
	}
	return errors.Join(b.errs...)
}

// anyRoute turns an encoded route into one that matches those of any type and scope.
func anyRoute(b []byte) []byte {
	b[6], b[7] = unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC
	return b
}

// batch sends requests, many at once, and collects errors. The kernel carries each out
// before the call that sent it returns, and answers only those that failed.
type batch struct {
	fd    int
	buf   []byte
	what  []fmt.Stringer // by sequence number, from 1
	errs  []error
	fails int
}

// perSend is how many bytes are sent at once.
const perSend = 64 << 10

func newBatch() (*batch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("reaching the kernel's routes: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4*perSend)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 16*perSend) // of answers that quote what they are to
	return &batch{fd: fd, buf: make([]byte, 0, perSend)}, nil
}

func (b *batch) add(typ uint16, flags uint16, data []byte, err error, what fmt.Stringer) {
	if err != nil {
		b.failed(what, err)
		return
	}
	size := unix.SizeofNlMsghdr + len(data)
	if len(b.buf)+size+4 > perSend {
		b.flush()
	}
	b.what = append(b.what, what)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, uint32(size))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, typ)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, unix.NLM_F_REQUEST|flags)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, uint32(len(b.what)))
	b.buf = append(append(b.buf, 0, 0, 0, 0), data...)
	for len(b.buf)%4 != 0 {
		b.buf = append(b.buf, 0)
	}
}

// mostErrors is how many are told: where a link can't be made, no route through it can.
const mostErrors = 5

func (b *batch) failed(what fmt.Stringer, err error) {
	if b.fails++; b.fails <= mostErrors {
		b.errs = append(b.errs, fmt.Errorf("setting the route to %v: %w", what, err))
	}
}

func (b *batch) flush() {
	if len(b.buf) == 0 {
		return
	}
	err := unix.Sendto(b.fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	b.buf = b.buf[:0]
	if err != nil {
		b.errs = append(b.errs, fmt.Errorf("setting routes: %w", err))
		return
	}
	answer := make([]byte, 8<<10)
	for {
		n, _, err := unix.Recvfrom(b.fd, answer, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return
		}
		if err != nil {
			b.errs = append(b.errs, fmt.Errorf("setting routes: %w", err))
			return
		}
		b.take(answer[:n])
	}
}

// take takes in answers.
func (b *batch) take(answer []byte) {
	const code = unix.SizeofNlMsghdr
	quoted := code + 4 // the header of what it is to
	for len(answer) >= quoted+unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(answer))
		if size < quoted+unix.SizeofNlMsghdr || size > len(answer) {
			return
		}
		errno := unix.Errno(-int32(binary.NativeEndian.Uint32(answer[code:])))
		typ, seq := binary.NativeEndian.Uint16(answer[quoted+4:]), int(binary.NativeEndian.Uint32(answer[quoted+8:]))
		gone := errno == unix.ESRCH || errno == unix.ENOENT
		gone = gone && (typ == unix.RTM_DELROUTE || typ == unix.RTM_DELNEIGH || typ == unix.RTM_DELRULE)
		there := typ == unix.RTM_NEWRULE && errno == unix.EEXIST
		if errno != 0 && seq > 0 && seq <= len(b.what) && !gone && !there {
			b.failed(b.what[seq-1], errno)
		}
		answer = answer[min((size+3)&^3, len(answer)):]
	}
}

func dial() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Strict: true})
	if err != nil {
		return nil, fmt.Errorf("reaching the kernel's routes: %w", err)
	}
	return c, nil
}

// setLink creates a link, or configures an existing one.
func setLink(name string, want Link) error {
	l, err := vish.LinkByName(name)
	var missing vish.LinkNotFoundError
	if errors.As(err, &missing) {
		l, err = makeLink(name, want)
	}
	if err != nil {
		return fmt.Errorf("making %s: %w", name, err)
	}
	have, err := readLink(l, want)
	if err != nil {
		return err
	}
	if v, ok := l.(*vish.Vxlan); want.Port > 0 && (!ok || v.Port != want.Port || !v.FlowBased) {
		return fmt.Errorf("%s is a %s of another kind: remove it, or set another name", name, l.Type())
	}
	if want.Port == 0 && l.Type() != "bridge" {
		return fmt.Errorf("%s is a %s, not a bridge: remove it, or set another name", name, l.Type())
	}
	for key, v := range want.Sysctls {
		if have.Sysctls[key] != v {
			if err := writeSysctl(key, v); err != nil {
				return err
			}
		}
	}
	if have.MAC != want.MAC {
		if err := vish.LinkSetHardwareAddr(l, want.MAC[:]); err != nil {
			return fmt.Errorf("setting the hardware address of %s: %w", name, err)
		}
	}
	if want.MTU != 0 && have.MTU != want.MTU {
		if err := vish.LinkSetMTU(l, want.MTU); err != nil {
			return fmt.Errorf("setting the MTU of %s: %w", name, err)
		}
	}
	for _, p := range want.Addrs {
		a := &vish.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := vish.AddrReplace(l, a); err != nil {
			return fmt.Errorf("addressing %s: %w", name, err)
		}
	}
	if err := vish.LinkSetUp(l); err != nil {
		return fmt.Errorf("setting %s up: %w", name, err)
	}
	return nil
}

func makeLink(name string, want Link) (vish.Link, error) {
	attrs := vish.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, want.MAC[:]
	var l vish.Link = &vish.Bridge{LinkAttrs: attrs}
	if want.Port > 0 {
		l = &vish.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: want.Port}
	}
	if err := vish.LinkAdd(l); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return vish.LinkByName(name)
}

// plug connects a link to a bridge. One that is missing is no error: its container is
// about to start, or just ended.
func plug(link, bridge string) error {
	l, err := vish.LinkByName(link)
	var missing vish.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("finding %s: %w", link, err)
	}
	b, err := vish.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("finding bridge %s: %w", bridge, err)
	}
	if err := vish.LinkSetMaster(l, b); err != nil {
		return fmt.Errorf("connecting %s to %s: %w", link, bridge, err)
	}
	if err := vish.LinkSetHairpin(l, true); err != nil {
		return fmt.Errorf("enabling hairpin mode on %s: %w", link, err)
	}
	return nil
}

// RemoveLink removes a link; one that is missing is no error.
func RemoveLink(name string) error {
	l, err := vish.LinkByName(name)
	var missing vish.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = vish.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("removing link %s: %w", name, err)
	}
	return nil
}

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys/net", key))
	return strings.TrimSpace(string(b)), err
}

// lacksIPv6 reports whether a key is missing because its link has no IPv6: the kernel has
// none, or the link's MTU is below IPv6's minimum.
func lacksIPv6(key string, err error) bool {
	return errors.Is(err, os.ErrNotExist) && strings.HasPrefix(key, "ipv6/")
}

// writeSysctl writes below /proc/sys/net.
func writeSysctl(key, v string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net", key), []byte(v), 0o644)
	if err != nil && !lacksIPv6(key, err) {
		return fmt.Errorf("setting net/%s: %w", key, err)
	}
	return nil
}
