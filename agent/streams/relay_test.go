package streams

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/life"
	"github.com/drover/drover/pkg/pki"
)

// attachable returns the same stream for every attach.
type attachable struct {
	task.Streams
	st func() task.Stream
}

func (a attachable) Attach(context.Context, string, task.AttachOptions) (task.Stream, error) {
	return a.st(), nil
}

// serve answers a controller over tasks and images, and returns a client of it.
func serve(t *testing.T, tasks task.Streams, images Images, o Options) *http.Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Log = slog.New(slog.DiscardHandler)
	h := Handler(tasks, images, o)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(pki.WithPrincipal(r.Context(), pki.Principal{Kind: pki.KindController})))
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	}}}
}

// stuck is an attach whose stdin nobody reads and whose container writes nothing.
type stuck struct {
	writing chan struct{}
	gone    chan struct{}
	once    sync.Once
}

func (s *stuck) Read([]byte) (int, error) { <-s.gone; return 0, io.ErrClosedPipe }

// Write waits as one to a shim's full socket does, until Close.
func (s *stuck) Write([]byte) (int, error) {
	s.writing <- struct{}{}
	<-s.gone
	return 0, io.ErrClosedPipe
}
func (s *stuck) CloseWrite() error { return nil }
func (s *stuck) Close() error      { s.once.Do(func() { close(s.gone) }); return nil }

// A client that is killed leaves nothing behind, even if the container reads none of what
// it has sent.
func TestAKilledClientLeavesNothingBehindUnreadStdin(t *testing.T) {
	closed := make(chan *stuck, 1)
	hc := serve(t, attachable{st: func() task.Stream {
		s := &stuck{writing: make(chan struct{}, 1), gone: make(chan struct{})}
		closed <- s
		return s
	}}, nil, Options{})
	before := goleak.IgnoreCurrent()
	for range 20 {
		c, err := bulk.Upgrade(t.Context(), hc, "/v1/tasks/x/attach?stdin=1&stdout=1&stream=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, bulk.Window)); err != nil {
			t.Fatal(err)
		}
		s := <-closed
		<-s.writing
		_ = c.Close()
		<-s.gone
	}
	goleak.VerifyNone(t, before)
}

// said is an attach with an output and its end.
type said struct{ io.Reader }

func (said) Write(p []byte) (int, error) { return len(p), nil }
func (said) CloseWrite() error           { return nil }
func (said) Close() error                { return nil }

// leaving receives how a reader left.
type leaving chan bool

func (leaving) Of(life.Life)    {}
func (l leaving) Left(end bool) { l <- end }

// A log counts as read once the reader acknowledges its end: what is written to a
// connection may never arrive.
func TestOutputIsReadWhenItsReaderSaysSo(t *testing.T) {
	left := make(chan bool, 1)
	hc := serve(t, attachable{st: func() task.Stream {
		r, w := io.Pipe()
		go func() {
			_ = bulk.WriteFrame(w, bulk.FrameStdout, []byte("hello"))
			_ = bulk.WriteFrame(w, bulk.FrameExit, []byte("{}"))
			_ = w.Close()
		}()
		return said{r}
	}}, nil, Options{Reading: func(string) Reader { return leaving(left) }})
	for _, c := range []struct {
		name   string
		frames int
		ack    bool
	}{{"gone before the end", 0, false}, {"gone with the end on its way", 2, false}, {"gone with the end", 2, true}} {
		conn, err := bulk.Upgrade(t.Context(), hc, "/v1/tasks/x/attach?stdout=1&stream=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		for range c.frames {
			if _, _, err := conn.Next(); err != nil {
				t.Fatal(err)
			}
		}
		if c.ack {
			_ = conn.Acknowledge()
		}
		_ = conn.Close()
		if got := <-left; got != c.ack {
			t.Errorf("%s: read to the end: %v", c.name, got)
		}
	}
}
