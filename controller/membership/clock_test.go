package membership

import (
	"testing"
	"time"
)

func TestAClockIsBelievedByTheOthers(t *testing.T) {
	last := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	right, far, never := last.AddDate(0, 0, 3), last.AddDate(72, 0, 0), time.Unix(0, 0)
	for name, c := range map[string]struct {
		now    time.Time
		others []time.Time
		want   bool
	}{
		"alone":                                   {right, nil, true},
		"alone and wrong":                         {far, nil, true},
		"the fleet was off for three days":        {right, []time.Time{right, right.Add(time.Minute)}, true},
		"far ahead":                               {far, []time.Time{right, right}, false},
		"far ahead, of two":                       {far, []time.Time{right}, false},
		"another is far ahead":                    {right, []time.Time{far, right}, true},
		"one is at 1970":                          {right, []time.Time{never}, true},
		"far ahead, and the others are at 1970":   {far, []time.Time{never, never}, true},
		"far ahead, one at 1970 and one is right": {far, []time.Time{never, right}, false},
	} {
		if got := believed(c.now, last, c.others); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
