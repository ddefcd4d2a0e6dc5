package session

import (
	"errors"
	"sync"
)

// Status is the state of an agent's session. The zero value is ready to use, and reports
// that there is no session yet; so does nil. Safe for concurrent use.
type Status struct {
	mu   sync.Mutex // guards the fields below
	open bool
	err  error
}

var errNoSession = errors.New("the agent has no session with a controller yet")

// Ready returns nil while a session is open whose first sync the agent has applied: the
// leader hears the node, and the node runs what it was assigned. Otherwise it returns
// the reason.
func (s *Status) Ready() error {
	if s == nil {
		return errNoSession
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open {
		return nil
	}
	if s.err != nil {
		return s.err
	}
	return errNoSession
}

func (s *Status) set(open bool, err error) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open, s.err = open, err
}
