package bulk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
)

// Upgraded streams carry frames both ways. The half-close of stdin is a frame, so a
// closed connection always means that the peer is gone. Stdin is under flow control
// (credit): the server never stops reading the connection, and so notices at once that
// its peer is gone, however long the stdin it holds stays unread. The client
// acknowledges the end of the output, since bytes that were written may still be lost in
// transit.

// Window is how much unread stdin a server buffers.
const Window = 256 << 10

// Conn is the client's end of an upgraded stream. It is safe for concurrent use, except
// that Next must not be called concurrently with itself, nor Write with itself.
type Conn struct {
	c  net.Conn
	fr *FrameReader
	up sync.Mutex // orders upstream frames; held while one is written

	mu     sync.Mutex // guards the fields below
	more   sync.Cond  // one of them changed
	credit int
	err    error // why no more stdin can be sent
}

// NewConn returns a stream over c; r holds what was already read from c.
func NewConn(c net.Conn, r io.Reader) *Conn {
	n := &Conn{c: c, fr: NewFrameReader(r), credit: Window}
	n.more.L = &n.mu
	return n
}

// StatusError is an agent's refusal.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return e.Message }

// Upgrade POSTs to path on the agent that hc reaches, and returns the upgraded stream. A
// refusal is a *StatusError. header may be nil.
func Upgrade(ctx context.Context, hc *http.Client, path string, header http.Header) (*Conn, error) {
	t, ok := hc.Transport.(*http.Transport)
	if !ok || t.DialContext == nil {
		return nil, errors.New("opening a stream: the client has no dialer")
	}
	c, err := t.DialContext(ctx, "tcp", "agent:80")
	if err != nil {
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+path, nil)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "drover")
	if err := req.Write(c); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	br := bufio.NewReaderSize(c, 32<<10)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("opening a stream: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer func() { _ = c.Close() }()
		defer func() { _ = resp.Body.Close() }()
		return nil, ReadError(resp)
	}
	return NewConn(c, br), nil
}

// ReadError turns an agent's error answer into a *StatusError.
func ReadError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var m struct{ Message string }
	if json.Unmarshal(b, &m) != nil || m.Message == "" {
		m.Message = strings.TrimSpace(string(b))
	}
	if m.Message == "" {
		m.Message = resp.Status
	}
	return &StatusError{Code: resp.StatusCode, Message: m.Message}
}

// Next returns the server's next frame; its payload is valid until the next call. Any
// error, including io.EOF, ends the connection.
func (c *Conn) Next() (kind byte, p []byte, err error) {
	for {
		kind, p, err = c.fr.Next()
		if err != nil {
			c.fail(err)
			return 0, nil, err
		}
		if kind != FrameCredit {
			return kind, p, nil
		}
		if len(p) == 4 {
			c.mu.Lock()
			c.credit += int(binary.BigEndian.Uint32(p))
			c.more.Broadcast()
			c.mu.Unlock()
		}
	}
}

// fail makes writes return err: once no frames are read, no more credit arrives.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	c.more.Broadcast()
}

// take blocks until there is credit, and takes up to n bytes of it.
func (c *Conn) take(n int) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.credit == 0 && c.err == nil {
		c.more.Wait()
	}
	if c.err != nil {
		return 0, fmt.Errorf("sending stdin: %w", c.err)
	}
	n = min(n, c.credit, MaxFrame)
	c.credit -= n
	return n, nil
}

