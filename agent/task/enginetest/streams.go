package enginetest

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/drover/drover/agent/task"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// Streams runs the suite of task.Streams; each test gets a subject of its own from open.
func Streams(t *testing.T, open func(t *testing.T) Subject) {
	play(t, open, []scene{
		{"an attach before the start gets every byte and the exit", (*suite).attach},
		{"stdin reaches the process and its half-close ends it", (*suite).stdin},
		{"logs outlive the attempt and its release", (*suite).logs},
		{"a stream that broke is taken up where it was", (*suite).takenUp},
		{"exec runs beside the task and has its own exit", (*suite).exec},
		{"top lists the task's processes and nothing else", (*suite).top},
		{"stats are of the task, and grow", (*suite).stats},
		{"what is not there is not found, and what does not run is not running", (*suite).absent},
	})
}

// all reads frames until the stream ends.
func (s *suite) all(r io.Reader) (out, errs string, exit *dv1.Exit) {
	s.Helper()
	for fr := bulk.NewFrameReader(r); ; {
		kind, p, err := fr.Next()
		if errors.Is(err, io.EOF) {
			return out, errs, exit
		}
		s.ok(err)
		switch kind {
		case bulk.FrameStdout:
			out += string(p)
		case bulk.FrameStderr:
			errs += string(p)
		case bulk.FrameExit:
			exit = &dv1.Exit{}
			s.ok(protojson.Unmarshal(p, exit))
			return out, errs, exit
		case bulk.FramePos:
		default:
			s.Fatalf("frame %d: %s", kind, p)
		}
	}
}

func (s *suite) attach() {
	id := s.make(nil, "echo", "hello world")
	st, err := s.Streams.Attach(s.ctx, id, task.AttachOptions{Stdout: true, Stderr: true, Stream: true})
	s.ok(err)
	defer func() { _ = st.Close() }()
	s.start(id, 1)
	out, errs, x := s.all(st)
	if out != "hello world\n" || errs != "" || x == nil || x.Code != 0 {
		s.Fatalf("out %q, err %q, exit %v", out, errs, x)
	}
}

func (s *suite) stdin() {
	id := s.make(func(c *container.CreateRequest) { c.OpenStdin, c.StdinOnce, c.AttachStdin = true, true, true }, "cat")
	st, err := s.Streams.Attach(s.ctx, id, task.AttachOptions{Stdin: true, Stdout: true, Stream: true})
	s.ok(err)
	defer func() { _ = st.Close() }()
	s.start(id, 1)
	in := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
	done := make(chan error, 1)
	go func() {
		_, err := st.Write(in)
		done <- errors.Join(err, st.CloseWrite())
	}()
	out, _, x := s.all(st)
	s.ok(<-done)
	if out != string(in) || x.GetCode() != 0 {
		s.Fatalf("%d bytes of %d came back, exit %v", len(out), len(in), x)
	}
}

func (s *suite) logs() {
	id := s.make(nil, "echo", "kept")
	s.start(id, 1)
	s.exit(id, 1, 0)
	s.ok(s.e.Release(s.ctx, id))
	for _, o := range []task.LogOptions{{Stdout: true, Tail: -1}, {Stdout: true, Stderr: true, Tail: 1, Follow: true}} {
		r, err := s.Streams.Logs(s.ctx, id, o)
		s.ok(err)
		out, _, _ := s.all(r)
		_ = r.Close()
		if out != "kept\n" {
			s.Fatalf("%+v gave %q", o, out)
		}
	}
	r, err := s.Streams.Logs(s.ctx, id, task.LogOptions{Stdout: true, Timestamps: true, Tail: -1})
	s.ok(err)
	defer func() { _ = r.Close() }()
	out, _, _ := s.all(r)
	at, text, _ := strings.Cut(out, " ")
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil || text != "kept\n" {
		s.Fatalf("with timestamps: %q", out)
	}
}

