package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// A published port answers on every host, with the client's address; it goes with its
// container, and hosts use their own numbers themselves.
func TestAPublishedPortAnswersOnEveryHost(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a, c := f.Hosts[0], f.Hosts[2]
	outside := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(h *fleet.Host, port int) string {
		r, err := outside.Get(fmt.Sprintf("http://%s:%d/", h.Addr, port))
		if err != nil {
			return err.Error()
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return string(b)
	}
	answers := func(port int, want string) {
		t.Helper()
		for _, h := range f.Hosts {
			var got string
			f.Eventually(5*time.Second, fmt.Sprintf("%s:%d answers %s", h.Name, port, want), func() bool { got = get(h, port); return strings.Contains(got, want) })
		}
	}
	a.Must("pull", "web")
	a.Must("network", "create", "red")
	a.Must("run", "-d", "--name", "one", "--on", "node==c", "-p", "8088:80", "web")
	a.Must("run", "-d", "--name", "two", "--on", "node==b", "--network", "red", "-p", "8089:80", "web")
	answers(8088, "on node c")
	answers(8089, "on node b")
	clients := map[string]bool{}
	for line := range strings.Lines(a.Must("logs", "one")) {
		if _, from, ok := strings.Cut(strings.TrimSpace(line), " from "); ok {
			clients[from[:strings.LastIndex(from, ":")]] = true
		}
	}
	if len(clients) != 1 {
		t.Errorf("one client is seen as %v", clients)
	}
	for _, h := range f.Hosts { // by the host itself, and a container of it by any host
		want(t, h.In(nil, "curl", "-sS", "-m5", "http://127.0.0.1:8088/"), 0, "on node c")
		want(t, a.Drover("run", "--rm", "--on", "node=="+h.Name, "alpine", "/bin/sh", "-c", `for a in "$@"; do printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 $a 8089 | tail -n1; done`, "x", f.Hosts[0].Addr, f.Hosts[1].Addr, c.Addr), 0,
			"(?s)on node b.*on node b.*on node b")
	}

	// A second one of a number is its own host's; the first one stays the others'.
	a.Must("run", "-d", "--name", "three", "--on", "node==a", "-p", "8088:80", "web")
	f.Eventually(5*time.Second, "a host's own is first", func() bool { return strings.Contains(get(a, 8088), "on node a") })
	if got := get(f.Hosts[1], 8088); !strings.Contains(got, "on node c") {
		t.Errorf("another host's door leads to %q", got)
	}
	a.Must("rm", "-f", "one")
	answers(8088, "on node a")
	c.Must("stop", "three", "two")
	f.Eventually(5*time.Second, "doors close", func() bool {
		return !slices.ContainsFunc(f.Hosts, func(h *fleet.Host) bool { return strings.Contains(get(h, 8088)+get(h, 8089), "answers") })
	})
	a.Must("start", "two")
	answers(8089, "on node b")
	f.Hosts[1].Kill("agent")
	answers(8089, "on node b")
}
