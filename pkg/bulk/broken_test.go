package bulk

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/pkg/testenv"
)

// deaf has the kernel drop whatever comes in for c, as a link that is down does.
func deaf(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	_ = raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// keeping remembers what was accepted.
type keeping struct {
	net.Listener
	conns chan net.Conn
}

func (k *keeping) Accept() (net.Conn, error) {
	c, err := k.Listener.Accept()
	if err == nil {
		k.conns <- c
	}
	return c, err
}

// Both ends find out by themselves that the link between them is down: one that
// only waits for output, one that writes it, and who comes next dials anew.
func TestALinkThatIsDownEndsItsStreams(t *testing.T) {
	testenv.Root(t) // it has the kernel drop what comes in
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	kept := &keeping{l, make(chan net.Conn, 9)}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	gone := make(chan struct{}, 1)
	go func() { _ = Serve(ctx, kept, upper(t, gone), slog.New(slog.DiscardHandler)); close(served) }()
	var dialed []net.Conn
	c := NewClient(func(ctx context.Context) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		if err == nil {
			dialed = append(dialed, conn)
		}
		return conn, err
	})
	t.Cleanup(func() { _ = c.Close(); cancel(); <-served; goleak.VerifyNone(t) })

	s, err := Upgrade(t.Context(), c.HTTP(), "/forever", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	deaf(t, dialed[0])
	deaf(t, <-kept.conns)
	read := make(chan error, 1)
	go func() { _, _, err := s.Next(); read <- err }()
	limit := time.After(3 * time.Second * 2) // what it takes is 3 s; before it was watched, 15
	for range 2 {
		select {
		case err := <-read:
			if err == nil {
				t.Fatal("a frame came over a link that is down")
			}
		case <-gone:
		case <-limit:
			t.Fatal("a stream over a link that is down goes on")
		}
	}
	again, err := Upgrade(t.Context(), c.HTTP(), "/", nil)
	if err != nil {
		t.Fatalf("the next stream: %v", err)
	}
	_ = again.Close()
	if len(dialed) != 2 {
		t.Fatalf("%d connections were made", len(dialed))
	}
}

// A server whose stdin nobody reads sees that its client is gone, whatever lies there.
func TestAClientThatIsGoneIsSeenBehindUnreadStdin(t *testing.T) {
	gone := make(chan struct{}, 1)
	c, _ := pair(t, upper(t, gone))
	s, err := Upgrade(t.Context(), c.HTTP(), "/forever", nil)
	if err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { _, err := s.Write(make([]byte, 4*Window)); wrote <- err }()
	s.mu.Lock()
	for s.credit > 0 { // all that may be under way is
		s.mu.Unlock()
		time.Sleep(time.Millisecond)
		s.mu.Lock()
	}
	s.mu.Unlock()
	select {
	case err := <-wrote:
		t.Fatalf("a write beyond the window ended with %v", err)
	default:
	}
	_ = s.Close()
	if <-wrote == nil {
		t.Error("a write to a stream that was closed ended well")
	}
	<-gone
}

// A client that sends more than it has credit for is cut off.
func TestStdinBeyondTheWindowEndsTheStream(t *testing.T) {
	gone := make(chan struct{}, 1)
	c, _ := pair(t, upper(t, gone))
	s, err := Upgrade(t.Context(), c.HTTP(), "/forever", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	go func() {
		for range 2*Window/MaxFrame + 1 {
			if s.send(FrameStdin, make([]byte, MaxFrame)) != nil {
				return
			}
		}
	}()
	<-gone
	for err == nil {
		_, _, err = s.Next()
	}
}

// What was written counts as read when the other end says so, not before.
func TestTheEndIsAcknowledgedByItsReader(t *testing.T) {
	result := make(chan bool)
	c, _ := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := Hijack(w, r)
		if err != nil {
			return
		}
		defer s.Close()
		_ = s.WriteFrame(FrameStdout, []byte("all there is"))
		_ = s.WriteFrame(FrameExit, nil)
		select {
		case <-s.Acknowledged():
			result <- true
		case <-s.Context().Done():
			result <- false
		}
	}))
	for _, acknowledges := range []bool{true, false} {
		s, err := Upgrade(t.Context(), c.HTTP(), "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		for kind := byte(0); kind != FrameExit; {
			if kind, _, err = s.Next(); err != nil {
				t.Fatal(err)
			}
		}
		if acknowledges {
			_ = s.Acknowledge()
			if !<-result {
				t.Error("an end that was acknowledged was not heard of")
			}
		}
		_ = s.Close()
		if !acknowledges && <-result {
			t.Error("an end that was only written counts as read")
		}
	}
}

// Stdin that was sent before its half-close is read to its end, though its sender left.
func TestStdinIsWholeBehindItsHalfClose(t *testing.T) {
	got := make(chan int)
	left := make(chan struct{})
	c, _ := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := Hijack(w, r)
		if err != nil {
			return
		}
		defer s.Close()
		<-left
		<-s.Context().Done()
		n, err := io.Copy(io.Discard, s)
		if err != nil {
			n = -1
		}
		got <- int(n)
	}))
	s, err := Upgrade(t.Context(), c.HTTP(), "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(make([]byte, Window)); err != nil {
		t.Fatal(err)
	}
	_ = s.CloseWrite()
	_ = s.Close()
	close(left)
	if n := <-got; n != Window {
		t.Fatalf("%d bytes came of %d", n, Window)
	}
}
