package bulk

import (
	"bufio"
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

// Upgraded streams frame what goes up: [len32 payload], where length 0 is a
// half-close. So a closed yamux stream always means that the peer is gone, which
// the transport's own half-close could not be told from.

// Conn is the client's end of an upgraded stream. Read gives the agent's frames
// as they are; Write sends stdin. Read and Write may overlap.
type Conn struct {
	c  net.Conn
	br *bufio.Reader
	mu sync.Mutex // guards the order of frames going up
}

// StatusError is an agent's refusal.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return e.Message }

// Upgrade POSTs to path on the agent that hc reaches and gives the stream that
// comes of it. A refusal is a *StatusError. header may be nil.
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
	return &Conn{c: c, br: br}, nil
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

func (c *Conn) Read(p []byte) (int, error) { return c.br.Read(p) }

// Write sends p as stdin.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := 0; n < len(p); {
		k := min(len(p)-n, MaxFrame)
		b := make([]byte, 4+k)
		binary.BigEndian.PutUint32(b, uint32(k))
		copy(b[4:], p[n:n+k])
		if _, err := c.c.Write(b); err != nil {
			return n, err
		}
		n += k
	}
	return len(p), nil
}

// CloseWrite ends stdin; the agent's frames still come.
func (c *Conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.c.Write(make([]byte, 4))
	return err
}

// Close ends the stream both ways.
func (c *Conn) Close() error { return c.c.Close() }

// ServerConn is the agent's end: Read gives stdin until its half-close, Write
// sends frames. Its Context ends when the peer is gone.
type ServerConn struct {
	c      net.Conn
	pr     *io.PipeReader
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
}

// ErrGone: the peer closed the stream without ending stdin first.
var ErrGone = errors.New("the stream's other end is gone")

// Hijack answers 101 and takes the connection over. The caller closes it.
func Hijack(w http.ResponseWriter, r *http.Request) (*ServerConn, error) {
	if r.Header.Get("Upgrade") != "drover" {
		return nil, &StatusError{Code: http.StatusUpgradeRequired, Message: "this call needs Upgrade: drover"}
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("taking the stream over: %w", err)
	}
	if _, err := io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: drover\r\n\r\n"); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("taking the stream over: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	pr, pw := io.Pipe()
	s := &ServerConn{c: c, pr: pr, ctx: ctx, cancel: cancel, done: make(chan struct{})}
	go s.pump(rw.Reader, pw)
	return s, nil
}

// pump reads frames until the peer is gone; Close ends and joins it.
func (s *ServerConn) pump(r *bufio.Reader, pw *io.PipeWriter) {
	defer close(s.done)
	defer s.cancel()
	var head [4]byte
	buf := make([]byte, MaxFrame)
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			_ = pw.CloseWithError(ErrGone)
			return
		}
		n := binary.BigEndian.Uint32(head[:])
		if n > MaxFrame {
			_ = pw.CloseWithError(fmt.Errorf("a stdin frame of %d bytes is over the limit of %d", n, MaxFrame))
			return
		}
		if n == 0 {
			_ = pw.Close()
			continue
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			_ = pw.CloseWithError(ErrGone)
			return
		}
		_, _ = pw.Write(buf[:n]) // a reader that stopped reading drops stdin, not the stream
	}
}

func (s *ServerConn) Read(p []byte) (int, error)  { return s.pr.Read(p) }
func (s *ServerConn) Write(p []byte) (int, error) { return s.c.Write(p) }

// Context ends when the peer is gone or Close was called.
func (s *ServerConn) Context() context.Context { return s.ctx }

// Close ends the stream and waits for its reader.
func (s *ServerConn) Close() error {
	_ = s.pr.Close()
	err := s.c.Close()
	_ = s.c.SetReadDeadline(aLongTimeAgo)
	<-s.done
	return err
}

// FrameReader reads frames as WriteFrame writes them.
type FrameReader struct{ r *bufio.Reader }

// NewFrameReader reads frames from r.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{bufio.NewReaderSize(r, 32<<10)} }

// Next gives the next frame. io.EOF comes between frames only.
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
	p = make([]byte, n)
	if _, err := io.ReadFull(f.r, p); err != nil {
		return 0, nil, fmt.Errorf("frame cut off: %w", io.ErrUnexpectedEOF)
	}
	return head[0], p, nil
}
