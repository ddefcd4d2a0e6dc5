// Package limit bounds how much of a shared resource one source can take: concurrent
// connections, or log lines. What a source is, is up to the caller; Source is the usual
// key for a network connection.
package limit

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Source returns a key for the host at the other end of a connection: an IPv4 address,
// or the /64 of an IPv6 address, within which a host can choose addresses freely.
func Source(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.Network()
	}
	ip := ap.Addr().Unmap()
	if ip.Is6() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}

// Share counts what each source holds. Safe for concurrent use.
type Share struct {
	most int

	mu   sync.Mutex // guards held
	held map[string]int
}

// NewShare lets each source hold up to most at a time.
func NewShare(most int) *Share { return &Share{most: most, held: map[string]int{}} }

// Take acquires one for a source, or reports that the source holds its share already.
// release returns it, and may be called more than once.
func (s *Share) Take(source string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[source] >= s.most {
		return nil, false
	}
	s.held[source]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held[source]--; s.held[source] == 0 {
			delete(s.held, source)
		}
	}), true
}

// maxKeys bounds what a Throttle remembers.
const maxKeys = 1024

// Throttle lets a key pass once per interval. It is for log lines, which callers must
// not be able to write without limit. Safe for concurrent use.
type Throttle struct {
	every time.Duration

	mu   sync.Mutex // guards the fields below
	seen map[string]*passed
	full passed // stands for all keys beyond maxKeys
}

type passed struct {
	at   time.Time
	held int
}

// NewThrottle lets each key pass once per every.
func NewThrottle(every time.Duration) *Throttle {
	return &Throttle{every: every, seen: map[string]*passed{}}
}

// Allow reports whether key may pass now, and if so, how many times it was suppressed
// since it last passed.
func (t *Throttle) Allow(key string) (held int, ok bool) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.seen[key]
	if p == nil && len(t.seen) >= maxKeys {
		for k, old := range t.seen {
			if now.Sub(old.at) >= t.every {
				delete(t.seen, k)
			}
		}
		if len(t.seen) >= maxKeys {
			p = &t.full
		}
	}
	if p == nil {
		p = &passed{}
		t.seen[key] = p
	}
	if !p.at.IsZero() && now.Sub(p.at) < t.every {
		p.held++
		return 0, false
	}
	held = p.held
	p.at, p.held = now, 0
	return held, true
}
