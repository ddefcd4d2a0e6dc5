package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/client"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/drover/drover/pkg/api/wire"
)

// Session is the state of one command's communication with a fleet: the target, what is
// sent with each request, and what responses said. Safe for concurrent use.
type Session struct {
	Target
	On   []string         // placement constraints for what is created
	Warn func(msg string) // receives warnings of the fleet
	Time func() time.Time // nil: the clock

	seen     atomic.Uint64          // the highest raft index of a response
	answered atomic.Bool            // there was a response
	frozen   atomic.Bool            // this host's controller accepts connections and answers nothing
	api      atomic.Pointer[string] // the fleet's version of docker's API, nil while ours is known to be no newer
	stale    sync.Once              // warns once
}

// Now is the time from which ages are computed.
func (s *Session) Now() time.Time {
	if s.Time != nil {
		return s.Time()
	}
	return time.Now()
}

// HTTP returns a client whose requests to http://drover/… reach the fleet.
func (s *Session) HTTP() (*http.Client, error) {
	connect, err := s.dialer(&s.frozen)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &marked{s, s.transport(connect)}}, nil
}

func (s *Session) transport(connect dialFunc) *transport {
	return &transport{s: s, next: &http.Transport{DialContext: connect, DisableCompression: true}, far: s.elsewhere() != nil}
}

// marked is a transport that passes requests and responses through the session.
type marked struct {
	s    *Session
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (m *marked) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	m.s.mark(r)
	propagation.TraceContext{}.Inject(r.Context(), propagation.HeaderCarrier(r.Header))
	resp, err := m.next.RoundTrip(r)
	if err == nil {
		m.s.note(resp)
	}
	return resp, err
}

// Docker returns docker's own client, connected to the fleet. Its requests are spans of
// tp.
func (s *Session) Docker(tp trace.TracerProvider) (client.APIClient, error) {
	connect, err := s.dialer(&s.frozen)
	if err != nil {
		return nil, err
	}
	otel.SetTextMapPropagator(propagation.TraceContext{})
	mark := func(r *http.Request) error { s.mark(r); s.speak(r); return nil }
	var both [2]client.APIClient
	for i, t := range []http.RoundTripper{s.transport(connect), &http.Transport{DialContext: connect}} {
		both[i], err = client.New(client.WithHost(s.Host), client.WithHTTPClient(&http.Client{Transport: t}), client.WithAPIVersion(client.MaxAPIVersion),
			client.WithHTTPRequestHook(mark), client.WithHTTPResponseHook(s.note), client.WithTraceProvider(tp),
			client.WithTraceOptions(otelhttp.WithSpanNameFormatter(spanName)), client.WithUserAgent("drover"))
		if err != nil {
			return nil, fmt.Errorf("preparing the client for %s: %w", s.Host, err)
		}
	}
	return &fleetClient{APIClient: &streaming{both[0], both[1]}, s: s}, nil
}

// streaming is docker's client with another one for streams. It dials for these as its
// transport would, if that is net/http's own and not ours.
type streaming struct {
	client.APIClient
	streams client.APIClient
}

func (c *streaming) ContainerAttach(ctx context.Context, id string, o client.ContainerAttachOptions) (client.ContainerAttachResult, error) {
	return c.streams.ContainerAttach(ctx, id, o)
}

func (c *streaming) ExecAttach(ctx context.Context, id string, o client.ExecAttachOptions) (client.ExecAttachResult, error) {
	return c.streams.ExecAttach(ctx, id, o)
}

var longID = regexp.MustCompile(`[0-9a-f]{64}`)

// spanName names a request, with ids as users know them.
func spanName(_ string, r *http.Request) string {
	return r.Method + " " + longID.ReplaceAllStringFunc(r.URL.Path, func(id string) string { return id[:12] })
}

// note records what the headers of a response say.
func (s *Session) note(r *http.Response) {
	if c, ok := r.Request.Context().Value(keyKey{}).(*call); ok && r.StatusCode == http.StatusServiceUnavailable && r.Header.Get("Retry-After") != "" {
		c.later.Store(r.Header.Get(wire.HeaderUndecided) != "" || s.seen.Load() > 0)
	}
	if taken, ok := r.Request.Context().Value(underway{}).(*atomic.Bool); ok && r.StatusCode == http.StatusOK {
		taken.Store(true)
	}
	i, err := strconv.ParseUint(r.Header.Get(wire.HeaderIndex), 10, 64)
	for err == nil {
		old := s.seen.Load()
		if i <= old || s.seen.CompareAndSwap(old, i) {
			break
		}
	}
	if w := r.Header.Get(wire.HeaderWarning); w != "" {
		s.warn(w)
	}
	if r.Header.Get(wire.HeaderStale) != "" {
		s.stale.Do(func() { s.warn("the controllers have no leader: this is what the one that answered knew last") })
	}
}

func (s *Session) warn(msg string) {
	if s.Warn != nil {
		s.Warn(msg)
	}
}

// mark gives every change a key, so that a retry is not done twice, and sends what this
// command has seen, which node it is on, and that it reads frames.
func (s *Session) mark(r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		k := key()
		if c, ok := r.Context().Value(keyKey{}).(*call); ok {
			k = c.key
		}
		r.Header.Set(wire.HeaderKey, k)
	}
	if i := s.seen.Load(); i > 0 {
		r.Header.Set(wire.HeaderIndex, strconv.FormatUint(i, 10))
	}
	if i, ok := r.Context().Value(afterKey{}).(uint64); ok {
		r.Header.Set(wire.HeaderAfter, strconv.FormatUint(i, 10))
	}
	if on := s.on(r.Context()); len(on) > 0 {
		r.Header.Set(wire.HeaderOn, strings.Join(on, ","))
	}
	if s.contact != "" {
		r.Header.Set(wire.HeaderContact, s.contact)
	}
	if from, ok := r.Context().Value(fromKey{}).(string); ok && from != "" {
		r.Header.Set(wire.HeaderFrom, from)
	}
	if strings.HasSuffix(r.URL.Path, "/attach") || strings.HasSuffix(r.URL.Path, "/logs") || strings.Contains(r.URL.Path, "/exec/") && strings.HasSuffix(r.URL.Path, "/start") {
		r.Header.Set(wire.HeaderFrames, "1")
	}
}

func key() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
