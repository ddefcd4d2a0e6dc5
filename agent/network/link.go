package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/pkg/failpoint"
)

// ensureBridge creates the bridge, or configures an existing one. Its hardware address
// is fixed, derived from the gateway's: a bridge without one takes the lowest of its
// ports', which changes when that container ends and leaves the others with a stale
// neighbour entry for their gateway.
func ensureBridge(name string, gw netip.Addr, bits int) error {
	hw, err := net.ParseMAC(mac(gw))
	if err != nil {
		return fmt.Errorf("hardware address of bridge %s: %w", name, err)
	}
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = name, hw
		b := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(b); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("making bridge %s: %w", name, err)
		}
		l, err = netlink.LinkByName(name)
	}
	if err != nil {
		return fmt.Errorf("finding bridge %s: %w", name, err)
	}
	if l.Type() != "bridge" {
		return fmt.Errorf("%s is a %s, not a bridge: set another bridge name", name, l.Type())
	}
	if err := withoutIPv6(name); err != nil {
		return err
	}
	conf := "ipv4/conf/" + name + "/"
	// 127.0.0.1 on the host reaches published ports through the bridge only.
	// A change of the hardware address is announced to running containers.
	for key, v := range map[string]string{conf + "route_localnet": "1", conf + "arp_notify": "1"} {
		if err := sysctl(key, v); err != nil {
			return err
		}
	}
	if !bytes.Equal(l.Attrs().HardwareAddr, hw) {
		if err := netlink.LinkSetHardwareAddr(l, hw); err != nil {
			return fmt.Errorf("setting the hardware address of bridge %s: %w", name, err)
		}
	}
	if err := netlink.AddrReplace(l, &netlink.Addr{IPNet: ipNet(gw, bits)}); err != nil {
		return fmt.Errorf("addressing bridge %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("setting bridge %s up: %w", name, err)
	}
	return nil
}

// withoutIPv6 disables IPv6, which containers don't have yet, on a link of the host:
// with the kernel's defaults, a router advertisement from a container makes it the
// host's default router (as in CVE-2020-13401). accept_ra and autoconf are for
// administrators who enable IPv6 again.
func withoutIPv6(link string) error {
	for _, kv := range [][2]string{{"accept_ra", "0"}, {"autoconf", "0"}, {"accept_redirects", "0"}, {"disable_ipv6", "1"}} {
		if err := sysctl("ipv6/conf/"+link+"/"+kv[0], kv[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err // without the file the kernel has no IPv6 at all
		}
	}
	return nil
}

// sysctl writes below /proc/sys/net in the calling thread's network namespace.
func sysctl(key, v string) error {
	path := filepath.Join("/proc/sys/net", key)
	if old, err := os.ReadFile(path); err == nil && len(old) > 0 && string(old[:1]) == v {
		return nil
	}
	if err := os.WriteFile(path, []byte(v), 0o644); err != nil {
		return fmt.Errorf("setting %s: %w", path, err)
	}
	return nil
}

func removeLink(name string) error {
	l, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("removing link %s: %w", name, err)
	}
	return nil
}

// link creates a sandbox's namespace and the veth pairs to it.
func link(s *Sandbox, bridge string) error {
	ns, err := makeNetns(s.Netns)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	failpoint.Here("network.netns.after")
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("finding bridge %s: %w", bridge, err)
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("entering %s: %w", s.Netns, err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("setting lo up: %w", err)
	}
	route := s.Default().Link
	for _, e := range s.Endpoints {
		if err := plug(h, ns, br, e, e.Link == route); err != nil {
			return fmt.Errorf("connecting %s: %w", s.Netns, err)
		}
	}
	return nil
}

