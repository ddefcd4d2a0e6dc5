package host

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover/drover/pkg/config"
)

func TestProfilesAreServedToRootOnASocketOfTheirOwn(t *testing.T) {
	c := &config.Config{RunDir: t.TempDir(), LogLevel: "info"}
	path := filepath.Join(c.RunDir, "agent-debug.sock")
	for range 2 { // the socket that a killed process left is replaced
		stop, err := serveProfiles(t.Context(), c, "agent")
		if err != nil {
			t.Fatal(err)
		}
		hc := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}}}
		resp, err := hc.Get("http://d/debug/pprof/goroutine?debug=2")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil || !strings.Contains(string(b), "serveProfiles") {
			t.Errorf("the goroutines are %d bytes, %v", len(b), err)
		}
		_ = resp.Body.Close()
		if st, err := os.Stat(path); err != nil || st.Mode().Perm()&0o007 != 0 {
			t.Errorf("everybody may open the socket: %v %v", st.Mode(), err)
		}
		if other, err := serveProfiles(t.Context(), c, "agent"); err != nil {
			t.Error(err)
		} else {
			other()
		}
		if resp, err := hc.Get("http://d/debug/pprof/cmdline"); err != nil {
			t.Errorf("a second process took the socket: %v", err)
		} else {
			_ = resp.Body.Close()
		}
		stop()
		if _, err := hc.Get("http://d/debug/pprof/"); err == nil {
			t.Error("it is served after its end")
		}
	}
}