func (s *suite) positions(r io.Reader, n int) (out string, from task.LogPosition, behind int) {
	s.Helper()
	found := false
	for fr := bulk.NewFrameReader(r); len(out) < n || behind == len(out); {
		kind, p, err := fr.Next()
		if errors.Is(err, io.EOF) || kind == bulk.FrameExit {
			break
		}
		s.ok(err)
		switch kind {
		case bulk.FramePos:
			from, err = task.DecodeLogPosition(p)
			s.ok(err)
			behind, found = 0, true
		case bulk.FrameStdout:
			out += string(p)
			behind += len(p)
		}
	}
	if !found {
		s.Fatal("a stream without a position")
	}
	return out, from, behind
}

func (s *suite) takenUp() {
	id := s.make(nil, "seq", "1", "60000")
	st, err := s.Streams.Attach(s.ctx, id, task.AttachOptions{Stdout: true, Stream: true})
	s.ok(err)
	s.start(id, 1)
	s.exit(id, 1, 0)
	var all []byte
	for i := range 60_000 {
		all = append(strconv.AppendInt(all, int64(i+1), 10), '\n')
	}
	want, got := string(all), ""
	for read := 1; len(got) < len(want); read += 90_000 {
		out, from, behind := s.positions(st, read)
		_ = st.Close()
		got += out
		if len(got) >= len(want) {
			break
		}
		got = got[:len(got)-behind] // comes again
		st, err = s.Streams.Attach(s.ctx, id, task.AttachOptions{Stdout: true, Stream: true, From: &from})
		s.ok(err)
	}
	_ = st.Close()
	if got != want {
		s.Fatalf("%d bytes came of an attach, not %d", len(got), len(want))
	}
	for _, o := range []task.LogOptions{{Stdout: true, Tail: -1}, {Stdout: true, Tail: 9000}, {Stdout: true, Tail: 20_000, Timestamps: true}} {
		r, err := s.Streams.Logs(s.ctx, id, o)
		s.ok(err)
		whole, _, _ := s.all(r)
		_ = r.Close()
		got := ""
		for from := (*task.LogPosition)(nil); ; {
			o.From = from
			r, err := s.Streams.Logs(s.ctx, id, o)
			s.ok(err)
			out, pos, behind := s.positions(r, 80_000)
			_ = r.Close()
			got += out
			if len(got) >= len(whole) {
				break
			}
			got, from = got[:len(got)-behind], &pos
		}
		if got != whole {
			s.Fatalf("logs %+v gave %d bytes when taken up, else %d", o, len(got), len(whole))
		}
	}
}

func (s *suite) exec() {
	id := s.make(nil, "sleep", "1000")
	o := container.ExecCreateRequest{Cmd: []string{"cat"}, AttachStdin: true, AttachStdout: true, AttachStderr: true}
	if err := s.Streams.ExecCreate(s.ctx, id, "e0"+id[:8], o); err == nil {
		s.Fatal("an exec in a task that does not run")
	}
	s.start(id, 1)
	eid := "e1" + id[:8]
	s.ok(s.Streams.ExecCreate(s.ctx, id, eid, o))
	st, err := s.Streams.ExecStart(s.ctx, id, eid, true, 0, 0)
	s.ok(err)
	defer func() { _ = st.Close() }()
	_, err = st.Write([]byte("through exec"))
	s.ok(err)
	s.ok(st.CloseWrite())
	if out, _, _ := s.all(st); out != "through exec" {
		s.Fatalf("got %q", out)
	}
	x, err := s.Streams.ExecInspect(s.ctx, id, eid)
	s.ok(err)
	if x.Running || x.ExitCode == nil || *x.ExitCode != 0 || x.TaskID != id {
		s.Fatalf("inspected %+v", x)
	}
	if f := s.found(id); f == nil || !f.Running {
		s.Fatal("the task went with its exec")
	}
}

