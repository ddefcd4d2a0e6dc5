package network

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/network/routes"
	"github.com/drover/drover/pkg/failpoint"
)

// withoutIPv6 disables IPv6 on the host's end of a veth pair, for the reason that bridges
// have (sysctlsOf).
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
	if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) == v {
		return nil
	}
	if err := os.WriteFile(path, []byte(v), 0o644); err != nil {
		return fmt.Errorf("setting %s: %w", path, err)
	}
	return nil
}

// link creates a sandbox's namespace and the veth pairs to it.
func link(s *Sandbox, o Options) error {
	ns, err := makeNetns(s.Netns)
	if err != nil {
		return err
	}
	_ = ns.Close()
	failpoint.Here("network.netns.after")
	return inNamespace(s, func(in *inside) error {
		lo, err := in.h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("finding lo: %w", err)
		}
		if err := in.h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("setting lo up: %w", err)
		}
		for _, e := range s.Endpoints {
			if err := in.plug(e, o); err != nil {
				return fmt.Errorf("connecting %s: %w", s.Netns, err)
			}
		}
		return in.routes(s)
	})
}

// inside is a sandbox's namespace, as seen from the host's.
type inside struct {
	ns netns.NsHandle
	h  *netlink.Handle
}

// errNoNamespace reports that a sandbox's namespace is not there.
var errNoNamespace = errors.New("the namespace is missing")

func inNamespace(s *Sandbox, do func(*inside) error) error {
	ns, err := netns.GetFromPath(s.Netns)
	if err != nil {
		return fmt.Errorf("opening %s: %w: %w", s.Netns, errNoNamespace, err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("entering %s: %w", s.Netns, err)
	}
	defer h.Close()
	return do(&inside{ns, h})
}

// plug creates an endpoint's veth pair, from its bridge into the namespace.
func (in *inside) plug(e Endpoint, o Options) error {
	hw, err := net.ParseMAC(e.MAC)
	if err != nil {
		return fmt.Errorf("hardware address %s: %w", e.MAC, err)
	}
	br, err := netlink.LinkByName(e.bridge(o))
	if err != nil {
		return fmt.Errorf("finding bridge %s: %w", e.bridge(o), err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.MTU = e.Link, br.Attrs().Index, e.MTU
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: e.Name, PeerHardwareAddr: hw, PeerNamespace: netlink.NsFd(in.ns)}
	if e.MTU > 0 {
		veth.PeerMTU = uint32(e.MTU)
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("creating the veth pair %s: %w", e.Link, err)
	}
	failpoint.Here("network.veth.after")
	if err := withoutIPv6(e.Link); err != nil {
		return err
	}
	if err := in.configure(e); err != nil {
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
	if a := e.IPv4(); e.Network != Bridge && a.IsValid() {
		return announce(e.bridge(o), routes.MAC(hw), a.Addr())
	}
	return nil
}

// configure sets an endpoint's addresses in its namespace. An IPv6 address stands alone:
// all others are behind the gateway, also those of the same network, for no bridge
// answers for addresses that are on other nodes.
func (in *inside) configure(e Endpoint) error {
	eth, err := in.h.LinkByName(e.Name)
	if err != nil {
		return fmt.Errorf("finding %s: %w", e.Name, err)
	}
	if err := in.sysctls(e); err != nil {
		return err
	}
	for _, a := range slices.Concat(e.Addresses, e.LinkLocal) {
		addr := &netlink.Addr{IPNet: ipNet(a.Addr(), a.Bits())}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
			addr.IPNet = ipNet(a.Addr(), 128)
		}
		if err := in.h.AddrAdd(eth, addr); err != nil {
			return fmt.Errorf("addressing %s: %w", e.Name, err)
		}
	}
	if err := in.h.LinkSetUp(eth); err != nil {
		return fmt.Errorf("setting %s up: %w", e.Name, err)
	}
	if a := e.IPv6(); a.IsValid() {
		r := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: ipNet(a.Masked().Addr(), a.Bits()), Gw: gateway6.AsSlice()}
		if err := in.h.RouteReplace(r); err != nil {
			return fmt.Errorf("routing to %v: %w", a.Masked(), err)
		}
	}
	return nil
}

// sysctls sets those of an endpoint, and enables IPv6 where it has such an address.
func (in *inside) sysctls(e Endpoint) error {
	all := maps.Clone(e.Sysctls)
	if e.IPv6().IsValid() {
		conf := "ipv6/conf/" + e.Name + "/"
		all = map[string]string{conf + "addr_gen_mode": "0", conf + "accept_ra": "0", conf + "accept_redirects": "0", conf + "accept_dad": "0", conf + "disable_ipv6": "0"}
		maps.Copy(all, e.Sysctls)
	}
	if len(all) == 0 {
		return nil
	}
	return onThreadIn(in.ns, func() error {
		for _, key := range slices.Sorted(maps.Keys(all)) {
			if err := sysctl(key, all[key]); err != nil {
				return err
			}
		}
		return nil
	})
}

// routes sets the default routes of a sandbox, one of each family.
func (in *inside) routes(s *Sandbox) error {
	for _, family := range []struct {
		gateway func(Endpoint) netip.Addr
		all     *net.IPNet
	}{
		{func(e Endpoint) netip.Addr { return e.Gateway }, ipNet(netip.IPv4Unspecified(), 0)},
		{func(e Endpoint) netip.Addr { return e.Gateway6 }, ipNet(netip.IPv6Unspecified(), 0)},
	} {
		i := s.route(func(e Endpoint) bool { return family.gateway(e).IsValid() })
		if i < 0 {
			continue
		}
		e := s.Endpoints[i]
		eth, err := in.h.LinkByName(e.Name)
		if err != nil {
			return fmt.Errorf("finding %s: %w", e.Name, err)
		}
		r := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: family.all, Gw: family.gateway(e).AsSlice()}
		if err := in.h.RouteReplace(r); err != nil {
			return fmt.Errorf("routing to %v: %w", family.gateway(e), err)
		}
	}
	return nil
}

// bridge returns the name of the bridge that an endpoint is on.
func (e Endpoint) bridge(o Options) string { return cmp.Or(e.Bridge, o.Bridge) }

// onThreadIn runs f on a thread of its own inside a namespace.
func onThreadIn(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("entering a namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// unlink removes what link created; missing parts are no error.
func unlink(s *Sandbox) error {
	var err error
	for _, e := range s.Endpoints {
		err = errors.Join(err, routes.RemoveLink(e.Link))
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

// unused reports whether no connection is left in a namespace, not even one that waits for
// its end to be forgotten.
func unused(s *Sandbox) bool {
	ns, err := netns.GetFromPath(s.Netns)
	if err != nil {
		return false
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_INET_DIAG)
	if err != nil {
		return false
	}
	defer h.Close()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if left, err := h.SocketDiagTCP(family); err != nil || len(left) > 0 {
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
