package engine

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/container"
)

func TestResolvConfIsWhatAContainerCanReach(t *testing.T) {
	const (
		stub     = "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n"
		upstream = "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch corp.example\n"
	)
	dns := &container.HostConfig{DNS: []netip.Addr{netip.MustParseAddr("198.51.100.1")}}
	for name, c := range map[string]struct {
		host, resolved string
		hc             *container.HostConfig
		hosts          bool // network
		want           string
	}{
		"a host's own servers":        {host: "nameserver 192.0.2.1\nsearch lan\n", want: "nameserver 192.0.2.1\nsearch lan\n"},
		"systemd-resolved":            {host: stub, resolved: upstream, want: upstream},
		"a loopback server among two": {host: "nameserver 127.0.0.1\nnameserver 192.0.2.1\n", resolved: upstream, want: "nameserver 192.0.2.1\n"},
		"a resolver of the host's, no systemd": {host: "nameserver 127.0.0.1\nnameserver ::1\noptions edns0\n",
			want: "options edns0\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		"systemd-resolved that knows no server": {host: stub, resolved: "search lan\n",
			want: "options edns0 trust-ad\nsearch lan\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		"no file at all":              {want: "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		"an IPv6 server":              {host: "nameserver 2001:db8::1\nnameserver 192.0.2.1\n", want: "nameserver 192.0.2.1\n"},
		"--dns":                       {host: stub, resolved: upstream, hc: dns, want: "search corp.example\nnameserver 198.51.100.1\n"},
		"--dns-search none":           {host: "nameserver 192.0.2.1\nsearch lan\n", hc: &container.HostConfig{DNSSearch: []string{"."}}, want: "nameserver 192.0.2.1\n"},
		"the host's network":          {host: stub, resolved: upstream, hosts: true, want: "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n"},
		"a server cut off mid-line":   {host: "nameserver\nnameserver 192.0.2.1", want: "nameserver 192.0.2.1\n"},
		"mapped loopback is loopback": {host: "nameserver ::ffff:127.0.0.1\n", resolved: upstream, want: upstream},
	} {
		root := t.TempDir()
		for file, text := range map[string]string{hostResolv: c.host, resolvedResolv: c.resolved} {
			if text == "" {
				continue
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if c.hc == nil {
			c.hc = &container.HostConfig{}
		}
		if got := resolvConf(root, c.hc, !c.hosts); got != c.want {
			t.Errorf("%s:\n%swant\n%s", name, got, c.want)
		}
	}
}
