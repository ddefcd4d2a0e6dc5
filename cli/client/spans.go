package client

import (
	"bufio"
	"net"
	"net/http"

	"github.com/drover/drover/pkg/trace"
)

// Spans returns where a command's spans go. On this host's own socket they are handed over
// without waiting for the answer: what was written there is read, also once the command has
// ended.
func (s *Session) Spans() (trace.Sink, error) {
	connect, err := s.dialer(&s.frozen)
	if err != nil {
		return nil, err
	}
	return &trace.Remote{HTTP: &http.Client{Transport: oneWay(connect)}, URL: func() string { return "http://drover" }}, nil
}

// oneWay is a transport with a connection for each request. It reports success once a
// request is written to a unix socket. A connection to another host could lose it when it is
// closed, and has to be waited for.
type oneWay dialFunc

// RoundTrip implements http.RoundTripper.
func (dial oneWay) RoundTrip(r *http.Request) (*http.Response, error) {
	conn, err := dial(r.Context(), "", "")
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if end, ok := r.Context().Deadline(); ok {
		_ = conn.SetDeadline(end) // refused only if it is closed, which the write reports
	}
	r = r.Clone(r.Context())
	r.Close = true
	if err := r.Write(conn); err != nil {
		return nil, err
	}
	answer := &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}
	if _, local := conn.(*net.UnixConn); local {
		return answer, nil
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	answer.StatusCode, answer.Status = resp.StatusCode, resp.Status
	return answer, nil
}
