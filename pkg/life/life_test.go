package life

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/quick"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestLivesAreOrderedByAttemptAndThenByRestarts(t *testing.T) {
	ascending := []Life{{}, First(1), {1, 1}, {1, 2}, {1, math.MaxInt32}, First(2), {2, 1}, First(math.MaxInt32)}
	for i, a := range ascending {
		for j, b := range ascending {
			if a.Before(b) != (i < j) || a.Compare(b) != -b.Compare(a) || (a.Compare(b) == 0) != (a == b) {
				t.Errorf("%v and %v: before %v, compare %d", a, b, a.Before(b), a.Compare(b))
			}
		}
	}
	shuffled := slices.Clone(ascending)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	if slices.SortFunc(shuffled, Life.Compare); !slices.Equal(shuffled, ascending) {
		t.Errorf("sorted: %v", shuffled)
	}
}

// A life is before any that follows it, whoever begins that one, and nothing is between
// it and the one that its agent begins.
func TestWhatFollowsALife(t *testing.T) {
	next := func(attempt, restarts, otherAttempt, otherRestarts uint8) bool {
		l := Life{int32(attempt % 4), int32(restarts % 4)}
		other := Life{int32(otherAttempt % 4), int32(otherRestarts % 4)}
		between := l.Before(other) && other.Before(l.Anew())
		return l.Before(l.Anew()) && l.Anew().Before(First(l.Attempt+1)) && !between
	}
	if err := quick.Check(next, nil); err != nil {
		t.Error(err)
	}
}

func TestTheLifeOfAMessage(t *testing.T) {
	var none *dv1.Exit
	for name, c := range map[string]struct{ got, want Life }{
		"nil":                   {Of(none), Life{}},
		"not counted":           {Of(&dv1.Exit{Attempt: 3}), First(3)},
		"an exit":               {Of(&dv1.Exit{Attempt: 3, Restarts: 2}), Life{3, 2}},
		"a status":              {Of(&dv1.TaskStatus{Attempt: 3, Restarts: 2}), Life{3, 2}},
		"a report":              {Of(&dv1.TaskReport{Attempt: 3, Restarts: 2}), Life{3, 2}},
		"a task":                {Of(&dv1.Task{Attempt: 3, Restarts: 2}), Life{3, 2}},
		"a task never started":  {Of(&dv1.Task{}), Life{}},
		"begun anew twice":      {First(3).Anew().Anew(), Life{3, 2}},
		"the first of a number": {First(7), Life{7, 0}},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", name, c.got, c.want)
		}
	}
}

func TestNamesOfLives(t *testing.T) {
	for name, l := range map[string]Life{"0": {}, "1": First(1), "1-1": {1, 1}, "2147483647-2147483647": {math.MaxInt32, math.MaxInt32}} {
		if got, err := Parse(name); err != nil || got != l || l.String() != name {
			t.Errorf("%q is %v (%v), and %v is %q", name, got, err, l, l)
		}
	}
	for _, name := range []string{"", "-", "1-", "-1", "1-0", "1--1", "01", "1-01", "+1", "1-1-1", "1.TRY", "2147483648", "1-2147483648", "one"} {
		if l, err := Parse(name); err == nil {
			t.Errorf("%q is %v", name, l)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("1-2")
	f.Fuzz(func(t *testing.T, s string) {
		if l, err := Parse(s); err == nil && l.String() != s {
			t.Errorf("%q is %v, whose name is %q", s, l, l)
		}
	})
}
