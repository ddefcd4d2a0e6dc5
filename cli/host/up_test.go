package host

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/config"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/unixsock"
)

// serve answers every request on a unix socket.
func serve(t *testing.T, path string, h http.HandlerFunc) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
}

func TestAHostIsUpOnceItsAgentAndTheLeaderSaySo(t *testing.T) {
	run, err := os.MkdirTemp("", "du") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	c := &config.Config{RunDir: run, DataDir: t.TempDir(), NodeName: "web-1"}
	var agent string // what the agent lacks
	header, code := http.Header{}, http.StatusOK
	serve(t, filepath.Join(run, "agent.sock"), func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case strings.Contains(agent, "session"):
			http.Error(w, agent, http.StatusBadGateway)
		case agent != "":
			http.Error(w, agent, http.StatusServiceUnavailable)
		}
	})
	serve(t, unixsock.File(run), func(w http.ResponseWriter, _ *http.Request) {
		for k, v := range header {
			w.Header()[k] = v
		}
		w.WriteHeader(code)
		_, _ = fmt.Fprint(w, `{"NCPU": 2}`)
	})
	for _, tc := range []struct {
		name, agent string
		header      http.Header
		code        int
		want        string // of the reason; "": it is up
	}{
		{"its session is not open, though the fleet knows the node", "no session with a controller yet", nil, 200, "no session"},
		{"the leader does not hear it", "", http.Header{wire.HeaderMissing: {"db-1 (silent), web-1 (silent for 3s)"}}, 200, "not reached"},
		{"no leader", "", http.Header{wire.HeaderStale: {"1"}}, 200, "no leader"},
		{"the controller starts", "", nil, 503, "not reached"},
		{"its users have no role, and its agent is not there yet", "containerd does not answer yet", nil, 403, "containerd"},
		{"its users have no role", "", nil, 403, ""},
		{"another node is silent", "", http.Header{wire.HeaderMissing: {"db-1 (silent)"}}, 200, ""},
		{"up", "", nil, 200, ""},
	} {
		agent, header, code = tc.agent, tc.header, tc.code
		err := ready(t.Context(), c)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		// A host with an agent only is complete without a session. One with a
		// controller is if that says so.
		lone := strings.Contains(tc.agent, "session") || tc.want == "no leader"
		if errors.Is(err, errElsewhere) != lone {
			t.Errorf("%s: only the rest of the fleet is missing: want %v, got %v", tc.name, lone, err)
		}
	}
	// This host's own controller may be what is missing.
	if err := os.MkdirAll(identity.ControllerPKI(c.DataDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(identity.ControllerPKI(c.DataDir), "cert.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	agent, header, code = "no session with a controller yet", nil, 500
	if err := ready(t.Context(), c); err == nil || errors.Is(err, errElsewhere) {
		t.Errorf("without a session and without its controller: %v", err)
	}
	header, code = nil, 503
	if err := ready(t.Context(), c); !errors.Is(err, errElsewhere) {
		t.Errorf("without a session and with a controller that waits: %v", err)
	}
	header, code = http.Header{wire.HeaderStale: {"1"}}, 200
	if err := waitReady(t.Context(), c, nil, 0); !errors.Is(err, errElsewhere) {
		t.Errorf("waiting for the rest of the fleet ended with %v", err)
	}
}
