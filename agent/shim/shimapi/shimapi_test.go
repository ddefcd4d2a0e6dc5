package shimapi

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/pkg/life"
)

// A shim lives longer than the agent that started it: these addresses are understood
// by every build after this one.
func TestAddressesOfVersion1(t *testing.T) {
	for want, s := range map[string]Stdio{
		"drover://stdio?attempt=1&exit=%2Fd%2Fexit.1&log=%2Fd%2Flog&sock=&v=1": {LogDir: "/d/log", ExitFile: "/d/exit.1", Life: life.First(1)},
		"drover://stdio?attempt=2147483647&exit=%2Fa+b%26c&log=%2Fl&once=1&restarts=7&segment=4096&segments=3&sock=%2Fs&stdin=1&tty=1&v=1": {
			LogDir: "/l", ExitFile: "/a b&c", Socket: "/s", Life: life.Life{Attempt: 1<<31 - 1, Restarts: 7}, SegmentBytes: 4096, Segments: 3, Stdin: true, StdinOnce: true, TTY: true},
	} {
		if got := s.URL(); got != want {
			t.Errorf("%+v is %s, want %s", s, got, want)
		}
		if got, ok, err := ParseStdio(want); !ok || err != nil || got != s {
			t.Errorf("%s is %+v, %v, %v", want, got, ok, err)
		}
	}
	for want, e := range map[string]ExecIO{
		"drover-exec://stdio?sock=%2Fs&v=1":                        {Socket: "/s"},
		"drover-exec://stdio?attach=1&sock=%2Fs&stdin=1&tty=1&v=1": {Socket: "/s", Attach: true, Stdin: true, TTY: true},
	} {
		if got := e.URL(); got != want {
			t.Errorf("%+v is %s, want %s", e, got, want)
		}
		if got, ok, err := ParseExecIO(want); !ok || err != nil || got != e {
			t.Errorf("%s is %+v, %v, %v", want, got, ok, err)
		}
	}
}

func TestAddressesThatAreNone(t *testing.T) {
	const good = "drover://stdio?attempt=1&exit=e&log=l&sock=&v=1"
	for _, c := range []struct {
		addr string
		ours bool
		why  string
	}{
		{"/run/fifo", false, ""},
		{"file:///var/log/x", false, ""},
		{"%", false, ""},
		{"", false, ""},
		{strings.Replace(good, "v=1", "v=2", 1), true, `version "2"`},
		{strings.Replace(good, "&v=1", "", 1), true, `version ""`},
		{strings.Replace(good, "attempt=1", "attempt=x", 1), true, "attempt"},
		{strings.Replace(good, "attempt=1", "attempt=4294967296", 1), true, "attempt"},
		{good + "&restarts=x", true, "restarts"},
		{good + "&restarts=2147483648", true, "restarts"},
		{good + "&segment=big", true, "segment"},
		{good + "&segments=1.5", true, "segments"},
		{strings.Replace(good, "log=l", "log=", 1), true, "log and exit are needed"},
		{strings.Replace(good, "exit=e", "", 1), true, "log and exit are needed"},
	} {
		_, ours, err := ParseStdio(c.addr)
		if ours != c.ours || (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, %v; want %v, %q", c.addr, ours, err, c.ours, c.why)
		}
	}
	for addr, why := range map[string]string{"drover-exec://stdio?v=1": "sock is needed", "drover-exec://stdio?sock=s&v=3": `version "3"`} {
		if _, ours, err := ParseExecIO(addr); !ours || err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, %v", addr, ours, err)
		}
	}
	if _, ours, err := ParseExecIO(good); ours || err != nil {
		t.Errorf("a task's address is an exec's: %v", err)
	}
}

func TestExitRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "exit.1")
	if _, err := ReadExit(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("of an attempt that runs: %v", err)
	}
	at := time.Date(2026, 5, 1, 12, 0, 0, 5, time.UTC)
	x := Exit{Attempt: 2, Restarts: 4, Code: 137, At: at, Started: at.Add(-time.Second), OOM: true, LogEnd: 99}
	if err := WriteExit(path, x); err != nil {
		t.Fatal(err)
	}
	x.Version = 1
	if got, err := ReadExit(path); err != nil || got != x {
		t.Fatalf("%+v, %v; want %+v", got, err, x)
	}
	b, err := os.ReadFile(path)
	const want = `{"version":1,"attempt":2,"restarts":4,"code":137,"at":"2026-05-01T12:00:00.000000005Z","started":"2026-05-01T11:59:59.000000005Z","oom":true,"logEnd":99}`
	if err != nil || string(b) != want {
		t.Errorf("on disk is %s (%v), want %s", b, err, want)
	}
	const uncounted = `{"version":1,"attempt":2,"code":3,"at":"2026-05-01T12:00:00Z","started":"2026-05-01T11:59:59Z","logEnd":99}` // by an earlier shim
	if err := os.WriteFile(path, []byte(uncounted), 0o600); err != nil {
		t.Fatal(err)
	}
	if x, err := ReadExit(path); err != nil || x.Attempt != 2 || x.Restarts != 0 || x.Code != 3 {
		t.Errorf("a record without a count of restarts is %+v (%v)", x, err)
	}
	for _, bad := range []string{"", "{", `{"version":9,"code":0}`, "{}", "null", `{"version":1,"code":"0"}`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if x, err := ReadExit(path); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %+v, %v; want %v", bad, x, err, ErrDamaged)
		}
	}
}

func TestTimings(t *testing.T) {
	exit := filepath.Join(t.TempDir(), "exit.1")
	if got, err := ReadTimings(exit); got != nil || err != nil {
		t.Errorf("where there are none: %v, %v", got, err)
	}
	if err := os.WriteFile(TimingsFile(exit), []byte(`[{"name":"runc create","start":"2026-05-01T12:00:00Z","end":"2026-05-01T12:00:01Z"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	if got, err := ReadTimings(exit); err != nil || !reflect.DeepEqual(got, []Timing{{"runc create", at, at.Add(time.Second)}}) {
		t.Errorf("%v, %v", got, err)
	}
	if err := os.WriteFile(TimingsFile(exit), []byte("["), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadTimings(exit); err == nil {
		t.Error("what can't be read was read")
	}
}

func FuzzAddresses(f *testing.F) {
	f.Add(Stdio{LogDir: "/l", ExitFile: "/e", Life: life.Life{Attempt: 1, Restarts: 2}}.URL())
	f.Add(ExecIO{Socket: "/s"}.URL())
	f.Fuzz(func(t *testing.T, addr string) {
		if s, ok, err := ParseStdio(addr); ok && err == nil {
			if again, ok, err := ParseStdio(s.URL()); !ok || err != nil || again.LogDir != s.LogDir || again.ExitFile != s.ExitFile {
				t.Errorf("%q: %+v, then %+v, %v", addr, s, again, err)
			}
		}
		if e, ok, err := ParseExecIO(addr); ok && err == nil {
			if again, ok, err := ParseExecIO(e.URL()); !ok || err != nil || again != e {
				t.Errorf("%q: %+v, then %+v, %v", addr, e, again, err)
			}
		}
	})
}
