package routes

import (
	"errors"
	"testing"

	vish "github.com/vishvananda/netlink"
)

// On a host on which containers come and go, the kernel's lists often change while they
// are read.
func TestAListThatChangedIsReadAgain(t *testing.T) {
	asked, other := 0, errors.New("no")
	all, err := whole(func() ([]int, error) {
		if asked++; asked < 4 {
			return []int{1}, vish.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(all) != 2 || asked != 4 {
		t.Errorf("%v, %v after %d times", all, err, asked)
	}
	asked = 0
	if _, err := whole(func() ([]int, error) { asked++; return nil, other }); !errors.Is(err, other) || asked != 1 {
		t.Errorf("another error: %v after %d times", err, asked)
	}
	if _, err := whole(func() ([]int, error) { return nil, vish.ErrDumpInterrupted }); !errors.Is(err, vish.ErrDumpInterrupted) {
		t.Errorf("a list that changes for ever: %v", err)
	}
}
