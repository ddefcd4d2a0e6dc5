package limit

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

func TestSource(t *testing.T) {
	for _, c := range []struct{ addr, want string }{
		{"10.0.0.1:99", "10.0.0.1"},
		{"[::ffff:10.0.0.1]:99", "10.0.0.1"},
		{"[2001:db8:1:2:3::4]:99", "2001:db8:1:2::/64"},
		{"[2001:db8:1:2:ffff::]:1", "2001:db8:1:2::/64"},
		{"[fe80::1%eth0]:1", "fe80::/64"},
	} {
		ap, err := net.ResolveTCPAddr("tcp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := Source(ap); got != c.want {
			t.Errorf("%s: %q, want %q", c.addr, got, c.want)
		}
	}
	if got := Source(&net.UnixAddr{Name: "/run/x", Net: "unix"}); got != "unix" {
		t.Errorf("a unix socket: %q", got)
	}
}

func TestAShareIsEachSourcesOwn(t *testing.T) {
	s := NewShare(2)
	first, ok := s.Take("a")
	if !ok {
		t.Fatal("the first of two was refused")
	}
	if _, ok := s.Take("a"); !ok {
		t.Fatal("the second of two was refused")
	}
	if _, ok := s.Take("a"); ok {
		t.Fatal("the third of two was let in")
	}
	if _, ok := s.Take("b"); !ok {
		t.Fatal("another source was refused")
	}
	first()
	first() // releases only once
	if _, ok := s.Take("a"); !ok {
		t.Fatal("what was given back can't be taken")
	}
	if _, ok := s.Take("a"); ok {
		t.Fatal("one release gave back two")
	}
}

func TestNothingIsKeptOfSourcesThatHoldNothing(t *testing.T) {
	s := NewShare(1)
	for i := range 100 {
		release, ok := s.Take(fmt.Sprint(i))
		if !ok {
			t.Fatal("refused")
		}
		release()
	}
	if len(s.held) != 0 {
		t.Fatalf("%d sources are remembered", len(s.held))
	}
}

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := NewThrottle(time.Minute)
		if held, ok := th.Allow("a"); !ok || held != 0 {
			t.Fatalf("the first: %d %v", held, ok)
		}
		for range 5 {
			if _, ok := th.Allow("a"); ok {
				t.Fatal("the second within a minute passed")
			}
		}
		if _, ok := th.Allow("b"); !ok {
			t.Fatal("another key was held back")
		}
		time.Sleep(time.Minute)
		if held, ok := th.Allow("a"); !ok || held != 5 {
			t.Fatalf("after a minute: %d %v", held, ok)
		}
	})
}

// As many keys as somebody can make up pass no more often than the memory for
// them allows, and take no more of it.
func TestManyKeysAreBoundedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := NewThrottle(time.Minute)
		passed := 0
		for i := range 10 * maxKeys {
			if _, ok := th.Allow(fmt.Sprint(i)); ok {
				passed++
			}
		}
		if passed != maxKeys+1 || len(th.seen) != maxKeys {
			t.Fatalf("%d passed, %d are remembered", passed, len(th.seen))
		}
		time.Sleep(time.Minute)
		if _, ok := th.Allow("new"); !ok || len(th.seen) != 1 {
			t.Fatalf("a minute later: %v, %d are remembered", ok, len(th.seen))
		}
	})
}
