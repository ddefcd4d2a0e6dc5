package plural

import "testing"

func TestOf(t *testing.T) {
	for n, want := range map[int]string{0: "0 containers", 1: "1 container", 2: "2 containers", 101: "101 containers"} {
		if got := Of(n, "container"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
