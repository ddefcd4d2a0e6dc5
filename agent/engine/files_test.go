package engine

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/container"
)

func TestHosts(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/hosts"), []byte("192.0.2.9 printer\n"), 0o600); err != nil {
		t.Fatal(err)
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
		if got := hostsText(root, c.c, "web", c.ip, netip.MustParseAddr("10.0.0.1")); got != want {
			t.Errorf("%swant\n%s", got, want)
		}
	}
}
