package engine

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/network"
)

func TestHosts(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hosts"), []byte("192.0.2.9 printer\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	in := func(ip string) *network.Sandbox {
		if ip == "" {
			return nil
		}
		return &network.Sandbox{Endpoints: []network.Endpoint{{Addresses: []netip.Prefix{netip.MustParsePrefix(ip + "/24")}}}}
	}
	extra := []string{"db:192.0.2.1", "up:host-gateway", "nonsense"}
	for want, c := range map[string]struct {
		c  container.CreateRequest
		ip string
	}{
		usualHosts:                     {},
		usualHosts + "10.0.0.2\tweb\n": {ip: "10.0.0.2"},
		"192.0.2.9 printer\n":          {c: container.CreateRequest{HostConfig: &container.HostConfig{NetworkMode: "host"}}},
		usualHosts + "192.0.2.1\tdb\n10.0.0.1\tup\n10.0.0.2\tweb.example.org web\n": {
			c:  container.CreateRequest{Config: &container.Config{Domainname: "example.org"}, HostConfig: &container.HostConfig{ExtraHosts: extra}},
			ip: "10.0.0.2",
		},
	} {
		if got := hostsText(root, c.c, "web", in(c.ip), netip.MustParseAddr("10.0.0.1")); got != want {
			t.Errorf("%swant\n%s", got, want)
		}
	}
}
