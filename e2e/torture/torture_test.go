// Package torture plays rounds on real fleets: an operation, a failpoint somewhere in it
// where a process dies, stops or fails, and then a look at whether everything is as it was
// answered, and nothing half-made is left. A round follows from its seed.
package torture

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/drover/drover/pkg/failpoint"
	"github.com/drover/drover/pkg/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// maxFailures ends a long run in which everything fails.
const maxFailures = 12

// points returns the names of all failpoints.
func points(t *testing.T) (out []string) {
	t.Helper()
	b, err := os.ReadFile("../../pkg/failpoint/names.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		out = append(out, strings.Fields(line)[0])
	}
	return out
}

func built(t *testing.T) (dir string) {
	t.Helper()
	testenv.Root(t)
	dir = t.TempDir()
	testenv.BuildWithFailpoints(t, filepath.Join(dir, "drover"))
	return dir
}

// record is what a run has seen of failpoints. Safe for concurrent use.
type record struct {
	mu     sync.Mutex // guards the fields below
	fired  map[string]int
	passed map[string]bool
}

func (r *record) note(w *world, p plan, fired bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if fired {
		r.fired[p.Point]++
	}
	for _, h := range w.hosts {
		entries, _ := os.ReadDir(filepath.Join(h.points, failpoint.Passed))
		for _, e := range entries {
			r.passed[e.Name()] = true
		}
	}
}

// No start is lost, doubled or left half-made, whatever dies at whatever step of it.
// TORTURE_SEED and TORTURE_ROUNDS choose which rounds; TORTURE_FOR ends them early.
func TestRounds(t *testing.T) {
	t.Parallel()
	bin, all := built(t), points(t)
	seed, rounds := number("TORTURE_SEED", 1), number("TORTURE_ROUNDS", 30)
	span, err := time.ParseDuration(os.Getenv("TORTURE_FOR"))
	if err != nil {
		span = time.Hour
	}
	until := time.Now().Add(span)
	seen := &record{fired: map[string]int{}, passed: map[string]bool{}}
	var failures, played atomic.Int32
	t.Run("all", func(t *testing.T) {
		for worker := range 3 { // the last has the rounds on three hosts
			t.Run(fmt.Sprint("worker ", worker), func(t *testing.T) {
				t.Parallel()
				var mine []uint64
				for s := seed; s < seed+rounds; s++ {
					if one := s%3 != 0; one && int(s%3) == worker+1 || !one && worker == 2 {
						mine = append(mine, s)
					}
				}
				for len(mine) > 0 && time.Now().Before(until) && failures.Load() < maxFailures {
					t.Run(fmt.Sprint("from ", mine[0]), func(t *testing.T) {
						w := newWorld(t, bin, made(mine[0], all).Hosts)
						for len(mine) > 0 && time.Now().Before(until) {
							s, p := mine[0], made(mine[0], all)
							mine = mine[1:]
							began := time.Now()
							o, err := w.play(s, p)
							seen.note(w, p, o.fired)
							played.Add(1)
							if testing.Verbose() {
								t.Logf("%d: %v: %v (answered after %v), reached: %v (%.12s)", s, p, time.Since(began).Round(time.Millisecond), o.answered.Round(time.Millisecond), o.fired, o.id)
							}
							if err != nil {
								failures.Add(1)
								t.Fatalf("seed %d (TORTURE_SEED=%d TORTURE_ROUNDS=1): %v\ncontainer %s %s, reached: %v, answered: %v\n%v", s, s, p, o.name, o.id, o.fired, o.Result, err)
							}
						}
						w.end()
					})
				}
			})
		}
	})
	t.Logf("%d rounds; failpoints where something happened: %d of %d", played.Load(), len(seen.fired), len(all))
	for _, p := range all {
		if !seen.passed[p] && rounds >= 300 && failures.Load() == 0 {
			t.Errorf("no operation passes %s", p)
		}
	}
	t.Logf("without: %v", slices.DeleteFunc(slices.Clone(all), func(p string) bool { return seen.fired[p] > 0 }))
}

// end checks that nothing is left of auto-removed containers either. Their output is kept for
// a reader that lost its connection, and anew by each agent.
func (w *world) end() {
	for _, h := range w.hosts {
		within := time.Until(time.Unix(h.started.Load(), 0).Add(keptWithin))
		if err := eventually(w.t.Context(), max(within, goneWithin), func() error { return h.left(w.t.Context(), w.f, false) }); err != nil {
			w.t.Errorf("at the end: %v", err)
		}
	}
}
