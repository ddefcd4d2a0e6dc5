package peer

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
)

// conns counts the streams of each connection that a leader accepted.
type conns struct {
	mu   sync.Mutex // guards open
	open map[string]int
}

func (c *conns) enter(addr string) (leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[addr]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.open[addr]--; c.open[addr] == 0 {
			delete(c.open, addr)
		}
	}
}

func (c *conns) counts() (out []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.open {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// A connection to the leader takes so many sessions and no more, and a place that one
// left is another's.
func TestSessionsShareConnectionsToTheLeader(t *testing.T) {
	m, at := newMember(), &conns{open: map[string]int{}}
	lead(t, m, func(w http.ResponseWriter, r *http.Request) {
		defer at.enter(r.RemoteAddr)()
		echo(w, r)
	})
	f := follower(t, m)
	gateway := httptest.NewUnstartedServer(as(agent, f.Sessions(http.NotFoundHandler())))
	gateway.EnableHTTP2 = true
	gateway.StartTLS()
	t.Cleanup(gateway.Close)
	open := func() (end func()) {
		t.Helper()
		in, out := io.Pipe()
		resp, err := gateway.Client().Post(gateway.URL+SessionRoute.Pattern, "application/connect+proto", in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte("beat")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		return func() { _ = out.Close(); _, _ = io.ReadAll(resp.Body); _ = resp.Body.Close() }
	}
	var ends []func()
	for range 2*perConn + 2 {
		ends = append(ends, open())
	}
	if got, want := at.counts(), []int{2, perConn, perConn}; !slices.Equal(got, want) {
		t.Fatalf("connections of %v sessions, want %v", got, want)
	}
	ends[0]()
	ends[perConn]()
	ends = append(ends[1:], open(), open())
	if got, want := at.counts(), []int{2, perConn, perConn}; !slices.Equal(got, want) {
		t.Errorf("after two left and two came, connections of %v sessions, want %v", got, want)
	}
	ends = slices.Delete(ends, perConn-1, perConn)
	for _, end := range ends {
		end()
	}
}
