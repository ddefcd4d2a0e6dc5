package mux

import (
	"math/rand/v2"
	"net"
	"sync"
)

// strangers are the open connections without a client certificate, or without one yet.
// When there are too many, a newcomer evicts another connection instead of being
// refused: containers share the address of their host, and whoever fills all places of
// an address must not lock out the others behind it. The victim is chosen at random, so
// that a handshake of a few milliseconds survives most newcomers.
type strangers struct {
	each, all int // limits per source, and for all sources together

	mu sync.Mutex // guards the fields below
	of map[string][]*stranger
	n  int
}

// stranger is a connection that counts as one until it is closed or authenticated.
type stranger struct {
	net.Conn
	all    *strangers
	source string
	at     int // index in the list of its source; -1: it doesn't count
}

// Close implements net.Conn.
func (c *stranger) Close() error {
	c.all.leave(c)
	return c.Conn.Close()
}

// enter counts a connection, and returns the one it evicts, if any, for the caller to
// close.
func (s *strangers) enter(c net.Conn, source string) (in, out *stranger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case len(s.of[source]) >= s.each:
		out = s.any(source)
	case s.n >= s.all:
		out = s.any(s.most())
	}
	if out != nil {
		s.remove(out)
	}
	in = &stranger{Conn: c, all: s, source: source, at: len(s.of[source])}
	s.of[source] = append(s.of[source], in)
	s.n++
	return in, out
}

func (s *strangers) leave(c *stranger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.at >= 0 {
		s.remove(c)
	}
}

func (s *strangers) any(source string) *stranger {
	of := s.of[source]
	return of[rand.N(len(of))]
}

// most returns the source that has the most.
func (s *strangers) most() (source string) {
	for k, of := range s.of {
		if len(of) > len(s.of[source]) {
			source = k
		}
	}
	return source
}

func (s *strangers) remove(c *stranger) {
	of := s.of[c.source]
	last := of[len(of)-1]
	of[c.at], last.at = last, c.at
	of[len(of)-1] = nil
	if s.of[c.source] = of[:len(of)-1]; len(of) == 1 {
		delete(s.of, c.source)
	}
	c.at = -1
	s.n--
}
