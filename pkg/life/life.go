// Package life orders the lives of a task's process, for controllers and agents alike.
// When a life begins and ends is theirs.
package life

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Life identifies one life of a task's process: the attempt, which users count by
// starting the task, and how often its agent has begun that attempt anew. The zero Life
// is before every other one.
type Life struct {
	Attempt  int32
	Restarts int32 // 0 is an attempt's first life
}

// First returns the first life of an attempt.
func First(attempt int32) Life { return Life{Attempt: attempt} }

// Of returns the life that a message names, the zero one for a nil message.
func Of(m interface {
	GetAttempt() int32
	GetRestarts() int32
}) Life {
	return Life{m.GetAttempt(), m.GetRestarts()}
}

// Anew returns the life that follows l if the agent begins the attempt anew.
func (l Life) Anew() Life { return Life{l.Attempt, l.Restarts + 1} }

// Compare returns -1, 0 or 1. Lives are ordered by attempt, and within one by restarts.
func (l Life) Compare(o Life) int {
	return cmp.Or(cmp.Compare(l.Attempt, o.Attempt), cmp.Compare(l.Restarts, o.Restarts))
}

// Before reports whether l is an earlier life than o.
func (l Life) Before(o Life) bool { return l.Compare(o) < 0 }

// String returns "2" for the first life of attempt 2, "2-1" for its second.
func (l Life) String() string {
	if l.Restarts == 0 {
		return strconv.Itoa(int(l.Attempt))
	}
	return fmt.Sprintf("%d-%d", l.Attempt, l.Restarts)
}

// Parse returns the life whose String is s.
func Parse(s string) (Life, error) {
	attempt, restarts, again := strings.Cut(s, "-")
	n, err := strconv.ParseInt(attempt, 10, 32)
	var r int64
	if err == nil && again {
		r, err = strconv.ParseInt(restarts, 10, 32)
	}
	if l := (Life{int32(n), int32(r)}); err == nil && n >= 0 && r >= 0 && l.String() == s {
		return l, nil
	}
	return Life{}, fmt.Errorf("%q names no life of a task", s)
}
