package ps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

const header = "UID        PID  PPID  C STIME TTY          TIME CMD\n"

func TestOfWhatPSPrintsTheContainersProcessesArePicked(t *testing.T) {
	for what, c := range map[string]struct {
		out  string
		want [][]string
		err  string
	}{
		"lines of others": {out: header + "root 1 0 0 10:00 ? 00:00:03 init\nroot 42 1 0 10:01 pts/0 00:00:00 sh -c  sleep 9\nroot 43 42 0 10:01 ? 00:00:00 sleep 9\n",
			want: [][]string{{"root", "42", "1", "0", "10:01", "pts/0", "00:00:00", "sh -c sleep 9"}, {"root", "43", "42", "0", "10:01", "?", "00:00:00", "sleep 9"}}},
		"none":                {out: header, want: [][]string{}},
		"no new line":         {out: "PID CMD\n42 x", want: [][]string{{"42", "x"}}},
		"threads":             {out: "PID LWP CMD\n1 - init\n- 1 -\n42 - x\n- 42 -\n- 44 -\n7 - y\n- 7 -\n", want: [][]string{{"42", "-", "x"}, {"-", "42", "-"}, {"-", "44", "-"}}},
		"the last column":     {out: "CMD PID\nx 42\ny 1\n", want: [][]string{{"x", "42"}}},
		"two columns":         {out: "PID PID\n42 1\n1 42\n", want: [][]string{{"42", "1"}}},
		"a space that is not": {out: "PID CMD\n42 a\u00a0b\u2003c\n", want: [][]string{{"42", "a\u00a0b\u2003c"}}},
		"a missing column":    {out: "PID CMD\n42\n", want: [][]string{{"42"}}},
		"no process ids":      {out: "USER CMD\nroot x\n", err: "Couldn't find PID field in ps output"},
		"nothing":             {out: "", err: "Couldn't find PID field in ps output"},
		"no number":           {out: "PID CMD\nforty-two x\n", err: "Unexpected pid 'forty-two'"},
		"too short":           {out: "USER PID\nroot\n", err: "Unexpected pid 'root'"},
	} {
		got, err := parse([]byte(c.out), []int{42, 43})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", what, err, c.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got.Processes, c.want) {
			t.Errorf("%s: %q (%v), want %q", what, got.Processes, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(header + "root 42 1 0 10:01 pts/0 00:00:00 sh -c  sleep 9\n")
	f.Add("PID\n-\n42\n")
	f.Fuzz(func(t *testing.T, out string) {
		list, err := parse([]byte(out), []int{42})
		if err != nil {
			return
		}
		at := slices.Index(list.Titles, "PID")
		for _, p := range list.Processes {
			if len(p) > len(list.Titles) || len(p) <= at || p[at] != "-" && strings.TrimLeft(p[at], "+0") != "42" {
				t.Errorf("of %q: %q", out, p)
			}
		}
	})
}

func TestAColumnThatIsCalledPIDIsRefused(t *testing.T) {
	for args, why := range map[string]string{
		"-ef": "", "-o pid,cmd": "", "-o pid=PID": "", "-o pid= PID": "", "aux": "",
		"-e -o args=PID": `specifying "args=PID" is not allowed`, "-o pid=PID -o cmd=PIDS": `specifying "cmd=PIDS" is not allowed`,
	} {
		_, err := Host{PS: "/nowhere", Proc: "/proc"}.List(t.Context(), args, []int{os.Getpid()})
		if refused := err != nil && strings.Contains(err.Error(), "is not allowed"); refused != (why != "") || refused && err.Error() != why {
			t.Errorf("%s: %v, want %q", args, err, why)
		}
	}
}

// program writes a ps of its own, which logs its arguments.
func program(t *testing.T, script string) (Host, func() []string) {
	t.Helper()
	dir := t.TempDir()
	path, log := filepath.Join(dir, "ps"), filepath.Join(dir, "log")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho \"$@\" >> "+log+"\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return Host{PS: path}, func() []string {
		b, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
}

func TestTheHostsPSIsAskedForTheContainersProcesses(t *testing.T) {
	h, asked := program(t, `echo "PID CMD"; echo "7 x"; echo "8 y"`)
	for _, c := range []struct{ args, asked string }{{"", "-ef -q7,9"}, {"aux", "aux -q7,9"}, {"-o pid,cmd", "-o pid,cmd -q7,9"}} {
		got, err := h.List(t.Context(), c.args, []int{7, 9})
		want := container.TopResponse{Titles: []string{"PID", "CMD"}, Processes: [][]string{{"7", "x"}}}
		if all := asked(); err != nil || !reflect.DeepEqual(got, want) || all[len(all)-1] != c.asked {
			t.Errorf("%q: %+v (%v) of %q, want %q", c.args, got, err, all, c.asked)
		}
	}
}

func TestOptionsThatRefuseASelectionAreTriedWithout(t *testing.T) {
	h, asked := program(t, `case "$*" in *-q*) echo "conflicting options" >&2; exit 1;; esac; echo "PID"; echo 7; echo 8`)
	got, err := h.List(t.Context(), "f", []int{7})
	if all := asked(); err != nil || !reflect.DeepEqual(got.Processes, [][]string{{"7"}}) || !slices.Equal(all, []string{"f -q7", "f"}) {
		t.Errorf("%+v (%v) of %q", got, err, all)
	}
}

func TestAPSThatFails(t *testing.T) {
	for script, why := range map[string]string{
		`echo "error: unsupported option" >&2; echo Usage >&2; exit 1`: "ps: error: unsupported option",
		`exit 3`: "ps: exit status 3",
	} {
		h, _ := program(t, script)
		if _, err := h.List(t.Context(), "-Q", []int{7}); err == nil || err.Error() != why {
			t.Errorf("%v, want %q", err, why)
		}
	}
	_, err := Host{PS: "/nowhere"}.List(t.Context(), "aux", []int{7})
	if !errors.Is(err, os.ErrNotExist) || !strings.HasPrefix(err.Error(), "ps: ") {
		t.Errorf("without one: %v", err)
	}
	h, _ := program(t, `exec sleep 60`)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.List(ctx, "", []int{7}); err == nil {
		t.Error("a ps that hangs was waited for")
	}
}

// Without the host's ps, the list is the same.
func TestWithoutPS(t *testing.T) {
	theirs := Host{}
	if _, err := exec.LookPath("ps"); err != nil {
		t.Fatal("this host has no ps to compare with: make setup installs it")
	}
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	pids := []int{other.Process.Pid, gone.Process.Pid, 1}
	want, err := theirs.List(t.Context(), "", pids)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Host{PS: "/nowhere"}.List(t.Context(), "", pids)
	if err != nil || !slices.Equal(got.Titles, want.Titles) || len(got.Processes) != 2 {
		t.Fatalf("%+v (%v), want %+v", got, err, want)
	}
	for _, p := range got.Processes {
		i := slices.IndexFunc(want.Processes, func(q []string) bool { return q[1] == p[1] })
		if i < 0 {
			t.Fatalf("%q is not in %q", p, want.Processes)
		}
		q := want.Processes[i]
		for _, same := range []int{0, 1, 2, 5, 7} {
			if p[same] != q[same] && (same != 0 || !strings.HasSuffix(q[0], "+")) {
				t.Errorf("%s of %q, want %q", titles[same], p, q)
			}
		}
		if len(p) != len(titles) {
			t.Errorf("columns of %q", p)
		}
	}
}

func TestAProcessOfProc(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	booted := now.Add(-100 * time.Hour)
	stat := func(name string, ppid, tty, user, system, start int) string {
		return fmt.Sprintf("7 (%s) S %d 7 7 %d -1 4194560 1 0 0 0 %d %d 0 0 20 0 1 0 %d 1 1", name, ppid, tty, user, system, start)
	}
	hours := func(n int) int { return n * 3600 * ticks }
	for text, want := range map[string]string{
		stat("sleep", 1, 34817, 150, 50, hours(99)):          "root 7 1 0 11:00 pts/1 00:00:02",
		stat("a) b (c", 2, 0, hours(25), 0, hours(50)):       "root 7 2 50 May18 ? 25:00:00",
		stat("x", 0, 4<<8|3, hours(0)+61*ticks, 0, hours(0)): "root 7 0 0 May16 tty3 00:01:01",
		stat("x", 0, 137<<8|1, 0, 0, hours(100)):             "root 7 0 0 12:00 pts/257 00:00:00",
		stat("x", 0, 88<<8|1, 0, 0, hours(200)):              "root 7 0 0 May24 ? 00:00:00",
	} {
		p := process{pid: 7}
		if _, err := p.parseStat(text); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := strings.Join(p.row("root", booted, now)[:7], " "); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{"", "7 (x", "7 x) S", "7 (x) S 1 2", strings.Replace(stat("x", 1, 0, 0, 0, 0), "S 1", "S one", 1)} {
		p := process{pid: 7}
		if _, err := p.parseStat(text); err == nil {
			t.Errorf("%q is a process", text)
		}
	}
	if got := startTime(now.AddDate(-1, 0, 0), now); got != "2025" {
		t.Errorf("a year ago: %s", got)
	}
}

func TestAHostsOwnProcHasItsBoot(t *testing.T) {
	booted, err := bootTime("/proc")
	if err != nil || time.Since(booted) < 0 {
		t.Errorf("%v (%v)", booted, err)
	}
	dir := t.TempDir()
	if _, err := (Host{PS: "/nowhere", Proc: dir}).List(t.Context(), "", nil); err == nil {
		t.Error("a /proc without stat was read")
	}
	if err := os.WriteFile(filepath.Join(dir, "stat"), []byte("cpu 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := bootTime(dir); err == nil {
		t.Error("there was a boot time in a stat without it")
	}
	if got := userName(4_000_000_000); got != strconv.Itoa(4_000_000_000) {
		t.Errorf("an account that is not there is called %s", got)
	}
}
