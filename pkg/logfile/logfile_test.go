package logfile

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func write(t *testing.T, f *os.File, s string) {
	t.Helper()
	if _, err := f.WriteString(s); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Writers that hold the file go on at its beginning, without a hole, and what
// they wrote before is in the file beside it.
func TestWritersGoOnAfterARotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := Rotate(path, 10); err != nil {
		t.Fatalf("a log that isn't there: %v", err)
	}
	a, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = a.Close(), b.Close() }()
	write(t, a, "0123456789")
	if err := Rotate(path, 10); err != nil || read(t, path) != "0123456789" {
		t.Fatalf("a log of just its size was touched: %v", err)
	}
	write(t, b, "abc")
	if err := Rotate(path, 10); err != nil {
		t.Fatal(err)
	}
	write(t, a, "x")
	write(t, b, "y")
	if got := read(t, path); got != "xy" {
		t.Errorf("the log after its rotation: %q", got)
	}
	if got := read(t, path+".1"); got != "3456789abc" {
		t.Errorf("the last 10 bytes should be kept: %q", got)
	}
	write(t, a, strings.Repeat("z", 20))
	if err := Rotate(path, 10); err != nil || read(t, path+".1") != strings.Repeat("z", 10) {
		t.Errorf("the second rotation: %v %q", err, read(t, path+".1"))
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 2 {
		t.Errorf("files left: %v", left)
	}
}

// A log is bounded also where its old part has no place.
func TestALogIsBoundedWhereNothingCanBeKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.Mkdir(path+".1.new", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("z", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Rotate(path, 10); err == nil || read(t, path) != "" {
		t.Fatalf("want an error and an empty log: %v, %d bytes", err, len(read(t, path)))
	}
}

func TestWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			Watch(ctx, path, 100, func(err error) { t.Error(err) })
		}()
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		for i := range 1000 {
			write(t, f, fmt.Sprintln(i))
			time.Sleep(Every / 10)
			synctest.Wait()
			if st, err := f.Stat(); err != nil || st.Size() > 100+10*5 {
				t.Fatalf("the log has %d bytes, %v", st.Size(), err)
			}
		}
		cancel()
		<-done
	})
}
