package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/versions"
)

// Timing of the search for another controller when this host's own accepts connections and
// never answers.
const (
	doubtAfter = 250 * time.Millisecond // a first answer that takes longer is doubted
	pingWithin = 750 * time.Millisecond // how long a ping may take then
)

// transport is what requests to the fleet go through, except for streams. Docker's client
// pings before its first request. Here that request goes at once, and a ping follows only
// if it is not answered soon; the version of the API is ours, and older only once a
// controller says that it knows no newer one.
type transport struct {
	s    *Session
	next http.RoundTripper
	far  bool // there are other controllers to switch to
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.first(r)
	if err != nil {
		if c, ok := r.Context().Value(keyKey{}).(*call); ok {
			var dial *net.OpError
			c.unreached.Store(!t.s.answered.Load() && errors.As(err, &dial) && dial.Op == "dial")
		}
		return nil, err
	}
	t.s.answered.Store(true)
	older, ok := t.s.older(r, resp)
	if !ok {
		return resp, nil
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // for the connection to be reused
	_ = resp.Body.Close()
	return t.next.RoundTrip(older)
}

// first is RoundTrip that switches to another controller if nobody has answered this
// session yet, and this host's own does not answer at all. What was sent is sent again, with
// its key.
func (t *transport) first(r *http.Request) (*http.Response, error) {
	if !t.far || t.s.answered.Load() || t.s.frozen.Load() {
		return t.next.RoundTrip(r)
	}
	again, ok := rewound(r)
	if !ok { // it can be sent only once
		if !t.alive(r.Context(), doubtAfter+pingWithin) {
			t.s.frozen.Store(true)
		}
		return t.next.RoundTrip(r)
	}
	ctx, cancel := context.WithCancel(r.Context())
	type answer struct {
		*http.Response
		error
	}
	answered := make(chan answer, 1)
	go func() {
		resp, err := t.next.RoundTrip(r.WithContext(ctx)) //nolint:bodyclose // whoever receives it closes it
		answered <- answer{resp, err}
	}()
	doubt := time.NewTimer(doubtAfter)
	defer doubt.Stop()
	var a answer
	select {
	case a = <-answered:
	case <-doubt.C:
		if !t.alive(ctx, pingWithin) && r.Context().Err() == nil {
			t.s.frozen.Store(true)
			cancel()
			if a = <-answered; a.error == nil {
				_ = a.Body.Close()
			}
			return t.next.RoundTrip(again)
		}
		a = <-answered
	}
	if a.error != nil {
		cancel()
		return nil, a.error
	}
	a.Body = released{a.Body, cancel}
	return a.Response, nil
}

// alive reports whether whoever accepts connections answers a ping in time.
func (t *transport) alive(ctx context.Context, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://drover/_ping", nil)
	if err != nil {
		return false
	}
	resp, err := t.next.RoundTrip(r)
	if err != nil {
		return ctx.Err() == nil // it failed before its time: what was asked fails likewise
	}
	_ = resp.Body.Close()
	return true
}

// released is a body that cancels its request's context once it is closed.
type released struct {
	io.ReadCloser
	cancel context.CancelFunc
}

// Close implements io.Closer.
func (b released) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

// rewound returns a copy of a request that can be sent although r was, false if r's body
// can be read only once.
func rewound(r *http.Request) (*http.Request, bool) {
	c := r.Clone(r.Context())
	if r.Body == nil || r.Body == http.NoBody {
		return c, true
	}
	if r.GetBody == nil {
		return nil, false
	}
	body, err := r.GetBody()
	c.Body = body
	return c, err == nil
}

var versionInPath = regexp.MustCompile(`^/v([0-9]+\.[0-9]+)/`)

// older returns the request to send instead of r if the response says that its version of
// the API is too new: docker's clients would know from a ping. Requests from now on use
// the controller's.
func (s *Session) older(r *http.Request, resp *http.Response) (*http.Request, bool) {
	asked := versionInPath.FindStringSubmatch(r.URL.Path)
	known := resp.Header.Get("Api-Version")
	if resp.StatusCode != http.StatusBadRequest || asked == nil || known == "" || !versions.LessThan(known, asked[1]) {
		return nil, false
	}
	again, ok := rewound(r)
	if !ok {
		return nil, false
	}
	s.api.Store(&known)
	s.speak(again)
	return again, true
}

// speak puts a request to the version of the API that the fleet is known to have.
func (s *Session) speak(r *http.Request) {
	known := s.api.Load()
	if known == nil {
		return
	}
	asked := versionInPath.FindStringSubmatch(r.URL.Path)
	if asked == nil || !versions.LessThan(*known, asked[1]) {
		return
	}
	u := *r.URL
	u.Path, u.RawPath = "/v"+*known+strings.TrimPrefix(u.Path, "/v"+asked[1]), ""
	r.URL = &u
}

// Ping answers for the fleet what docker's commands want to know of it.
func (c *fleetClient) Ping(context.Context, client.PingOptions) (client.PingResult, error) {
	return client.PingResult{APIVersion: client.MaxAPIVersion, OSType: "linux"}, nil
}
