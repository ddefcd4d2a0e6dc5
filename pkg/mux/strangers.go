package mux

import (
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"
)

// Limits of a source from which certificates have been shown lately: hosts behind one
// address may reconnect all at once, so many of its connections may be in a handshake.
// What finished one without a certificate stays limited as elsewhere.
const (
	maxShaking = 512
	knownFor   = 10 * time.Minute // after the last connection with a certificate closed
	maxKnown   = 4096             // sources that are remembered without a connection
)

// strangers are the open connections without a client certificate, or without one yet.
// When there are too many, a newcomer evicts another connection instead of being
// refused: containers share the address of their host, and whoever fills all places of
// an address must not lock out the others behind it. The victim is chosen at random, so
// that a handshake of a few milliseconds survives most newcomers.
type strangers struct {
	each, shaking, all int // limits per source, per known source in a handshake, and for all sources together

	mu    sync.Mutex // guards the fields below
	of    map[place][]*stranger
	n     int
	known map[string]*known // by source
}

// place is where a connection counts.
type place struct {
	source string
	done   bool // its handshake is over, and there was no certificate
}

// known is a source from which certificates were shown.
type known struct {
	open int       // connections with one
	last time.Time // when the last of these closed
}

// stranger is a connection that counts as one until it is closed or authenticated.
type stranger struct {
	net.Conn
	all     *strangers
	place   place
	at      int  // index in the list of its place; -1: it doesn't count
	certain bool // it has shown a certificate, and is open
}

// Close implements net.Conn.
func (c *stranger) Close() error {
	c.all.leave(c)
	return c.Conn.Close()
}

// newStrangers returns an empty strangers.
func newStrangers(each, shaking, all int) *strangers {
	return &strangers{each: each, shaking: shaking, all: all, of: map[place][]*stranger{}, known: map[string]*known{}}
}

// enter counts a connection whose handshake is to come, and returns the one it evicts,
// if any, for the caller to close.
func (s *strangers) enter(c net.Conn, source string) (in, out *stranger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	here := place{source: source}
	theirs, most := s.of[here], s.shaking
	if !s.isKnown(source) {
		theirs, most = slices.Concat(theirs, s.of[place{source, true}]), s.each
	}
	switch {
	case len(theirs) >= most:
		out = anyOf(theirs)
	case s.n >= s.all:
		out = anyOf(s.of[s.most()])
	}
	if out != nil {
		s.remove(out)
	}
	in = &stranger{Conn: c, all: s, at: -1}
	s.add(in, here)
	return in, out
}

// stay counts a connection whose handshake is over without a certificate, and returns
// the one it evicts, if any.
func (s *strangers) stay(c *stranger) (out *stranger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.at < 0 { // evicted or closed meanwhile
		return nil
	}
	s.remove(c)
	there := place{c.place.source, true}
	if len(s.of[there]) >= s.each {
		out = anyOf(s.of[there])
		s.remove(out)
	}
	s.add(c, there)
	return out
}

// shown no longer counts a connection, which has shown a certificate: its source is
// known from now on.
func (s *strangers) shown(c *stranger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.at < 0 {
		return
	}
	s.remove(c)
	c.certain = true
	k := s.known[c.place.source]
	if k == nil {
		s.forget()
		k = &known{}
		s.known[c.place.source] = k
	}
	k.open++
}

// leave counts a connection no longer, which is closed. It may be called more than once.
func (s *strangers) leave(c *stranger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.at >= 0 {
		s.remove(c)
	}
	if c.certain {
		c.certain = false
		k := s.known[c.place.source]
		k.open--
		k.last = time.Now()
	}
}

func (s *strangers) isKnown(source string) bool {
	k := s.known[source]
	return k != nil && (k.open > 0 || time.Since(k.last) < knownFor)
}

// forget makes room for a source that becomes known: of those without a connection, it
// forgets the ones whose time is over, and if that is not enough, any.
func (s *strangers) forget() {
	if len(s.known) < maxKnown {
		return
	}
	for source := range s.known {
		if !s.isKnown(source) {
			delete(s.known, source)
		}
	}
	for source, k := range s.known {
		if len(s.known) < maxKnown {
			return
		}
		if k.open == 0 {
			delete(s.known, source)
		}
	}
}

func anyOf(of []*stranger) *stranger { return of[rand.N(len(of))] }

// most returns the place that has the most.
func (s *strangers) most() (most place) {
	for p, of := range s.of {
		if len(of) > len(s.of[most]) {
			most = p
		}
	}
	return most
}

func (s *strangers) add(c *stranger, to place) {
	c.place, c.at = to, len(s.of[to])
	s.of[to] = append(s.of[to], c)
	s.n++
}

func (s *strangers) remove(c *stranger) {
	of := s.of[c.place]
	last := of[len(of)-1]
	of[c.at], last.at = last, c.at
	of[len(of)-1] = nil
	if s.of[c.place] = of[:len(of)-1]; len(of) == 1 {
		delete(s.of, c.place)
	}
	c.at = -1
	s.n--
}
