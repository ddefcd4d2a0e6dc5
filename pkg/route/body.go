package route

import (
	"fmt"
	"io"
	"net/http"
)

// Body is what a route's requests carry. The zero value is a bounded body of no bytes.
type Body struct {
	// Max is how many bytes it may have. For a streamed body, 0 is no limit.
	Max int64
	// Streamed: it is handed on as it comes, and never held whole. So it can be read
	// once: a request whose body was begun is not asked again at another controller.
	Streamed bool
}

// Bounded is a body that is held in memory, of at most n bytes.
func Bounded(n int64) Body { return Body{Max: n} }

// Streamed is a body that passes through, of at most n bytes; 0 is no limit.
func Streamed(n int64) Body { return Body{Max: n, Streamed: true} }

// Limit returns the body of a request, which fails with *http.MaxBytesError when it
// turns out to be longer than b allows.
func (b Body) Limit(w http.ResponseWriter, body io.ReadCloser) io.ReadCloser {
	if b.Streamed && b.Max == 0 {
		return body
	}
	return http.MaxBytesReader(w, body, b.Max)
}

// String is the body as people write it.
func (b Body) String() string {
	switch {
	case b.Streamed && b.Max == 0:
		return "streamed"
	case b.Streamed:
		return fmt.Sprintf("streamed, %d bytes at most", b.Max)
	}
	return fmt.Sprintf("%d bytes at most", b.Max)
}
