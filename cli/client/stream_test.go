package client

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"github.com/drover/drover/pkg/bulk"
)

// scripted answers attaches and logs, each as the next of its scripts says.
type scripted struct {
	client.APIClient
	t     *testing.T
	each  []func(from string, s *bulk.ServerConn) error
	ended chan struct{}
	logs  []bool // whether each attach asked for what was before it
}

func (f *scripted) next(ctx context.Context) (net.Conn, error) {
	if len(f.each) == 0 {
		f.t.Fatal("asked once too often")
	}
	do := f.each[0]
	f.each = f.each[1:]
	if do == nil {
		return nil, errdefs.ErrNotFound
	}
	near, far := net.Pipe()
	from, _ := ctx.Value(fromKey{}).(string)
	s := bulk.NewServerConn(context.Background(), far, far)
	go func() {
		if err := do(from, s); err != nil {
			f.t.Error(err)
		}
		_ = s.Close()
		f.ended <- struct{}{}
	}()
	return near, nil
}

func (f *scripted) ContainerAttach(ctx context.Context, _ string, o client.ContainerAttachOptions) (client.ContainerAttachResult, error) {
	f.logs = append(f.logs, o.Logs)
	c, err := f.next(ctx)
	if err != nil {
		return client.ContainerAttachResult{}, err
	}
	return client.ContainerAttachResult{HijackedResponse: client.NewHijackedResponse(c, "application/vnd.docker.multiplexed-stream")}, nil
}

func (f *scripted) ContainerLogs(ctx context.Context, _ string, _ client.ContainerLogsOptions) (client.ContainerLogsResult, error) {
	c, err := f.next(ctx)
	if err != nil {
		return nil, err
	}
	return &body{c}, nil
}

// body is an answer that says when it is whole, with an exit frame here.
type body struct{ net.Conn }

func (b *body) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func says(frames ...any) func(string, *bulk.ServerConn) error {
	return func(_ string, s *bulk.ServerConn) error {
		for i := 0; i < len(frames); i += 2 {
			if err := s.WriteFrame(frames[i].(byte), []byte(frames[i+1].(string))); err != nil {
				return err
			}
		}
		return nil
	}
}

// from checks where a stream is taken up.
func from(want string, then func(string, *bulk.ServerConn) error) func(string, *bulk.ServerConn) error {
	return func(got string, s *bulk.ServerConn) error {
		if got != want {
			return io.ErrNoProgress
		}
		return then(got, s)
	}
}

func (f *scripted) read(c *fleetClient, logs bool) (out string, err error) {
	var r io.Reader
	if logs {
		l, err := c.ContainerLogs(f.t.Context(), "x", client.ContainerLogsOptions{})
		if err != nil {
			f.t.Fatal(err)
		}
		defer l.Close()
		r = l
	} else {
		h, err := c.ContainerAttach(f.t.Context(), "x", client.ContainerAttachOptions{Stdout: true})
		if err != nil {
			f.t.Fatal(err)
		}
		defer h.Close()
		r = h.Reader
	}
	var b bytes.Buffer
	_, err = stdcopy.StdCopy(&b, &b, r)
	return b.String(), err
}

const (
	stdout, pos, exit, fault = bulk.FrameStdout, bulk.FramePos, bulk.FrameExit, bulk.FrameError
)

// Output goes on where it broke, nothing twice, and what can't be had is an error
// that is remembered: docker's commands don't look once they know the exit code.
func TestOutputIsWholeOrAnError(t *testing.T) {
	for _, c := range []struct {
		name  string
		each  []func(string, *bulk.ServerConn) error
		out   string
		fails string
	}{
		{"whole", []func(string, *bulk.ServerConn) error{says(pos, "a", stdout, "one", exit, "")}, "one", ""},
		{"taken up", []func(string, *bulk.ServerConn) error{
			says(pos, "a", stdout, "one", pos, "b", stdout, "two"),
			from("62", says(pos, "b", stdout, "tw")),
			from("62", says(pos, "b", stdout, "twothr", pos, "c", stdout, "ee")),
			from("63", says(pos, "c", stdout, "ee", exit, ""))}, "onetwothree", ""},
		{"gone when it is taken up", []func(string, *bulk.ServerConn) error{says(pos, "a", stdout, "one"), nil}, "one", "not there any more"},
		{"an error instead of the rest", []func(string, *bulk.ServerConn) error{says(pos, "a", stdout, "one"), says(fault, "not found")}, "one", "not found"},
	} {
		for _, logs := range []bool{false, true} {
			f := &scripted{t: t, ended: make(chan struct{}, 9), each: c.each}
			fc := &fleetClient{APIClient: f, s: &Session{Warn: func(s string) { t.Error(s) }}}
			out, err := f.read(fc, logs)
			lost := fc.Lost()
			if out != c.out || (err == nil) != (c.fails == "") || (lost == nil) != (err == nil) {
				t.Errorf("%s, logs %v: %q (%v), lost: %v", c.name, logs, out, err, lost)
			}
			if lost != nil && !strings.Contains(lost.Error(), c.fails) {
				t.Errorf("%s: the words are %q", c.name, lost)
			}
		}
	}
}

