package engineapi

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/drover/drover/controller/fleet"
	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
)

// reachable is a fleet whose nodes are not called down.
type reachable struct{ Fleet }

func (reachable) Observe(context.Context, fleet.Query) *fleet.Observations { return nil }
func (reachable) Leader() (bool, <-chan struct{})                          { return true, nil }

// agent is a node with one container's output.
type agent struct {
	t     *testing.T
	log   []string
	opens []func() (records int, err error) // of each stream: what it gives before it breaks
	acked chan bool                         // how the stream that got to the end was left
}

func (a *agent) open(_ context.Context, from string) (*bulk.Conn, error) {
	first, until := 0, len(a.log)
	if len(a.opens) > 0 {
		n, err := a.opens[0]()
		if a.opens = a.opens[1:]; err != nil {
			return nil, err
		}
		until = n
	}
	if from != "" {
		n, err := strconv.ParseUint(from, 16, 8)
		if err != nil {
			a.t.Errorf("asked to go on from %q", from)
		}
		first = int(n)
	}
	near, far := net.Pipe()
	go a.serve(bulk.NewServerConn(context.Background(), far, far), first, until)
	return bulk.NewConn(near, near), nil
}

func (a *agent) serve(s *bulk.ServerConn, first, until int) {
	defer s.Close()
	go func() { _, _ = io.Copy(io.Discard, s) }()
	for i, rec := range a.log[first:] {
		if i%3 == 0 {
			_ = s.WriteFrame(bulk.FramePos, []byte{byte(first + i)})
		}
		if i == until || s.WriteFrame(bulk.FrameStdout, []byte(rec)) != nil {
			return
		}
	}
	_ = s.WriteFrame(bulk.FrameExit, []byte("{}"))
	select {
	case <-s.Acknowledged():
		a.acked <- true
	case <-s.Context().Done():
		a.acked <- false
	}
}

// attach asks for the stream of a container on a, as docker's client or as ours.
func attach(t *testing.T, a *agent, framed bool) net.Conn {
	t.Helper()
	s := &server{Options: Options{Fleet: reachable{}}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.hijack(w, r, stream{whole: true, live: true, node: "n", again: true}, a.open); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	header := ""
	if framed {
		header = wire.HeaderFrames + ": 1\r\n"
	}
	_, _ = fmt.Fprintf(c, "POST /attach HTTP/1.1\r\nHost: drover\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n%s\r\n", header)
	// The answer's head, to the byte: what follows is the stream.
	for head := ""; !strings.HasSuffix(head, "\r\n\r\n"); {
		b := make([]byte, 1)
		if _, err := c.Read(b); err != nil {
			t.Fatal(err)
		}
		head += string(b)
	}
	return c
}

func numbered(n int) (log []string) {
	for i := range n {
		log = append(log, fmt.Sprintf("<%d>", i))
	}
	return log
}

func breaksAfter(n int) func() (int, error) { return func() (int, error) { return n, nil } }

// restarting is an agent that refuses connections.
func restarting() (int, error) {
	return 0, refuse(http.StatusServiceUnavailable, "node n does not answer: connection refused")
}

// A node's stream that breaks goes on where it was, for any client, also if its
// agent isn't back at once. What docker's client half-closes is its input only.
func TestAStreamGoesOnWhereItBroke(t *testing.T) {
	for _, framed := range []bool{false, true} {
		a := &agent{t: t, log: numbered(40), acked: make(chan bool, 1),
			opens: []func() (int, error){restarting, breaksAfter(0), breaksAfter(7), restarting, restarting, breaksAfter(1), breaksAfter(11)}}
		c := attach(t, a, framed)
		out := ""
		if framed {
			for conn := bulk.NewConn(c, c); ; {
				kind, b, err := conn.Next()
				if err != nil {
					t.Fatal(err)
				}
				if kind == bulk.FrameStdout {
					out += string(b)
				}
				if kind == bulk.FrameExit {
					_ = conn.Acknowledge()
					break
				}
			}
		} else {
			_ = c.(*net.TCPConn).CloseWrite()
			for fr := bulk.NewFrameReader(c); ; {
				kind, b, err := fr.Next()
				if err == io.EOF {
					break
				}
				if err != nil || kind != bulk.FrameStdout {
					t.Fatalf("frame %d: %s (%v)", kind, b, err)
				}
				out += string(b)
			}
		}
		if want := strings.Join(a.log, ""); out != want {
			t.Errorf("our own client: %v: it read %q, not %q", framed, out, want)
		}
		if !<-a.acked {
			t.Errorf("our own client: %v: the end was read and the agent was not told", framed)
		}
	}
}

// What our client hasn't acknowledged the agent isn't told of as read.
func TestAnEndThatIsNotAcknowledgedIsNotRead(t *testing.T) {
	a := &agent{t: t, log: numbered(3), acked: make(chan bool, 1)}
	c := attach(t, a, true)
	for conn := bulk.NewConn(c, c); ; {
		kind, b, err := conn.Next()
		if err != nil {
			t.Fatal(err)
		}
		if kind == bulk.FrameExit {
			if string(b) != "{}" { // as the node said it
				t.Errorf("the exit is %q", b)
			}
			break
		}
	}
	_ = c.Close()
	if <-a.acked {
		t.Error("an end that a client left with counts as read")
	}
}

// A container that is gone when its stream is taken up is an error of the stream,
// never its end.
func TestOutputThatIsGoneIsAnError(t *testing.T) {
	gone := func() (int, error) { return 0, refuse(http.StatusNotFound, "no such container") }
	for _, framed := range []bool{false, true} {
		a := &agent{t: t, log: numbered(9), acked: make(chan bool, 1), opens: []func() (int, error){breaksAfter(4), gone}}
		fr := bulk.NewFrameReader(attach(t, a, framed))
		kind, words := byte(0), ""
		for {
			k, b, err := fr.Next()
			if err != nil {
				break
			}
			kind, words = k, string(b)
		}
		if kind != bulk.FrameError || !strings.Contains(words, "truncated: no such container") {
			t.Errorf("our own client: %v: the last frame was %d: %s", framed, kind, words)
		}
	}
}

// A client of ours that is killed while the container reads no stdin leaves nothing.
func TestAKilledClientIsSeenBehindUnreadStdin(t *testing.T) {
	gone := make(chan struct{})
	s := &server{Options: Options{Fleet: reachable{}}}
	open := func(context.Context, string) (*bulk.Conn, error) {
		near, far := net.Pipe()
		sc := bulk.NewServerConn(context.Background(), far, far) // whose stdin nobody reads
		go func() {
			<-sc.Context().Done()
			_ = sc.Close()
			close(gone)
		}()
		return bulk.NewConn(near, near), nil
	}
	ended := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = s.hijack(w, r, stream{live: true, stdin: true, node: "n", again: true}, open)
		close(ended)
	}))
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintf(c, "POST /attach HTTP/1.1\r\nHost: drover\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n%s: 1\r\n\r\n", wire.HeaderFrames)
	br := bufio.NewReader(c)
	if _, err := http.ReadResponse(br, nil); err != nil {
		t.Fatal(err)
	}
	conn := bulk.NewConn(c, br)
	if _, err := conn.Write(make([]byte, bulk.Window)); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	<-gone
	<-ended
}

