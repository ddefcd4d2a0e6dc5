// Package shimapi is the contract between an agent and the shims that outlive it: how a
// task's stdio is requested, what an exit record contains, and how stdin and an exec's
// streams are sent over a shim's socket. It only changes by new versions: shims started
// by old builds must remain usable.
package shimapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/drover/drover/pkg/durable"
	"github.com/drover/drover/pkg/life"
)

// RuncVersion is that of runc's library in this build's shim.
const RuncVersion = "1.5.3"

// Schemes of a stdio address.
const (
	TaskScheme = "drover"
	ExecScheme = "drover-exec"
)

// Stdio describes where a task's output goes. It is passed as containerd's stdout
// address.
type Stdio struct {
	LogDir       string
	Socket       string // accepts stdin frames; "" without stdin
	ExitFile     string
	Life         life.Life
	SegmentBytes int64 // 0: the log's default
	Segments     int
	Stdin        bool
	StdinOnce    bool // the first client's half-close ends stdin for good
	TTY          bool
}

// URL returns the address.
func (s Stdio) URL() string {
	q := url.Values{"v": {"1"}, "log": {s.LogDir}, "sock": {s.Socket}, "exit": {s.ExitFile}, "attempt": {strconv.Itoa(int(s.Life.Attempt))}}
	if s.Life.Restarts > 0 {
		q.Set("restarts", strconv.Itoa(int(s.Life.Restarts)))
	}
	if s.SegmentBytes > 0 {
		q.Set("segment", strconv.FormatInt(s.SegmentBytes, 10))
	}
	if s.Segments > 0 {
		q.Set("segments", strconv.Itoa(s.Segments))
	}
	set(q, "stdin", s.Stdin)
	set(q, "once", s.StdinOnce)
	set(q, "tty", s.TTY)
	return TaskScheme + "://stdio?" + q.Encode()
}

// ParseStdio parses a task's address; ok is false for other schemes.
func ParseStdio(addr string) (s Stdio, ok bool, err error) {
	q, ok, err := parse(addr, TaskScheme)
	if !ok || err != nil {
		return s, ok, err
	}
	s = Stdio{LogDir: q.Get("log"), Socket: q.Get("sock"), ExitFile: q.Get("exit"), Stdin: q.Has("stdin"), StdinOnce: q.Has("once"), TTY: q.Has("tty")}
	if s.Life.Attempt, err = number(q.Get("attempt")); err != nil {
		return s, true, fmt.Errorf("stdio address: attempt: %w", err)
	}
	if v := q.Get("restarts"); v != "" {
		if s.Life.Restarts, err = number(v); err != nil {
			return s, true, fmt.Errorf("stdio address: restarts: %w", err)
		}
	}
	if v := q.Get("segment"); v != "" {
		if s.SegmentBytes, err = strconv.ParseInt(v, 10, 64); err != nil {
			return s, true, fmt.Errorf("stdio address: segment: %w", err)
		}
	}
	if v := q.Get("segments"); v != "" {
		if s.Segments, err = strconv.Atoi(v); err != nil {
			return s, true, fmt.Errorf("stdio address: segments: %w", err)
		}
	}
	if s.LogDir == "" || s.ExitFile == "" {
		return s, true, errors.New("stdio address: log and exit are needed")
	}
	return s, true, nil
}

func number(s string) (int32, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	return int32(n), err
}

// ExecIO describes where an exec's streams go: frames out and stdin in over Socket. The
// first client receives the output, followed by a frame with an ExecExit; shims of
// earlier builds end the stream without one.
type ExecIO struct {
	Socket string
	Attach bool // output waits for the first client; without it, it is discarded
	Stdin  bool
	TTY    bool
}

// URL returns the address.
func (e ExecIO) URL() string {
	q := url.Values{"v": {"1"}, "sock": {e.Socket}}
	set(q, "attach", e.Attach)
	set(q, "stdin", e.Stdin)
	set(q, "tty", e.TTY)
	return ExecScheme + "://stdio?" + q.Encode()
}

// ParseExecIO parses an exec's address; ok is false for other schemes.
func ParseExecIO(addr string) (e ExecIO, ok bool, err error) {
	q, ok, err := parse(addr, ExecScheme)
	if !ok || err != nil {
		return e, ok, err
	}
	e = ExecIO{Socket: q.Get("sock"), Attach: q.Has("attach"), Stdin: q.Has("stdin"), TTY: q.Has("tty")}
	if e.Socket == "" {
		return e, true, errors.New("exec address: sock is needed")
	}
	return e, true, nil
}

// ExecExit is an exec's exit. Its JSON is that of a dv1.Exit in protojson.
type ExecExit struct {
	Code int32 `json:"code"`
	At   int64 `json:"at,string"` // Unix nanoseconds
}

// Exit is the durable record of a life's end.
type Exit struct {
	Version  int       `json:"version"`
	Attempt  int32     `json:"attempt"`
	Restarts int32     `json:"restarts,omitempty"` // shims of earlier builds recorded first lives only
	Code     int32     `json:"code"`
	At       time.Time `json:"at"`
	Started  time.Time `json:"started"`
	OOM      bool      `json:"oom,omitempty"`
	LogEnd   uint64    `json:"logEnd"`
}

// WriteExit writes the record durably.
func WriteExit(path string, x Exit) error {
	x.Version = 1
	b, err := json.Marshal(x)
	if err != nil {
		return fmt.Errorf("encoding an exit record: %w", err)
	}
	return durable.WriteFile(path, b, 0o600)
}

// ErrDamaged reports a record that exists and can't be decoded.
var ErrDamaged = errors.New("damaged")

// ReadExit reads a record; it returns fs.ErrNotExist while the process runs.
func ReadExit(path string) (Exit, error) {
	var x Exit
	b, err := os.ReadFile(path)
	if err != nil {
		return x, fmt.Errorf("reading an exit record: %w", err)
	}
	if err := json.Unmarshal(b, &x); err != nil {
		return x, fmt.Errorf("the exit record %s is %w: %w", path, ErrDamaged, err)
	}
	if x.Version != 1 {
		return x, fmt.Errorf("the exit record %s is %w, or of version %d, which this agent does not know", path, ErrDamaged, x.Version)
	}
	return x, nil
}

// Timing is a step of the shim, for the trace of the run.
type Timing struct {
	Name  string    `json:"name"`
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
}

// TimingsFile is beside a life's exit file.
func TimingsFile(exitFile string) string { return exitFile + ".timings" }

// ReadTimings returns the steps that the shim recorded; none is no error.
func ReadTimings(exitFile string) ([]Timing, error) {
	b, err := os.ReadFile(TimingsFile(exitFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading a shim's timings: %w", err)
	}
	var t []Timing
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, fmt.Errorf("reading a shim's timings: %w", err)
	}
	return t, nil
}

func parse(addr, scheme string) (url.Values, bool, error) {
	u, err := url.Parse(addr)
	if err != nil || u.Scheme != scheme {
		return nil, false, nil
	}
	q := u.Query()
	if q.Get("v") != "1" {
		return nil, true, fmt.Errorf("stdio address of version %q, which this shim does not know", q.Get("v"))
	}
	return q, true, nil
}

func set(q url.Values, k string, v bool) {
	if v {
		q.Set(k, "1")
	}
}