// A stream that breaks before it begins is asked for as at first, and one that began
// with a container's first byte from there, though the container may be over by now.
func TestAStreamWithoutAPositionIsAskedForWhole(t *testing.T) {
	whole := string([]byte{bulk.BeginWhole})
	f := &scripted{t: t, ended: make(chan struct{}, 9), each: []func(string, *bulk.ServerConn) error{
		says(), says(bulk.FrameBegin, whole), from("", says(bulk.FrameBegin, whole, stdout, "one", exit, ""))}}
	c := &fleetClient{APIClient: f, s: &Session{Warn: func(s string) { t.Error(s) }}}
	if out, err := f.read(c, false); out != "one" || err != nil {
		t.Errorf("%q (%v)", out, err)
	}
	if want := []bool{false, false, true}; !slices.Equal(f.logs, want) {
		t.Errorf("logs were asked for: %v, not %v", f.logs, want)
	}
}

// The end is acknowledged once what came before it was written by who reads.
func TestTheEndIsAcknowledgedBehindTheOutput(t *testing.T) {
	acked := make(chan struct{})
	f := &scripted{t: t, ended: make(chan struct{}, 9), each: []func(string, *bulk.ServerConn) error{func(_ string, s *bulk.ServerConn) error {
		if err := says(stdout, "one", exit, "")("", s); err != nil {
			return err
		}
		<-s.Acknowledged()
		close(acked)
		return nil
	}}}
	c := &fleetClient{APIClient: f, s: &Session{Warn: func(s string) { t.Error(s) }}}
	h, err := c.ContainerAttach(t.Context(), "x", client.ContainerAttachOptions{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	b := make([]byte, 100)
	if n, err := h.Conn.Read(b); err != nil || string(b[8:n]) != "one" {
		t.Fatalf("%q (%v)", b[:n], err)
	}
	select {
	case <-acked:
		t.Fatal("the end was acknowledged while its reader had the output in hand")
	default:
	}
	if _, err := h.Conn.Read(b); err != io.EOF {
		t.Fatalf("the end is %v", err)
	}
	<-acked
}

// Docker's commands don't read a stream without output. All of stdin goes all the
// same, over breaks too, and the end is acknowledged: the fleet waits for that.
func TestAStreamWithoutOutputIsReadAllTheSame(t *testing.T) {
	acked := make(chan struct{})
	f := &scripted{t: t, ended: make(chan struct{}, 9), each: []func(string, *bulk.ServerConn) error{
		func(_ string, s *bulk.ServerConn) error {
			if err := says(bulk.FrameBegin, "\x00", pos, "a")("", s); err != nil {
				return err
			}
			_, err := io.CopyN(io.Discard, s, bulk.Window)
			return err
		},
		func(_ string, s *bulk.ServerConn) error {
			if err := says(bulk.FrameBegin, "\x00", pos, "a")("", s); err != nil {
				return err
			}
			if _, err := io.Copy(io.Discard, s); err != nil {
				return err
			}
			if err := s.WriteFrame(exit, nil); err != nil {
				return err
			}
			<-s.Acknowledged()
			close(acked)
			return nil
		}}}
	c := &fleetClient{APIClient: f, s: &Session{Warn: func(string) {}}}
	h, err := c.ContainerAttach(t.Context(), "x", client.ContainerAttachOptions{Stdin: true, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.Conn.Write(make([]byte, 4*bulk.Window)); err != nil {
		t.Fatal(err)
	}
	if err := h.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-acked
	if c.Lost() != nil {
		t.Error(c.Lost())
	}
}
