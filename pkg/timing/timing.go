// Package timing configures how fast controllers notice that their leader is gone:
// raft's timeouts, one set for the whole fleet, as profiles or numbers. They are applied
// by controller/consensus.
package timing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/durable"
)

// Timing holds raft's timeouts. A leader sends heartbeats every tenth to fifth of
// Heartbeat.
type Timing struct {
	Heartbeat time.Duration // a follower starts an election after hearing nothing for this long (to twice as long)
	Election  time.Duration // an election without a winner restarts after this long (to twice as long)
	Lease     time.Duration // a leader that hears from no majority for this long steps down
}

// Profiles.
var (
	LAN = Timing{150 * time.Millisecond, 150 * time.Millisecond, 140 * time.Millisecond}
	WAN = Timing{2 * time.Second, 2 * time.Second, 1500 * time.Millisecond}
)

// Bounds. The minimum is raft's own; beyond the maximum, a fleet whose leader died would
// refuse writes for minutes.
const (
	least = 5 * time.Millisecond
	most  = time.Minute
)

// Validate reports the first violated rule: raft's own, and a lease that is long enough
// for two heartbeats.
func (t Timing) Validate() error {
	for _, d := range []struct {
		what string
		d    time.Duration
	}{{"heartbeat", t.Heartbeat}, {"election", t.Election}, {"lease", t.Lease}} {
		if d.d < least || d.d > most {
			return fmt.Errorf("the %s timeout %v is not between %v and %v", d.what, d.d, least, most)
		}
	}
	switch {
	case t.Election < t.Heartbeat:
		return fmt.Errorf("the election timeout %v is shorter than the heartbeat timeout %v", t.Election, t.Heartbeat)
	case t.Lease > t.Heartbeat:
		return fmt.Errorf("the lease %v is longer than the heartbeat timeout %v", t.Lease, t.Heartbeat)
	case 2*t.Lease < t.Heartbeat:
		return fmt.Errorf("the lease %v is shorter than half of the heartbeat timeout %v: a leader would step down between two heartbeats", t.Lease, t.Heartbeat)
	}
	return nil
}

// Parse parses lan, wan, or HEARTBEAT/ELECTION/LEASE; a number without a unit is in
// milliseconds.
func Parse(s string) (Timing, error) {
	switch s {
	case "", "lan":
		return LAN, nil
	case "wan":
		return WAN, nil
	}
	parts := strings.Split(s, "/")
	if len(parts) != 3 {
		return Timing{}, fmt.Errorf("timing %q is none of lan, wan and HEARTBEAT/ELECTION/LEASE, such as 500ms/500ms/400ms", s)
	}
	var t Timing
	for i, to := range []*time.Duration{&t.Heartbeat, &t.Election, &t.Lease} {
		p := strings.TrimSpace(parts[i])
		if _, err := strconv.ParseUint(p, 10, 32); err == nil {
			p += "ms"
		}
		d, err := time.ParseDuration(p)
		if err != nil {
			return Timing{}, fmt.Errorf("timing %q: %q is no duration", s, parts[i])
		}
		*to = d
	}
	if err := t.Validate(); err != nil {
		return Timing{}, fmt.Errorf("timing %q: %w", s, err)
	}
	return t, nil
}

// String returns what Parse parses.
func (t Timing) String() string {
	return fmt.Sprintf("%v/%v/%v", t.Heartbeat, t.Election, t.Lease)
}

// Profile returns the name of the profile that equals t, "" if there is none.
func (t Timing) Profile() string {
	switch t {
	case LAN:
		return "lan"
	case WAN:
		return "wan"
	}
	return ""
}

// Proto returns t as it is kept in the log.
func (t Timing) Proto() *dv1.Timing {
	return &dv1.Timing{Heartbeat: int64(t.Heartbeat), Election: int64(t.Election), Lease: int64(t.Lease)}
}

// FromProto returns what the log holds; fleets created before it did have LAN.
func FromProto(m *dv1.Timing) Timing {
	if m == nil {
		return LAN
	}
	return Timing{time.Duration(m.Heartbeat), time.Duration(m.Election), time.Duration(m.Lease)}
}

// Load reads what Save wrote. Without a file it returns otherwise.
func Load(path string, otherwise Timing) (Timing, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return otherwise, nil
	}
	if err != nil {
		return Timing{}, fmt.Errorf("reading the controllers' timing: %w", err)
	}
	t, err := Parse(strings.TrimSpace(string(b)))
	if err != nil {
		return Timing{}, fmt.Errorf("reading %s: %w", path, err)
	}
	return t, nil
}

// Save stores t for the next start, and creates the directory if it is missing.
func Save(path string, t Timing) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keeping the controllers' timing: %w", err)
	}
	return durable.WriteFile(path, []byte(t.String()+"\n"), 0o600)
}
