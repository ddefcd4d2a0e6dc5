package subnet

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// NetworkPool is a pool of subnets for networks, as docker's default-address-pools: IPv4
// networks of the length Size within Base.
type NetworkPool struct {
	Base netip.Prefix
	Size int
}

// DefaultNetworkPool is that of a fleet that says nothing else.
var DefaultNetworkPool = NetworkPool{netip.MustParsePrefix("10.220.0.0/14"), 20}

// minNetwork is the least that a network's subnet can be: the gateway and one container.
const minNetwork = 30

// ParseNetworkPool parses docker's form: base=10.220.0.0/14,size=20.
func ParseNetworkPool(s string) (NetworkPool, error) {
	fail := func(format string, args ...any) (NetworkPool, error) {
		return NetworkPool{}, fmt.Errorf("network pool %q "+format, append([]any{s}, args...)...)
	}
	fields := map[string]string{}
	for _, field := range strings.Split(s, ",") {
		key, value, ok := strings.Cut(field, "=")
		if _, twice := fields[key]; !ok || twice || key != "base" && key != "size" {
			return fail("is not of the form base=10.64.0.0/12,size=20")
		}
		fields[key] = value
	}
	base, err := netip.ParsePrefix(fields["base"])
	size, wrong := strconv.Atoi(fields["size"])
	switch {
	case err != nil || wrong != nil:
		return fail("is not of the form base=10.64.0.0/12,size=20")
	case !base.Addr().Is4() || base.Bits() < minPool || base.Bits() > minNetwork:
		return fail("has no IPv4 network from /%d to /%d as its base", minPool, minNetwork)
	case base != base.Masked():
		return fail("has bits behind its /%d: %s is the network", base.Bits(), base.Masked())
	case !base.Addr().IsGlobalUnicast():
		return fail("is not for hosts")
	case size < base.Bits() || size > minNetwork:
		return fail("has subnets that are not from /%d to /%d", base.Bits(), minNetwork)
	}
	return NetworkPool{base, size}, nil
}

// String returns what ParseNetworkPool parses.
func (p NetworkPool) String() string { return fmt.Sprintf("base=%s,size=%d", p.Base, p.Size) }

// Subnets returns how many subnets a pool has.
func (p NetworkPool) Subnets() int { return 1 << (p.Size - p.Base.Bits()) }
