package subnet

import (
	"strings"
	"testing"
)

func TestParseNetworkPool(t *testing.T) {
	for _, c := range []struct {
		text    string
		subnets int
		wrong   string
	}{
		{"base=10.220.0.0/14,size=20", 64, ""},
		{"size=24,base=172.30.0.0/16", 256, ""},
		{"base=172.30.0.0/24,size=24", 1, ""},
		{"base=10.0.0.0/8,size=30", 1 << 22, ""},
		{"", 0, "is not of the form base=10.64.0.0/12,size=20"},
		{"10.64.0.0/12", 0, "is not of the form"},
		{"base=10.64.0.0/12", 0, "is not of the form"},
		{"base=10.64.0.0/12,size=x", 0, "is not of the form"},
		{"base=10.64.0.0/12,size=20,size=21", 0, "is not of the form"},
		{"base=10.64.0.0/12,size=20,more=1", 0, "is not of the form"},
		{"base=fd00::/48,size=64", 0, "has no IPv4 network from /8 to /30"},
		{"base=0.0.0.0/0,size=8", 0, "has no IPv4 network from /8 to /30"},
		{"base=10.64.0.0/31,size=31", 0, "has no IPv4 network"},
		{"base=10.64.0.1/12,size=20", 0, "10.64.0.0/12 is the network"},
		{"base=224.0.0.0/12,size=20", 0, "is not for hosts"},
		{"base=127.0.0.0/12,size=20", 0, "is not for hosts"},
		{"base=10.64.0.0/12,size=11", 0, "not from /12 to /30"},
		{"base=10.64.0.0/12,size=31", 0, "not from /12 to /30"},
	} {
		p, err := ParseNetworkPool(c.text)
		if c.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%q: %v, want %s", c.text, err, c.wrong)
			}
			continue
		}
		if again, e := ParseNetworkPool(p.String()); err != nil || e != nil || again != p || p.Subnets() != c.subnets {
			t.Errorf("%q: %v with %d subnets, %v", c.text, p, p.Subnets(), err)
		}
	}
}
