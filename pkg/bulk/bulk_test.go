package bulk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// pair serves h and returns a client of it and the number of its dials.
func pair(t *testing.T, h http.Handler) (*Client, *atomic.Int32) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { _ = Serve(ctx, l, h, slog.New(slog.DiscardHandler)); close(done) }()
	var dials atomic.Int32
	c := NewClient(func(ctx context.Context) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	})
	t.Cleanup(func() { _ = c.Close(); cancel(); <-done; goleak.VerifyNone(t) })
	return c, &dials
}

// upper answers stdin in capitals after its half-close, then says goodbye.
func upper(t *testing.T, gone chan<- struct{}) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			w.WriteHeader(http.StatusConflict)
			_, _ = io.WriteString(w, `{"message":"not running"}`)
			return
		}
		c, err := Hijack(w, r)
		if err != nil {
			return // the client is gone already; one that stays misses its answer
		}
		defer c.Close()
		if r.URL.Path == "/forever" {
			<-c.Context().Done()
			gone <- struct{}{}
			return
		}
		b, err := io.ReadAll(c)
		if err != nil {
			return
		}
		_ = c.WriteFrame(FrameStdout, bytes.ToUpper(b))
		_ = c.WriteFrame(FrameExit, []byte("{}"))
		c.WaitAcknowledged() // or the client left, before that was sent
	})
}

func TestHalfCloseLeavesTheAnswerComing(t *testing.T) {
	c, dials := pair(t, upper(t, nil))
	for range 3 {
		s, err := Upgrade(t.Context(), c.HTTP(), "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		in := strings.Repeat("stdin ", 100_000) // more than any window
		go func() { _, _ = io.WriteString(s, in); _ = s.CloseWrite() }()
		var out bytes.Buffer
		for {
			kind, p, err := s.Next()
			if err != nil {
				t.Fatal(err)
			}
			if kind == FrameExit {
				break
			}
			out.Write(p)
		}
		_ = s.Acknowledge()
		if out.String() != strings.ToUpper(in) {
			t.Fatalf("%d bytes came back of %d", out.Len(), len(in))
		}
		_ = s.Close()
	}
	if n := dials.Load(); n != 1 {
		t.Fatalf("%d connections for three streams", n)
	}
}

func TestAnUnreadStreamStopsNoOther(t *testing.T) {
	c, _ := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := Hijack(w, r)
		if err != nil {
			return
		}
		defer s.Close()
		for s.WriteFrame(FrameStdout, make([]byte, MaxFrame)) == nil && r.URL.Path == "/flood" {
		}
	}))
	flood, err := Upgrade(t.Context(), c.HTTP(), "/flood", nil) // never read
	if err != nil {
		t.Fatal(err)
	}
	defer flood.Close()
	for range 20 {
		s, err := Upgrade(t.Context(), c.HTTP(), "/one", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, p, err := s.Next(); err != nil || len(p) != MaxFrame {
			t.Fatalf("%d bytes, %v", len(p), err)
		}
		_ = s.Close()
	}
}

func TestTheServerSeesThatItsClientIsGone(t *testing.T) {
	gone := make(chan struct{}, 1)
	c, _ := pair(t, upper(t, gone))
	s, err := Upgrade(t.Context(), c.HTTP(), "/forever", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.CloseWrite() // half-closed is not gone
	select {
	case <-gone:
		t.Fatal("a half-close was taken for the end")
	case <-time.After(50 * time.Millisecond):
	}
	_ = s.Close()
	<-gone
}

func TestRefusalsKeepStatusAndWords(t *testing.T) {
	c, _ := pair(t, upper(t, nil))
	_, err := Upgrade(t.Context(), c.HTTP(), "/refuse", nil)
	var se *StatusError
	if !errors.As(err, &se) || se.Code != http.StatusConflict || se.Message != "not running" {
		t.Fatalf("got %v", err)
	}
}

func TestTheClientDialsAgainAfterABreak(t *testing.T) {
	c, dials := pair(t, upper(t, nil))
	for i := range 3 {
		s, err := Upgrade(t.Context(), c.HTTP(), "/", nil)
		if err != nil {
			t.Fatal(i, err)
		}
		_ = s.Close()
		c.mu.Lock()
		_ = c.session.Close()
		c.mu.Unlock()
	}
	if n := dials.Load(); n != 3 {
		t.Fatalf("dialed %d times", n)
	}
}

func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	_ = WriteFrame(&b, FrameStdout, []byte("hello"))
	f.Add(b.Bytes())
	f.Add([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		for fr := NewFrameReader(bytes.NewReader(in)); ; {
			_, p, err := fr.Next()
			if err != nil {
				return
			}
			if len(p) > MaxFrame {
				t.Fatalf("a frame of %d bytes", len(p))
			}
		}
	})
}