// plug creates an endpoint's veth pair, from a bridge into the namespace of h.
func plug(h *netlink.Handle, ns netns.NsHandle, br netlink.Link, e Endpoint, route bool) error {
	hw, err := net.ParseMAC(e.MAC)
	if err != nil {
		return fmt.Errorf("hardware address %s: %w", e.MAC, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = e.Link, br.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: e.Name, PeerHardwareAddr: hw, PeerNamespace: netlink.NsFd(ns)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("creating the veth pair %s: %w", e.Link, err)
	}
	failpoint.Here("network.veth.after")
	if err := withoutIPv6(e.Link); err != nil {
		return err
	}
	if err := configure(h, e, route); err != nil {
		return err
	}
	// A container that dials its own published port gets its answer over the same bridge
	// port.
	if err := netlink.LinkSetHairpin(veth, true); err != nil {
		return fmt.Errorf("enabling hairpin mode on %s: %w", e.Link, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("setting %s up: %w", e.Link, err)
	}
	return nil
}

// configure sets an endpoint's addresses in its namespace, and its default route if it
// has it.
func configure(h *netlink.Handle, e Endpoint, route bool) error {
	eth, err := h.LinkByName(e.Name)
	if err != nil {
		return fmt.Errorf("finding %s: %w", e.Name, err)
	}
	for _, a := range e.Addresses {
		if err := h.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(a.Addr(), a.Bits())}); err != nil {
			return fmt.Errorf("addressing %s: %w", e.Name, err)
		}
	}
	if err := h.LinkSetUp(eth); err != nil {
		return fmt.Errorf("setting %s up: %w", e.Name, err)
	}
	if !route {
		return nil
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: e.Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("routing to %v: %w", e.Gateway, err)
	}
	return nil
}

// unlink removes what link created; missing parts are no error.
func unlink(s *Sandbox) error {
	var err error
	for _, e := range s.Endpoints {
		err = errors.Join(err, removeLink(e.Link))
	}
	if uerr := unix.Unmount(s.Netns, unix.MNT_DETACH); uerr != nil && !errors.Is(uerr, unix.EINVAL) && !errors.Is(uerr, unix.ENOENT) {
		err = errors.Join(err, fmt.Errorf("unmounting %s: %w", s.Netns, uerr))
	}
	if rerr := os.Remove(s.Netns); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, fmt.Errorf("removing %s: %w", s.Netns, rerr))
	}
	return err
}

// linked reports whether the namespace and all links exist.
func linked(s *Sandbox) bool {
	var st unix.Statfs_t
	if unix.Statfs(s.Netns, &st) != nil || st.Type != unix.NSFS_MAGIC {
		return false
	}
	for _, e := range s.Endpoints {
		if _, err := netlink.LinkByName(e.Link); err != nil {
			return false
		}
	}
	return true
}

// addressIn returns the address of an interface in the namespace at path.
func addressIn(path, name string) (netip.Addr, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("opening the namespace %s: %w", path, err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("entering %s: %w", path, err)
	}
	defer h.Close()
	eth, err := h.LinkByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("finding %s in %s: %w", name, path, err)
	}
	addrs, err := h.AddrList(eth, unix.AF_INET)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("listing the addresses of %s: %w", path, err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s in %s has no address", name, path)
}

// makeNetns creates a network namespace and binds it to path. The thread that creates it
// is not reused.
func makeNetns(path string) (netns.NsHandle, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|os.O_EXCL, 0o444)
	if err != nil {
		return -1, fmt.Errorf("naming a namespace: %w", err)
	}
	_ = f.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("making a network namespace: %w", err)
			return
		}
		// As in docker: only ::1, until containers have IPv6 addresses.
		for _, kv := range [][2]string{{"all", "1"}, {"default", "1"}, {"lo", "0"}} {
			if err := sysctl("ipv6/conf/"+kv[0]+"/disable_ipv6", kv[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
				done <- err
				return
			}
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			done <- fmt.Errorf("naming a network namespace %s: %w", path, err)
			return
		}
		done <- nil
	}()
	if err := <-done; err != nil {
		_ = os.Remove(path)
		return -1, err
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return -1, fmt.Errorf("opening the namespace %s: %w", path, err)
	}
	return ns, nil
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}
