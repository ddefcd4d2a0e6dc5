package controller

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// A request's body has to come at a pace: bodyGrace for its beginning, and bodyRate
// bytes a second from then on. (Variables for tests.) Who is slower than that is holding a connection.
var (
	bodyGrace = 10 * time.Second
	bodyRate  = 8 << 10
)

// pacedBody moves its connection's read deadline along as bytes come in.
type pacedBody struct {
	io.ReadCloser
	rc    *http.ResponseController
	began time.Time
	n     int64
}

// pace holds a request to the pace above. net/http reads what a handler left of
// a body: the deadline is there from the start, so that this ends too. Taking the
// connection over, or reading the body to its end, lifts it.
func pace(w http.ResponseWriter, r *http.Request) {
	if r.Body == nil || r.ContentLength == 0 {
		return
	}
	b := &pacedBody{ReadCloser: r.Body, rc: http.NewResponseController(w), began: time.Now()}
	b.extend()
	r.Body = b
}

func (b *pacedBody) extend() {
	left := bodyGrace + time.Duration(b.n)*time.Second/time.Duration(bodyRate)
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
