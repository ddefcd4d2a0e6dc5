package each

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhatIsAlikeIsFoldedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out, errs bytes.Buffer
		f := newFolder(&out, &errs, []string{"a", "bb", "c"})
		w := func(i int, text string) { _, _ = fmt.Fprint(f.writer(i, false), text) }
		w(0, "one\n")
		w(1, "one\n")
		time.Sleep(holdFor / 2)
		if out.Len() > 0 {
			t.Errorf("before its time %q is written", out.String())
		}
		w(2, "two\n")
		time.Sleep(holdFor)
		synctest.Wait()
		if want := "a, bb | one\nc  | two\n"; out.String() != want {
			t.Errorf("written is %q, not %q", out.String(), want)
		}
		out.Reset()
		_, _ = fmt.Fprint(f.writer(0, true), "three\n")
		w(1, "three\n") // on another stream
		f.close()
		if out.String() != "bb | three\n" || errs.String() != "a  | three\n" {
			t.Errorf("written is %q and %q", out.String(), errs.String())
		}
		out.Reset()
		w(2, "late\n")
		if out.String() != "c  | late\n" {
			t.Errorf("after the end %q is written", out.String())
		}
	})
}

func TestManyNodesAreNamedShortly(t *testing.T) {
	var out bytes.Buffer
	var nodes []string
	for i := range 40 {
		nodes = append(nodes, fmt.Sprintf("n%02d", i))
	}
	f := newFolder(&out, &out, nodes)
	for i := range nodes {
		_, _ = fmt.Fprintln(f.writer(i, false), "6.1.0")
	}
	f.close()
	if want := "40 nodes (n00 … n39) | 6.1.0\n"; out.String() != want {
		t.Errorf("written is %q", out.String())
	}
}

// What is held is bounded, in all and of a line that does not end.
func TestWhatIsHeldIsBounded(t *testing.T) {
	var out bytes.Buffer
	f := newFolder(&out, &out, []string{"a"})
	_, _ = fmt.Fprint(f.writer(0, false), strings.Repeat("x", holdMost+1))
	if out.Len() < holdMost {
		t.Errorf("%d bytes are written of a line that does not end", out.Len())
	}
	f.close()
	f = newFolder(&out, &out, []string{"a"})
	_, _ = fmt.Fprint(f.writer(0, false), strings.Repeat("\n", holdMost))
	if n := len(f.sources[0].lines); n > holdMost/perLine {
		t.Errorf("%d empty lines are held", n)
	}
	f.close()
}
