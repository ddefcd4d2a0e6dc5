package bulk

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"
)

// A stream that breaks anywhere, as often as it likes, comes whole to its reader
// through two hops that both take it up again.
func TestABrokenStreamComesWhole(t *testing.T) {
	type piece struct {
		kind byte
		b    []byte
	}
	var all []piece
	for i := range 300 {
		all = append(all, piece{FrameStdout + byte(i%3/2), fmt.Appendf(nil, "<%d>", i)})
	}
	// from returns the frames of a log after a position.
	from := func(pos string, every int) (out []piece) {
		at := 0
		if b, _ := hex.DecodeString(pos); len(b) > 0 {
			_, _ = fmt.Sscanf(string(b), "%d", &at)
		}
		out = append(out, piece{FramePos, fmt.Appendf(nil, "%d", at)})
		for i, p := range all[at:] {
			if i > 0 && i%every == 0 {
				out = append(out, piece{FramePos, fmt.Appendf(nil, "%d", at+i)})
			}
			out = append(out, p)
		}
		return out
	}
	want := [3][]byte{}
	for _, p := range all {
		want[p.kind] = append(want[p.kind], p.b...)
	}
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 1))
		var outer Progress
		var got [3][]byte
		for over := false; !over; { // the outer hop is made anew
			var inner Progress
			ask := outer.Again()
			inner.At(ask)
			whole := true
			for pos := ask; whole && !over; pos = inner.Again() {
				answer := from(pos, 1+r.IntN(20))
				n := len(answer)
				if r.IntN(4) > 0 {
					n = r.IntN(n + 1)
				}
				over = n == len(answer)
				for _, f := range answer[:n] {
					b, fresh := inner.Take(f.kind, f.b)
					if !fresh {
						continue
					}
					if b, fresh = outer.Take(f.kind, b); fresh && f.kind != FramePos {
						got[f.kind] = append(got[f.kind], b...)
					}
					if r.IntN(40) == 0 { // the outer hop breaks
						whole, over = false, false
						break
					}
				}
			}
		}
		for k := range got {
			if !bytes.Equal(got[k], want[k]) {
				t.Fatalf("seed %d: stream %d is %d bytes, not %d, and not the same", seed, k, len(got[k]), len(want[k]))
			}
		}
	}
}
