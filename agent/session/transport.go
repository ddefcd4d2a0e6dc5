package session

import (
	"bufio"
	"encoding/binary"
	"io"
	"net/http"
	"time"
)

// transport sends each message of a session in one piece, and counts every byte of a
// response as a sign of life: a large message over a slow link is not silence.
type transport struct {
	http.RoundTripper
	alive *time.Timer
}

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.WithContext(r.Context())
	r.Body = &envelopes{ReadCloser: r.Body}
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = buffered{bufio.NewReaderSize(heardBody{resp.Body, t.alive}, readBuffer), resp.Body}
	}
	return resp, err
}

// prefixSize is the length of an envelope's prefix in connect's streaming protocol: a
// byte of flags, and the length of the message that follows.
const prefixSize = 5

// envelopes is a request's body that never ends a Read between a prefix and its message.
// The client writes these one by one, and HTTP/2 sends what it reads at once: as two
// frames, each of them a TLS record and a system call on both sides.
type envelopes struct {
	io.ReadCloser
	prefix [prefixSize]byte
	have   int    // bytes of prefix
	left   uint32 // bytes of the current message
}

// Read implements io.Reader.
func (e *envelopes) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	if e.follow(p[:n]) && n < len(p) && err == nil {
		var m int
		m, err = e.ReadCloser.Read(p[n:])
		e.follow(p[n : n+m])
		n += m
	}
	return n, err
}

// follow advances over p, and reports whether it ends with a prefix whose message follows.
func (e *envelopes) follow(p []byte) (between bool) {
	for len(p) > 0 {
		if e.left > 0 {
			k := min(e.left, uint32(len(p)))
			e.left, p, between = e.left-k, p[k:], false
			continue
		}
		k := copy(e.prefix[e.have:], p)
		if e.have, p = e.have+k, p[k:]; e.have == prefixSize {
			e.have, e.left = 0, binary.BigEndian.Uint32(e.prefix[1:])
			between = e.left > 0
		}
	}
	return between
}

// readBuffer is in bytes: most messages are shorter.
const readBuffer = 2 << 10

// buffered reads a message's prefix and its content at once: HTTP/2 accounts for each
// read of a body.
type buffered struct {
	io.Reader
	io.Closer
}

type heardBody struct {
	io.Reader
	alive *time.Timer
}

func (b heardBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if n > 0 {
		b.alive.Reset(Silence)
	}
	return n, err
}
