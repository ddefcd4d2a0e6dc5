package task

import (
	"cmp"
	"testing"
	"testing/quick"

	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/life"
)

func TestAStatusFollowsNoneOfALaterLife(t *testing.T) {
	status := func(attempt, restarts uint8, p uint8) *dv1.TaskStatus {
		return &dv1.TaskStatus{Attempt: int32(attempt % 4), Restarts: int32(restarts % 4), Phase: dv1.Phase(p % 8)}
	}
	ordered := func(a1, r1, p1, a2, r2, p2 uint8) bool {
		old, s := status(a1, r1, p1), status(a2, r2, p2)
		c := cmp.Or(cmp.Compare(s.Attempt, old.Attempt), cmp.Compare(s.Restarts, old.Restarts))
		return forward(nil, s) && (c == 0 || forward(old, s) == (c > 0))
	}
	if err := quick.Check(ordered, &quick.Config{MaxCount: 5000}); err != nil {
		t.Error(err)
	}
}

// A reader resumes at a position after an upgrade of the agent, too: without a count of
// restarts, the output is that of a first life.
func TestPositionsKeepTheirLife(t *testing.T) {
	round := func(attempt, restarts int32, offset uint64, at uint32, lines byte) bool {
		p := LogPosition{life.Life{Attempt: attempt & 0x7fffffff, Restarts: restarts & 0x7fffffff}, offset, at, lines}
		first := p
		first.Life.Restarts = 0
		got, err := DecodeLogPosition(p.Encode())
		uncounted, ferr := DecodeLogPosition(p.Encode()[:positionLen])
		return err == nil && got == p && ferr == nil && uncounted == first && len(first.Encode()) == positionLen
	}
	if err := quick.Check(round, nil); err != nil {
		t.Error(err)
	}
	negative := LogPosition{Life: life.Life{Attempt: 1, Restarts: -1}}.Encode()
	for _, b := range [][]byte{nil, make([]byte, positionLen-1), make([]byte, positionLen+1), make([]byte, anewLen+1), negative, {positionLen - 1: 0, 0: 0x80}} {
		if p, err := DecodeLogPosition(b); err == nil {
			t.Errorf("%x is %+v", b, p)
		}
	}
}

func FuzzDecodeLogPosition(f *testing.F) {
	f.Add(LogPosition{Life: life.Life{Attempt: 1, Restarts: 2}, Offset: 3, At: 4, Lines: 5}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := DecodeLogPosition(b)
		if err != nil {
			return
		}
		if again, err := DecodeLogPosition(p.Encode()); err != nil || again != p {
			t.Errorf("%x is %+v, then %+v (%v)", b, p, again, err)
		}
	})
}
