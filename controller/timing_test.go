package controller

import (
	"net/http"
	"strings"
	"testing"

	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/timing"
)

// An operator sets the timing at any controller; who joins later begins with it.
func TestTheTimingIsSetForAllControllers(t *testing.T) {
	noLeaks(t)
	all, tk := fleet(t, 3)
	lead, others := split(t, all)
	if r := others[0].fleet("Controllers/GetTiming", "{}"); r.code != 200 || !strings.Contains(r.body, `"profile":"lan"`) {
		t.Fatalf("shown first: %v", r)
	}
	if r := others[0].fleet("Controllers/SetTiming", `{"timing":"300/300/400"}`); r.code != 400 || !strings.Contains(r.body, "longerthantheheartbeattimeout") {
		t.Fatalf("a lease that is too long: %v", r)
	}
	node := lead.files(identity.AgentPKI(lead.data))
	if r := lead.keyed(node, "k", "/drover.v1.Controllers/GetTiming", "{}"); r.code != http.StatusForbidden {
		t.Errorf("a node asks for it: %v", r)
	}
	const want = "400ms/500ms/300ms"
	if r := others[0].fleet("Controllers/SetTiming", `{"timing":"400/500/300"}`); r.code != 200 {
		t.Fatalf("setting it: %v", r)
	}
	for _, h := range all {
		until(t, h.addr+" with the new timing", func() bool { return h.c.node.Load().Timing().String() == want })
	}
	if r := others[1].fleet("Controllers/GetTiming", "{}"); r.code != 200 || !strings.Contains(r.body, want) {
		t.Fatalf("shown then: %v", r)
	}
	h := machine(t)
	if err := identity.Join(t.Context(), h.joining(all[0], tk, "late")); err != nil {
		t.Fatal(err)
	}
	if got, err := timing.Load(identity.TimingFile(h.data), timing.LAN); err != nil || got.String() != want {
		t.Errorf("who joins begins with %v, %v", got, err)
	}
}

// A fleet has from its first moment what its first host was configured with.
func TestAFleetIsMadeWithATiming(t *testing.T) {
	noLeaks(t)
	h := newHost(t, func(o *bootstrap.Options) { o.Timing = timing.Timing{Heartbeat: 2e8, Election: 3e8, Lease: 1e8} })
	h.up()
	if got := h.c.node.Load().Timing().String(); got != "200ms/300ms/100ms" {
		t.Errorf("it runs with %s", got)
	}
	if r := h.fleet("Controllers/GetTiming", "{}"); !strings.Contains(r.body, "200ms/300ms/100ms") {
		t.Errorf("it shows %v", r)
	}
}