// Write sends p as stdin. It blocks until the server has room; the server grants credit
// in frames that Next reads.
func (c *Conn) Write(p []byte) (n int, err error) {
	for n < len(p) {
		k, err := c.take(len(p) - n)
		if err == nil {
			err = c.send(FrameStdin, p[n:n+k])
		}
		if err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

func (c *Conn) send(kind byte, p []byte) error {
	c.up.Lock()
	defer c.up.Unlock()
	return WriteFrame(c.c, kind, p)
}

// CloseWrite ends stdin; frames from the server still arrive.
func (c *Conn) CloseWrite() error { return c.send(FrameStdinEnd, nil) }

// Acknowledge tells the server that its frames were received up to the last one.
func (c *Conn) Acknowledge() error { return c.send(FrameRead, nil) }

// Close closes the stream in both directions.
func (c *Conn) Close() error {
	c.fail(net.ErrClosed)
	return c.c.Close()
}

// ServerConn is the server's end of an upgraded stream: Read returns stdin until its
// half-close. Its Context ends when the peer is gone.
type ServerConn struct {
	c      net.Conn
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	acked  chan struct{}
	down   sync.Mutex // orders downstream frames; held while one is written

	mu    sync.Mutex // guards the fields below
	more  sync.Cond  // one of them changed
	stdin bytes.Buffer
	end   error // what Read returns after stdin; nil while more may come
	owed  int   // bytes read for which no credit was returned yet
}

// ErrGone reports that the peer closed the stream without ending stdin first.
var ErrGone = errors.New("the stream's other end is gone")

// Hijack answers 101 and takes over the connection. The caller closes it.
func Hijack(w http.ResponseWriter, r *http.Request) (*ServerConn, error) {
	if r.Header.Get("Upgrade") != "drover" {
		return nil, &StatusError{Code: http.StatusUpgradeRequired, Message: "this call needs Upgrade: drover"}
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("hijacking the stream: %w", err)
	}
	if _, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: drover\r\n\r\n"); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("hijacking the stream: %w", err)
	}
	return NewServerConn(context.WithoutCancel(r.Context()), c, rw.Reader), nil
}

// NewServerConn returns a stream over c; r holds what was already read from c. The
// stream ends with ctx at the latest. The caller closes it.
func NewServerConn(ctx context.Context, c net.Conn, r io.Reader) *ServerConn {
	s := &ServerConn{c: c, done: make(chan struct{}), acked: make(chan struct{})}
	s.more.L = &s.mu
	s.ctx, s.cancel = context.WithCancel(ctx)
	go s.pump(NewFrameReader(r))
	return s
}

// pump reads frames until the peer is gone; Close stops it and waits for it.
func (s *ServerConn) pump(fr *FrameReader) {
	defer close(s.done)
	defer s.cancel()
	for {
		kind, p, err := fr.Next()
		if err != nil {
			s.finish(ErrGone)
			return
		}
		switch kind {
		case FrameStdin:
			if err := s.put(p); err != nil {
				s.finish(err)
				return
			}
		case FrameStdinEnd:
			s.finish(io.EOF)
		case FrameRead:
			select {
			case <-s.acked:
			default:
				close(s.acked)
			}
		}
	}
}

func (s *ServerConn) put(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil {
		return nil // nobody reads it anymore
	}
	if s.stdin.Len()+len(p) > Window {
		return fmt.Errorf("the peer sent more than the %d bytes of stdin that it has credit for", Window)
	}
	s.stdin.Write(p)
	s.more.Broadcast()
	return nil
}

// finish makes Read return err after what is left of stdin, unless it is to return an
// error already.
func (s *ServerConn) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end == nil {
		s.end = err
	}
	s.more.Broadcast()
}

// Read returns stdin.
func (s *ServerConn) Read(p []byte) (int, error) {
	s.mu.Lock()
	for s.stdin.Len() == 0 && s.end == nil {
		s.more.Wait()
	}
	n, _ := s.stdin.Read(p)
	err := s.end
	if n > 0 {
		err = nil
	}
	grant := 0
	if s.owed += n; s.owed >= Window/2 {
		grant, s.owed = s.owed, 0
	}
	s.mu.Unlock()
	if grant > 0 {
		_ = s.WriteFrame(FrameCredit, binary.BigEndian.AppendUint32(nil, uint32(grant))) // if it can't be written, no more stdin arrives
	}
	return n, err
}

// WriteFrame sends p as one or more frames of kind.
func (s *ServerConn) WriteFrame(kind byte, p []byte) error {
	s.down.Lock()
	defer s.down.Unlock()
	return WriteFrame(s.c, kind, p)
}

// Acknowledged returns a channel that is closed once the peer has received all frames.
func (s *ServerConn) Acknowledged() <-chan struct{} { return s.acked }

// WaitAcknowledged blocks until the peer has received all frames or is gone, and reports
// whether it received them: a peer may acknowledge and leave at once.
func (s *ServerConn) WaitAcknowledged() bool {
	select {
	case <-s.acked:
		return true
	case <-s.ctx.Done():
	}
	select {
	case <-s.acked:
		return true
	default:
		return false
	}
}

// Context ends when the peer is gone or Close is called.
func (s *ServerConn) Context() context.Context { return s.ctx }

// Close closes the stream and waits for pump.
func (s *ServerConn) Close() error {
	s.finish(net.ErrClosed)
	err := s.c.Close()
	_ = s.c.SetReadDeadline(aLongTimeAgo)
	<-s.done
	return err
}

// FrameReader reads frames as WriteFrame writes them.
type FrameReader struct {
	r   *bufio.Reader
	buf []byte
}

// NewFrameReader reads frames from r.
func NewFrameReader(r io.Reader) *FrameReader {
	return &FrameReader{r: bufio.NewReaderSize(r, 32<<10)}
}

// Next returns the next frame; its payload is valid until the next call. It returns
// io.EOF only between frames.
func (f *FrameReader) Next() (kind byte, p []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("frame cut off in its header: %w", err)
		}
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[4:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes is over the limit of %d", n, MaxFrame)
	}
	if int(n) > cap(f.buf) {
		f.buf = make([]byte, max(int(n), 4<<10))
	}
	p = f.buf[:n]
	if _, err := io.ReadFull(f.r, p); err != nil {
		return 0, nil, fmt.Errorf("frame cut off: %w", io.ErrUnexpectedEOF)
	}
	return head[0], p, nil
}
