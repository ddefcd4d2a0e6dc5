package peer

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/drover/drover/pkg/route"
)

// payload is the body of a request that is forwarded: held, so that it can be sent
// again, or streamed, so that it can be sent once.
type payload struct {
	held   []byte
	stream io.Reader // nil: held is the whole of it
	// interrupt ends a read of stream that waits for the caller.
	interrupt func()
	last      *lent
}

// newPayload reads a bounded body whole. A streamed one it leaves to who sends it.
func newPayload(w http.ResponseWriter, r *http.Request, b route.Body) (*payload, error) {
	body := b.Limit(w, r.Body)
	if !b.Streamed {
		held, err := io.ReadAll(body)
		return &payload{held: held}, err
	}
	if b.Max > 0 && r.ContentLength > b.Max {
		return nil, &http.MaxBytesError{Limit: b.Max}
	}
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex() // an answer may begin before the body ends; HTTP/2 is so anyway
	return &payload{stream: body, interrupt: func() { _ = rc.SetReadDeadline(time.Now()) }}, nil
}

// open returns the body for one more try; the try before must be over.
func (p *payload) open() io.ReadCloser {
	if p.stream == nil {
		return io.NopCloser(bytes.NewReader(p.held))
	}
	p.last = &lent{from: p.stream, interrupt: p.interrupt}
	return p.last
}

// attach makes the body that of a request to another controller, for one more try, and
// returns the lane that such requests take.
func (p *payload) attach(req *http.Request, length int64) lane {
	if p.stream != nil {
		req.Body, req.ContentLength = p.open(), length
		return laneStream
	}
	req.Body, req.ContentLength = p.open(), int64(len(p.held))
	if len(p.held) == 0 {
		req.Body = http.NoBody
	}
	req.GetBody = func() (io.ReadCloser, error) { return p.open(), nil }
	return laneForward
}

// end has the last try read no more. again reports whether there may be another one,
// and err is what reading from the caller failed with.
func (p *payload) end() (again bool, err error) {
	if p.last == nil {
		return true, nil
	}
	_ = p.last.Close()
	p.last.mu.Lock()
	defer p.last.mu.Unlock()
	return !p.last.begun, p.last.err
}

// lent is a streamed body in the hands of a try. A transport may hold on to it for
// longer than the try takes, and then gets nothing any more.
type lent struct {
	from      io.Reader
	interrupt func()

	mu     sync.Mutex // guards the fields below
	begun  bool       // something was read, or is being
	ended  bool       // there is nothing more to read
	closed bool
	err    error // of the caller's side
}

var errTryOver = errors.New("this try to send a request is over")

// Read implements io.Reader.
func (l *lent) Read(b []byte) (int, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return 0, errTryOver
	}
	l.begun = true
	l.mu.Unlock()
	n, err := l.from.Read(b)
	if err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ended = true
		if !errors.Is(err, io.EOF) && !l.closed {
			l.err = err
		}
	}
	return n, err
}

// Close implements io.Closer. A read that waits for the caller returns.
func (l *lent) Close() error {
	l.mu.Lock()
	over := l.closed || l.ended || !l.begun
	l.closed = true
	l.mu.Unlock()
	if !over {
		l.interrupt()
	}
	return nil
}
