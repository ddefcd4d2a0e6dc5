package gateway

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// Pace is what a request's body has to keep. Who is slower is holding a connection.
type Pace struct {
	Grace time.Duration // for its beginning
	Rate  int           // bytes a second from then on
}

// DefaultPace is that of a bad link.
var DefaultPace = Pace{Grace: 10 * time.Second, Rate: 8 << 10}

// pacedBody moves its connection's read deadline along as bytes come in.
type pacedBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	pace  Pace
	began time.Time
	n     int64
}

// hold has a request keep a pace. net/http reads what a handler left of
// a body: the deadline is there from the start, so that this ends too. Taking the
// connection over, or reading the body to its end, lifts it.
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
	_ = b.rc.SetReadDeadline(b.began.Add(left)) // a connection without deadlines has gone
}

// Read implements io.Reader.
func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	if errors.Is(err, io.EOF) {
		_ = b.rc.SetReadDeadline(time.Time{}) // while it is answered, only the client's leaving is of interest
	} else if err == nil {
		b.extend()
	}
	return n, err // net/http still reads on after other errors: the deadline stays
}