func (s *suite) top() {
	id := s.make(nil, "sleep", "1000")
	a := s.start(id, 1)
	s.ok(s.Streams.ExecCreate(s.ctx, id, "t"+id[:8], container.ExecCreateRequest{Cmd: []string{"sleep", "2000"}}))
	_, err := s.Streams.ExecStart(s.ctx, id, "t"+id[:8], false, 0, 0)
	s.ok(err)
	x, err := s.Streams.ExecInspect(s.ctx, id, "t"+id[:8])
	s.ok(err)
	want := map[string]string{strconv.Itoa(a.Pid): "sleep 1000", strconv.Itoa(x.Pid): "sleep 2000"}
	for _, args := range []string{"", "-ef"} {
		list, err := s.Streams.Top(s.ctx, id, args)
		s.ok(err)
		pid := slices.Index(list.Titles, "PID")
		if pid < 0 || len(list.Processes) != len(want) {
			s.Fatalf("%q: %+v, want %v", args, list, want)
		}
		for _, p := range list.Processes {
			got, of := p[len(p)-1], want[p[pid]]
			if of == "" || got != of && of != "sleep 2000" { // an exec may be about to become its program
				s.Errorf("%q: %q, want %v", args, p, want)
			}
		}
	}
	s.ok(s.Streams.Signal(s.ctx, id, "SIGKILL"))
	s.exit(id, 1, 137)
	if _, err := s.Streams.Top(s.ctx, id, ""); !errors.Is(err, task.ErrNotRunning) {
		s.Errorf("of what has ended: %v", err)
	}
}

func (s *suite) stats() {
	id := s.make(nil, "sleep", "1000")
	s.start(id, 1)
	first, err := s.Streams.Stats(s.ctx, id)
	s.ok(err)
	second, err := s.Streams.Stats(s.ctx, id)
	s.ok(err)
	if first.PidsStats.Current == 0 || first.MemoryStats.Usage == 0 || first.MemoryStats.Limit <= first.MemoryStats.Usage || first.CPUStats.CPUUsage.TotalUsage == 0 || first.CPUStats.OnlineCPUs == 0 {
		s.Errorf("%+v", first)
	}
	if !second.Read.After(first.Read) || second.CPUStats.SystemUsage <= first.CPUStats.SystemUsage || second.CPUStats.CPUUsage.TotalUsage < first.CPUStats.CPUUsage.TotalUsage {
		s.Errorf("first %+v, then %+v", first, second)
	}
	s.ok(s.Streams.Signal(s.ctx, id, "SIGKILL"))
	s.exit(id, 1, 137)
	if _, err := s.Streams.Stats(s.ctx, id); !errors.Is(err, task.ErrNotRunning) {
		s.Errorf("of what has ended: %v", err)
	}
}

func (s *suite) absent() {
	id := s.make(nil, "true") // and never started
	other := strings.Repeat("0", 64)
	o := container.ExecCreateRequest{Cmd: []string{"true"}}
	for what, of := range map[string]func(id string) error{
		"logs": func(id string) error {
			_, err := s.Streams.Logs(s.ctx, id, task.LogOptions{Stdout: true, Tail: -1})
			return err
		},
		"attach": func(id string) error {
			_, err := s.Streams.Attach(s.ctx, id, task.AttachOptions{Stdout: true})
			return err
		},
		"signal": func(id string) error { return s.Streams.Signal(s.ctx, id, "SIGTERM") },
		"resize": func(id string) error { return s.Streams.Resize(s.ctx, id, 80, 24) },
		"top":    func(id string) error { _, err := s.Streams.Top(s.ctx, id, ""); return err },
		"stats":  func(id string) error { _, err := s.Streams.Stats(s.ctx, id); return err },
		"exec":   func(id string) error { return s.Streams.ExecCreate(s.ctx, id, "e"+id[:8], o) },
	} {
		if err := of(other); !errors.Is(err, task.ErrNotFound) {
			s.Errorf("%s of a task that is not there: %v", what, err)
		}
		if err := of(id); what != "logs" && what != "attach" && !errors.Is(err, task.ErrNotRunning) {
			s.Errorf("%s of one that does not run: %v", what, err)
		}
	}
	if _, err := s.Streams.ExecInspect(s.ctx, id, "no-such-exec"); !errors.Is(err, task.ErrNotFound) {
		s.Errorf("an exec that is not there: %v", err)
	}
}