// refusing is a node whose agent is back after so many tries.
type refusing struct {
	reachable
	left *int
}

func (n refusing) Find(context.Context, uint64, func(*state.Snapshot) bool) (*state.Snapshot, bool, error) {
	txn := state.NewTxn(state.NewStore().Snapshot())
	err := txn.Apply(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n", Name: "far"}}})
	return txn.View(), true, err
}

func (n refusing) Agent(string) (*http.Client, error) { return &http.Client{Transport: n}, nil }

func (n refusing) RoundTrip(r *http.Request) (*http.Response, error) {
	if *n.left--; *n.left >= 0 {
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	}
	b, err := io.ReadAll(r.Body)
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(b))}, err
}

// A call to an agent that is being restarted waits for it a moment, with all that it
// has to say; one to an agent that stays away says so.
func TestCallsWaitForAnAgentThatIsRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			refusals int
			comes    bool
		}{{0, true}, {5, true}, {1000, false}} {
			s := &server{Options: Options{Fleet: refusing{left: &c.refusals}}}
			resp, err := s.agent(httptest.NewRequest(http.MethodPost, "/", nil), "n", http.MethodPost, "/v1/exec", []byte("said"))
			if !c.comes {
				if status(err) != http.StatusServiceUnavailable || !strings.Contains(err.Error(), "node far does not answer") {
					t.Errorf("an agent that is away: %v", err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(resp.Body); string(b) != "said" {
				t.Errorf("the agent was told %q", b)
			}
			_ = resp.Body.Close()
		}
	})
}

// An exec's output goes to whom it was attached to at its create.
func TestOnlyWhatWasAttachedIsPassedOn(t *testing.T) {
	var got bytes.Buffer
	v := selective{&recorder{out: &got}, []byte{bulk.FrameStderr}}
	for kind, text := range map[byte]string{bulk.FrameStdout: "out", bulk.FrameStderr: "err"} {
		if err := v.frame(kind, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if got.String() != "out" {
		t.Errorf("its client read %q", got.String())
	}
}

// recorder is a client that keeps what it gets.
type recorder struct {
	viewer
	out *bytes.Buffer
}

func (r *recorder) frame(_ byte, p []byte) error { _, err := r.out.Write(p); return err }
