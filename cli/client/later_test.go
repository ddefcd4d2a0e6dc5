package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
)

// upgrade answers an attach, and writes frames.
func upgrade(w http.ResponseWriter, frames func(string, *bulk.ServerConn) error) error {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"); err != nil {
		return err
	}
	s := bulk.NewServerConn(context.Background(), conn, buf.Reader)
	defer func() { _ = s.Close() }()
	if err := frames("", s); err != nil {
		return err
	}
	s.WaitAcknowledged()
	return nil
}

// What a run asks for besides its start is on its way together with it, and may arrive when
// the container has ended: nothing of it is missed.
func TestARunsStartOvertakesItsAttachAndWait(t *testing.T) {
	started := make(chan struct{})
	c := fleet(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(wire.HeaderIndex, "7")
		switch what := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]; what {
		case "create":
			w.WriteHeader(http.StatusCreated)
			_, _ = io.WriteString(w, `{"Id":"x"}`)
		case "attach":
			<-started
			if r.URL.Query().Get("logs") != "1" {
				t.Error("an attach that comes late does not ask for what there was")
			}
			if err := upgrade(w, says(bulk.FrameBegin, string([]byte{bulk.BeginWhole}), pos, "a", stdout, "one", exit, "")); err != nil {
				t.Error(err)
			}
		case "wait":
			<-started
			if after := r.Header.Get(wire.HeaderAfter); after != "7" {
				t.Errorf("a wait that comes late asks for what follows %q", after)
			}
			_, _ = io.WriteString(w, `{"StatusCode":3}`)
		case "start":
			close(started)
			w.WriteHeader(http.StatusNoContent)
		}
	})
	made, err := c.ContainerCreate(t.Context(), client.ContainerCreateOptions{Config: &container.Config{Image: "busybox"}})
	if err != nil {
		t.Fatal(err)
	}
	h, err := c.ContainerAttach(t.Context(), made.ID, client.ContainerAttachOptions{Stdout: true, Stderr: true, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if kind, ok := h.MediaType(); !ok || kind != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("the output is %s", kind)
	}
	w := c.ContainerWait(t.Context(), made.ID, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	if _, err := c.ContainerStart(t.Context(), made.ID, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, h.Reader); err != nil || out.String() != "one" {
		t.Errorf("the output is %q (%v)", &out, err)
	}
	select {
	case r := <-w.Result:
		if r.StatusCode != 3 {
			t.Errorf("the exit code is %d", r.StatusCode)
		}
	case err := <-w.Error:
		t.Error(err)
	}
}

// What may not overtake: input, containers of others, and those of controllers that say no
// index, which could not tell an old exit from the next.
func TestOthersAttachBeforeTheyGoOn(t *testing.T) {
	for _, c := range []struct {
		name  string
		index uint64
		id    string
		stdin bool
		later bool
	}{
		{"a run's output", 7, "x", false, true},
		{"a run's input", 7, "x", true, false},
		{"somebody else's container", 7, "y", false, false},
		{"without an index", 0, "x", false, false},
	} {
		f := &scripted{t: t, ended: make(chan struct{}, 1), each: []func(string, *bulk.ServerConn) error{says(bulk.FrameBegin, "\x00")}}
		fc := &fleetClient{APIClient: f, s: &Session{}}
		fc.s.seen.Store(c.index)
		fc.remember("x", true)
		h, err := fc.ContainerAttach(t.Context(), c.id, client.ContainerAttachOptions{Stdout: true, Stdin: c.stdin})
		if err != nil {
			t.Fatal(err)
		}
		l, later := h.Conn.(*later)
		if later != c.later {
			t.Errorf("%s: it is opened later: %v", c.name, later)
		}
		if kind, _ := h.MediaType(); later && kind != "application/vnd.docker.raw-stream" {
			t.Errorf("%s: a terminal's output is %s", c.name, kind)
		}
		if later {
			<-l.opened
		}
		if f.logs[0] != c.later {
			t.Errorf("%s: all output is asked for: %v", c.name, f.logs[0])
		}
		h.Close()
	}
}

// A stream that can't be opened is lost output, unless nobody wants it any more.
func TestAStreamThatDoesNotOpenIsLost(t *testing.T) {
	refused := errors.New("refused")
	var lost error
	l := openLater(t.Context(), func(err error) { lost = err }, func(context.Context) (client.HijackedResponse, error) {
		return client.HijackedResponse{}, refused
	})
	_, read := l.Read(nil)
	_, written := l.Write(nil)
	for _, err := range []error{read, written, l.CloseWrite(), l.SetDeadline(time.Time{}), l.SetReadDeadline(time.Time{}), l.SetWriteDeadline(time.Time{}), lost} {
		if !errors.Is(err, refused) {
			t.Errorf("a stream that was refused: %v", err)
		}
	}
	if l.Close() != nil || l.LocalAddr().String() != "" || l.RemoteAddr().Network() != "unix" {
		t.Error("it is somewhere")
	}
	lost = nil
	l = openLater(t.Context(), func(err error) { lost = err }, func(ctx context.Context) (client.HijackedResponse, error) {
		<-ctx.Done()
		return client.HijackedResponse{}, ctx.Err()
	})
	if err := l.Close(); err != nil || lost != nil {
		t.Errorf("a stream that nobody waits for: %v, lost %v", err, lost)
	}
}

// Once open, it is what was opened.
func TestAStreamThatIsOpen(t *testing.T) {
	near, far := net.Pipe()
	go func() {
		b := make([]byte, 2)
		_, _ = io.ReadFull(far, b)
		_, _ = far.Write(append(b, '!'))
		_ = far.Close()
	}()
	l := openLater(t.Context(), func(err error) { t.Error(err) }, func(context.Context) (client.HijackedResponse, error) {
		return client.NewHijackedResponse(near, ""), nil
	})
	if _, err := l.Write([]byte("to")); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(l); string(b) != "to!" || err != nil {
		t.Errorf("%q (%v)", b, err)
	}
	if err := errors.Join(l.CloseWrite(), l.Close()); err != nil || l.LocalAddr() != near.LocalAddr() || l.RemoteAddr() != near.RemoteAddr() {
		t.Errorf("it ends with %v", err)
	}
}

// execs answers like a controller of this release, which says an exec's exit code at the
// end of its stream, or like one before.
type execs struct {
	client.APIClient
	end     string
	inspect int
}

func (e *execs) ExecAttach(context.Context, string, client.ExecAttachOptions) (client.ExecAttachResult, error) {
	near, far := net.Pipe()
	go func() {
		s := bulk.NewServerConn(context.Background(), far, far)
		_ = says(stdout, "one", exit, e.end)("", s)
		s.WaitAcknowledged()
		_ = s.Close()
	}()
	return client.ExecAttachResult{HijackedResponse: client.NewHijackedResponse(near, "")}, nil
}

func (e *execs) ExecInspect(context.Context, string, client.ExecInspectOptions) (client.ExecInspectResult, error) {
	e.inspect++
	return client.ExecInspectResult{ExitCode: 9}, nil
}

func (e *execs) ContainerInspect(context.Context, string, client.ContainerInspectOptions) (client.ContainerInspectResult, error) {
	e.inspect++
	return client.ContainerInspectResult{}, errors.New("asked")
}

func TestAnExecsExitCodeComesWithItsOutput(t *testing.T) {
	for _, c := range []struct {
		end  string
		code int
		asks int
	}{
		{`{"code":7}`, 7, 0},
		{`{}`, 0, 0},
		{``, 9, 1},
		{`{"code":`, 9, 1},
	} {
		e := &execs{end: c.end}
		fc := &fleetClient{APIClient: e, s: &Session{}}
		h, err := fc.ExecAttach(t.Context(), "e", client.ExecAttachOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if _, err := stdcopy.StdCopy(&out, &out, h.Reader); err != nil || out.String() != "one" {
			t.Errorf("%s: the output is %q (%v)", c.end, &out, err)
		}
		h.Close()
		r, err := fc.ExecInspect(t.Context(), "e", client.ExecInspectOptions{})
		if err != nil || r.ExitCode != c.code || e.inspect != c.asks {
			t.Errorf("%s: exit code %d after %d requests (%v)", c.end, r.ExitCode, e.inspect, err)
		}
		if r, err := fc.ExecInspect(t.Context(), "another", client.ExecInspectOptions{}); err != nil || r.ExitCode != 9 {
			t.Errorf("%s: another exec's exit code is %d (%v)", c.end, r.ExitCode, err)
		}
	}
}

// Docker's exec inspects its container only to see whether it is there, which its next
// request says as well.
func TestWhatIsAssumedIsNotAskedFor(t *testing.T) {
	e := &execs{}
	fc := &fleetClient{APIClient: e, s: &Session{}}
	if _, err := fc.ContainerInspect(Assume(t.Context()), "x", client.ContainerInspectOptions{}); err != nil || e.inspect != 0 {
		t.Errorf("asked %d times (%v)", e.inspect, err)
	}
	if _, err := fc.ContainerInspect(t.Context(), "x", client.ContainerInspectOptions{}); fmt.Sprint(err) != "asked" {
		t.Errorf("an inspect of its own: %v", err)
	}
}
