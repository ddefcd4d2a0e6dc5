package network

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestEndpoints(t *testing.T) {
	at, gateway := netip.MustParsePrefix("10.1.2.3/24"), netip.MustParseAddr("10.1.2.1")
	id := strings.Repeat("ab", 32)
	ports := []*dv1.Port{{Ip: "0.0.0.0", Host: 8080, Container: 80}, {Ip: "127.0.0.1", Proto: "udp", Container: 53}}
	got := Connection{Network: Bridge, GatewayPriority: 3, Ports: ports}.endpoint(0, id, at, gateway)
	want := Endpoint{Network: "bridge", Name: "eth0", Link: "dvrabababababab", Addresses: []netip.Prefix{at}, Gateway: gateway, GatewayPriority: 3,
		MAC: "02:42:0a:01:02:03", Ports: []Port{{Proto: "tcp", Host: 8080, Container: 80}, {IP: "127.0.0.1", Proto: "udp", Container: 53}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	second := Connection{Network: "x", Name: "wan0"}.endpoint(1, id, at, gateway)
	if second.Name != "wan0" || second.Link == got.Link || len(second.Link) > 15 {
		t.Errorf("the second is %s in the container, %s on the host", second.Name, second.Link)
	}
	s := &Sandbox{Endpoints: []Endpoint{got, second}}
	if d := s.Default(); d.Network != "bridge" {
		t.Errorf("the default route is by %s", d.Network)
	}
	s.Endpoints[1].GatewayPriority = 4
	if d := s.Default(); d.Network != "x" {
		t.Errorf("the default route is by %s, which has less of a priority", d.Network)
	}
	if p := s.Ports(); len(p) != 2 || p[1].Proto != "udp" || p[0].Host != 8080 {
		t.Errorf("published are %v", p)
	}
	if a := (Endpoint{Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::1/64")}}).IPv4(); a.IsValid() {
		t.Errorf("one without IPv4 has %v", a)
	}
}

func TestWhatNoNodeCanDoYetIsRefused(t *testing.T) {
	for _, to := range [][]Connection{nil, {{Network: "other"}}, {{Network: Bridge}, {Network: Bridge}}} {
		n := &Network{sandboxes: map[string]*Sandbox{}}
		if _, err := n.Attach(t.Context(), name(1), to); err == nil || len(n.List()) > 0 {
			t.Errorf("%v: %v, and left %v", to, err, n.List())
		}
	}
}

// What this build writes it reads, and so it does what the build before wrote.
func TestSandboxesOnDisk(t *testing.T) {
	dir := t.TempDir()
	n := &Network{o: Options{Dir: dir, NetnsDir: "/run/ns", Subnet: netip.MustParsePrefix("10.1.2.0/24")}}
	s := &Sandbox{Version: sandboxVersion, ID: name(1), Netns: "/run/ns/x", Boot: "b",
		Endpoints: []Endpoint{on(nil)[0].endpoint(0, name(1), netip.MustParsePrefix("10.1.2.9/24"), n.gateway())}}
	s.Endpoints[0].Ports = []Port{{Proto: "tcp", Host: 8080, Container: 80}}
	if err := n.save(s); err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprintf(`{"Version":1,"ID":%q,"Netns":"/run/ns/x","IP":"10.1.2.9","Gateway":"10.1.2.1","PrefixLen":24,`+
		`"MAC":"02:42:0a:01:02:09","Ports":[{"IP":"","Proto":"tcp","Host":8080,"Container":80}],"Boot":"b"}`, name(1))
	old := filepath.Join(t.TempDir(), name(1)+".json")
	if err := os.WriteFile(old, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{n.file(name(1)), old} {
		if got, err := readSandbox(file); err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%s: %+v, %v; want %+v", file, got, err, s)
		}
	}
}

// A container that runs when its agent is replaced by this build keeps its network.
func TestASandboxOfTheBuildBeforeGoesOn(t *testing.T) {
	w := newWorld(t)
	a, err := w.n.Attach(t.Context(), name(1), on(publish(" tcp 8080 80")))
	must(t, err)
	w.answer(a, 80)
	must(t, w.n.Close())
	e := a.Endpoints[0]
	b, err := json.Marshal(map[string]any{"Version": 1, "ID": a.ID, "Netns": a.Netns, "IP": e.IPv4().Addr(), "Gateway": e.Gateway,
		"PrefixLen": e.IPv4().Bits(), "MAC": e.MAC, "Ports": e.Ports, "Boot": a.Boot})
	must(t, err)
	must(t, os.WriteFile(w.n.file(a.ID), b, 0o600))
	w.open()
	w.reached("after the update", a, hostIP+":8080")
	if again, err := w.n.Attach(t.Context(), name(1), on(nil)); err != nil || !reflect.DeepEqual(again, a) {
		t.Errorf("it is %+v (%v), was %+v", again, err, a)
	}
	must(t, w.n.Detach(t.Context(), name(1)))
	if linked(a) {
		t.Error("its cable is left")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"Version":1,"IP":"10.0.0.1","PrefixLen":99}`))
	f.Add([]byte(`{"Version":2,"Endpoints":[{"Addresses":["10.0.0.1/24"]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decode(b); err == nil && s.Version != sandboxVersion {
			t.Errorf("version %d", s.Version)
		}
	})
}
