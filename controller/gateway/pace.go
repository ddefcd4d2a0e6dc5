package gateway

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// Pace is the minimum pace of a request's body. Slower clients are just holding a
// connection.
type Pace struct {
	Grace time.Duration // before the rate applies
	Rate  int           // bytes a second from then on
}

// DefaultPace suits a bad link.
var DefaultPace = Pace{Grace: 10 * time.Second, Rate: 8 << 10}

// pacedBody extends its connection's read deadline as bytes arrive.
type pacedBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	pace  Pace
	began time.Time
	n     int64
}

// hold enforces a pace on a request's body. The deadline is set from the start,
// since net/http reads whatever a handler leaves of a body. It is lifted by
// hijacking the connection, or by reading the body to its end.
func (p Pace) hold(w http.ResponseWriter, r *http.Request) {
	if r.Body == nil || r.ContentLength == 0 {
		return
	}
	b := &pacedBody{ReadCloser: r.Body, rc: http.NewResponseController(w), pace: p, began: time.Now()}
	b.extend()
	r.Body = b
}

func (b *pacedBody) extend() {
	left := b.pace.Grace + time.Duration(b.n)*time.Second/time.Duration(b.pace.Rate)
	_ = b.rc.SetReadDeadline(b.began.Add(left)) // fails only if the connection is closed
}

// Read implements io.Reader.
func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	if errors.Is(err, io.EOF) {
		_ = b.rc.SetReadDeadline(time.Time{}) // from now on reads only detect that the client leaves
	} else if err == nil {
		b.extend()
	}
	return n, err // net/http still reads after other errors: keep the deadline
}
