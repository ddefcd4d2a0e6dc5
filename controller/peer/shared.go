package peer

import (
	"net/http"
	"sync"
)

// perConn bounds how many sessions share a connection. The leader's HTTP/2 walks over all
// streams of a connection for each frame that it sends, so a connection for all of them
// would cost the square of their number.
const perConn = 64

// shared are connections that sessions share. It is safe for concurrent use.
type shared struct {
	dial func() *http.Client

	mu    sync.Mutex // guards the fields below
	conns []*sharedConn
}

type sharedConn struct {
	*http.Client
	sessions int
}

// enter returns the first client with room for a session, which leave ends. Those behind
// it run empty first, and the leader closes what is idle.
func (s *shared) enter() (c *http.Client, leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := 0
	for i < len(s.conns) && s.conns[i].sessions == perConn {
		i++
	}
	if i == len(s.conns) {
		s.conns = append(s.conns, &sharedConn{Client: s.dial()})
	}
	in := s.conns[i]
	in.sessions++
	return in.Client, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		in.sessions--
	}
}

// close ends the connections that no session uses.
func (s *shared) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.CloseIdleConnections()
	}
}
