package shim

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskAPI "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/drover/drover/agent/logs"
	"github.com/drover/drover/agent/shim/shimapi"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/life"
)

// input is what a client sends for some writes: "" is a half-close.
func input(writes ...string) []byte {
	var b []byte
	for _, w := range writes {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(w))), w...)
	}
	return b
}

// opened is a process's end of a fifo.
func opened(t *testing.T, path string, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func dial(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

// short is a folder whose paths fit a socket's.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// running is a task's streams, with their process's ends.
func running(t *testing.T, change func(*shimapi.Stdio)) (io *taskIO, a shimapi.Stdio, closed chan struct{}) {
	t.Helper()
	dir := short(t)
	a = shimapi.Stdio{LogDir: filepath.Join(dir, "log"), ExitFile: filepath.Join(dir, "exit.1"), Socket: filepath.Join(dir, "in"), Life: life.Life{Attempt: 3, Restarts: 2}}
	if change != nil {
		change(&a)
	}
	closed = make(chan struct{}, 8)
	f, err := newFifos(filepath.Join(dir, "drover"), a.Stdin, a.TTY)
	if err != nil {
		t.Fatal(err)
	}
	io, err = newTaskIO(a, dir, f, func() { closed <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(io.close)
	return io, a, closed
}

func logged(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	for r := logs.NewReader(dir, 0); ; {
		rec, err := r.Next()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		b.WriteByte("?oe"[rec.Stream])
		b.Write(rec.Data)
	}
}

// An exit's record has what was written before it, and behind which offset it ended.
func TestATasksOutputIsInItsLogBeforeItsExit(t *testing.T) {
	task, a, _ := running(t, nil)
	_, out, errp := task.paths()
	for path, text := range map[string]string{out: "out\n", errp: "err\n"} {
		f := opened(t, path, os.O_WRONLY)
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if task.hasBegun() {
		t.Error("it has begun before it was started")
	}
	began, at := time.Now(), time.Now().Add(time.Second)
	task.started(began)
	task.note("runc start", began)
	task.writeTimings(t.Context())
	task.oom.Store(true)
	task.waitOutput(20 * time.Second)
	if err := task.writeExit(9, at); err != nil {
		t.Fatal(err)
	}
	x, err := shimapi.ReadExit(a.ExitFile)
	end, _ := logs.End(a.LogDir)
	if err != nil || x.Attempt != 3 || x.Restarts != 2 || x.Code != 9 || !x.At.Equal(at) || !x.Started.Equal(began) || !x.OOM || x.LogEnd != end || !task.hasBegun() {
		t.Errorf("the record is %+v (%v), the log ends at %d", x, err, end)
	}
	if got := logged(t, a.LogDir); got != "oout\neerr\n" && got != "eerr\noout\n" {
		t.Errorf("the log has %q", got)
	}
	if ts, err := shimapi.ReadTimings(a.ExitFile); err != nil || len(ts) != 1 || ts[0].Name != "runc start" {
		t.Errorf("timings are %v (%v)", ts, err)
	}
}

// Clients come and go; what one sends is whole, and only with StdinOnce the first one's
// half-close is the process's end of input.
func TestStdinOfATask(t *testing.T) {
	for _, once := range []bool{false, true} {
		task, a, closed := running(t, func(a *shimapi.Stdio) { a.Stdin, a.StdinOnce = true, once })
		in, _, _ := task.paths()
		got := make(chan string)
		go func() {
			f, err := os.OpenFile(in, os.O_RDONLY, 0)
			if err != nil {
				close(got)
				return
			}
			defer func() { _ = f.Close() }()
			b := make([]byte, 64)
			for {
				n, err := f.Read(b)
				if err != nil {
					close(got)
					return
				}
				got <- string(b[:n])
			}
		}()
		c := dial(t, a.Socket)
		if _, err := c.Write(input("one")); err != nil {
			t.Fatal(err)
		}
		if s := <-got; s != "one" {
			t.Errorf("once %v: the process read %q", once, s)
		}
		if _, err := c.Write(input("")); err != nil {
			t.Fatal(err)
		}
		if once {
			if s, ok := <-got; ok {
				t.Errorf("behind the end came %q", s)
			}
			close(task.made) // then containerd's own end is closed, too
			<-closed
			continue
		}
		_ = c.Close()
		if _, err := dial(t, a.Socket).Write(input("two")); err != nil {
			t.Fatal(err)
		}
		if s := <-got; s != "two" || len(closed) > 0 {
			t.Errorf("another client's input is %q", s)
		}
	}
}

// Nothing of what a client sends makes a shim hold more than a frame, and a client that
// breaks off takes no input away from the next one.
func TestInputThatIsNoInputEndsItsClientOnly(t *testing.T) {
	var b bytes.Buffer
	s := &stdin{open: func() (io.WriteCloser, error) { return nil, os.ErrNotExist }}
	for what, raw := range map[string][]byte{
		"too long":           binary.BigEndian.AppendUint32(nil, bulk.MaxFrame+1),
		"a head cut off":     {0, 0},
		"a frame cut off":    append(binary.BigEndian.AppendUint32(nil, 9), "short"...),
		"nothing":            nil,
		"for no process":     input("x"), // whose fifo is gone
		"half-closes to one": input("", "", ""),
	} {
		b.Reset()
		b.Write(raw)
		s.feed(&b, false) // returns
		if s.closed {
			t.Errorf("%s: stdin is closed", what)
		}
	}
}

// executing is an exec's streams and its client.
func executing(t *testing.T, a shimapi.ExecIO) (*execIO, chan struct{}) {
	t.Helper()
	closed := make(chan struct{}, 8)
	f, err := newFifos(filepath.Join(short(t), "exec"), a.Stdin, a.TTY)
	if err != nil {
		t.Fatal(err)
	}
	e, err := newExecIO(a, f, func() { closed <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.close)
	return e, closed
}

// An exec's exit comes behind its output, once, whichever came first: the process's
// end, or its client.
func TestAnExecsExitIsItsLastFrame(t *testing.T) {
	for _, late := range []bool{false, true} {
		a := shimapi.ExecIO{Socket: filepath.Join(short(t), "s"), Attach: true}
		e, _ := executing(t, a)
		_, out, errp := e.paths()
		connect := func() *net.UnixConn { return dial(t, a.Socket) }
		var c *net.UnixConn
		if !late {
			c = connect()
		}
		done := make(chan error, 1)
		go func() {
			f, err := os.OpenFile(errp, os.O_WRONLY, 0)
			if err == nil {
				err = f.Close()
			}
			if err == nil {
				f, err = os.OpenFile(out, os.O_WRONLY, 0)
			}
			if err == nil {
				_, err = f.WriteString("beside")
			}
			if err == nil {
				err = f.Close()
			}
			done <- err
		}()
		if late {
			e.ended(shimapi.ExecExit{Code: 4, At: 5})
			c = connect()
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		e.ended(shimapi.ExecExit{Code: 4, At: 5})
		e.ended(shimapi.ExecExit{Code: 9}) // as containerd may say again
		fr := bulk.NewFrameReader(c)
		if kind, b, err := fr.Next(); err != nil || kind != bulk.FrameStdout || string(b) != "beside" {
			t.Errorf("late %v: frame %d %q (%v)", late, kind, b, err)
		}
		kind, b, err := fr.Next()
		var x shimapi.ExecExit
		if jerr := json.Unmarshal(b, &x); err != nil || kind != bulk.FrameExit || jerr != nil || x != (shimapi.ExecExit{Code: 4, At: 5}) {
			t.Errorf("late %v: frame %d %q (%v)", late, kind, b, err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if kind, _, err := fr.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("late %v: behind the exit comes frame %d (%v)", late, kind, err)
		}
	}
}

// Only the first client has an exec; when it leaves, the process has the end of its input.
func TestAnExecHasOneClient(t *testing.T) {
	a := shimapi.ExecIO{Socket: filepath.Join(short(t), "s"), Attach: true, Stdin: true}
	e, closed := executing(t, a)
	close(e.begun)
	in, _, _ := e.paths()
	read := make(chan string, 1)
	go func() {
		b, _ := os.ReadFile(in)
		read <- string(b)
	}()
	c := dial(t, a.Socket)
	<-e.first
	second := dial(t, a.Socket)
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a second client got %v", err)
	}
	if _, err := c.Write(input("typed")); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if got := <-read; got != "typed" {
		t.Errorf("the process read %q", got)
	}
	<-closed
}

// One that never begins, or to whose output nobody listens, leaves nothing that waits.
func TestStreamsThatComeToNothingEnd(t *testing.T) {
	for _, a := range []shimapi.ExecIO{{Attach: true, Stdin: true}, {}, {TTY: true}} {
		a.Socket = filepath.Join(short(t), "s")
		e, _ := executing(t, a)
		if !a.Attach { // output is read, and dropped
			_, out, _ := e.paths()
			w := opened(t, out, os.O_WRONLY)
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				t.Error(err)
			}
			_ = w.Close()
		}
		e.close()
		<-e.over
		e.out.Wait()
		if _, err := net.Dial("unix", a.Socket); err == nil {
			t.Errorf("%+v: somebody is let in", a)
		}
	}
	task, a, _ := running(t, func(a *shimapi.Stdio) { a.Stdin = true })
	_, out, errp := task.paths()
	for _, path := range []string{out, errp} { // a process that writes nothing
		_ = opened(t, path, os.O_WRONLY).Close()
	}
	task.close()
	task.out.Wait()
	if _, err := net.Dial("unix", a.Socket); err == nil {
		t.Error("a task's socket is still served")
	}
}

// A fifo is not waited at either, if it was let go before its reader came to it.
func TestStreamsThatEndAtOnceHaveNoReaderLeft(t *testing.T) {
	for range 100 {
		e, _ := executing(t, shimapi.ExecIO{Socket: filepath.Join(short(t), "s")})
		e.close()
		e.out.Wait()
	}
}

// refusing is a task service that refuses execs, as that of a paused container does.
type refusing struct{ taskAPI.TTRPCTaskService }

func (refusing) Create(context.Context, *taskAPI.CreateTaskRequest) (*taskAPI.CreateTaskResponse, error) {
	return nil, errors.New("no")
}

func (refusing) Exec(context.Context, *taskAPI.ExecProcessRequest) (*emptypb.Empty, error) {
	return nil, errors.New("cannot exec in a paused state")
}

func TestARefusedExecLeavesNothing(t *testing.T) {
	dir := short(t)
	s := &service{
		TTRPCTaskService: refusing{}, tasks: map[string]*taskIO{"c": {bundle: dir}}, execs: map[string]*execIO{},
		ends: func(dir string, input, tty bool) (ends, error) { return newFifos(dir, input, tty) },
	}
	x := shimapi.ExecIO{Socket: filepath.Join(dir, "x"), Attach: true}
	if _, err := s.Exec(t.Context(), &taskAPI.ExecProcessRequest{ID: "c", ExecID: "e", Stdout: x.URL()}); err == nil || err.Error() != "cannot exec in a paused state" {
		t.Errorf("it is refused with %v", err)
	}
	if c, err := net.Dial("unix", x.Socket); err == nil {
		_ = c.Close()
		t.Error("its streams are there")
	}
	if len(s.execs) > 0 {
		t.Errorf("the shim keeps %v", s.execs)
	}
}

func TestAStopwatchStandsWhileNothingRuns(t *testing.T) {
	var s stopwatch
	if s.total() != 0 {
		t.Errorf("it begins at %v", s.total())
	}
	s.start()
	if s.total() <= 0 {
		t.Error("it does not run")
	}
	s.stop()
	if a, b := s.total(), s.total(); a != b || a <= 0 {
		t.Errorf("it went from %v to %v", a, b)
	}
}
