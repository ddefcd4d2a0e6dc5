package streams

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/drover/drover/agent/task/faketask"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/pki"
)

// disk has the bytes of volumes.
type disk struct {
	has    string // of every volume, where it is read
	fail   error  // comes after them
	early  error  // comes before them
	got    string // of the one that came
	room   int64
	missed error // why it was not taken
}

func (d *disk) Size(context.Context, string) (int64, error) { return int64(len(d.has)), nil }

func (d *disk) Export(_ context.Context, _ string, begin func(int64) io.Writer) error {
	if d.early != nil {
		return d.early
	}
	if _, err := io.WriteString(begin(int64(len(d.has))), d.has); err != nil {
		return err
	}
	return d.fail
}

func (d *disk) Import(_ context.Context, _ string, room int64, r io.Reader, progress func(int64)) error {
	b, err := io.ReadAll(r)
	if d.missed = err; err != nil {
		return err
	}
	d.got, d.room = string(b), room
	progress(int64(len(b)))
	return nil
}

// diskOf serves a disk to a caller.
func diskOf(t *testing.T, d *disk, kind, granted string, change ...func(http.Handler) http.Handler) *httptest.Server {
	t.Helper()
	e := faketask.New()
	h := Handler(e, e.Images, Options{Log: slog.New(slog.DiscardHandler), Volumes: d,
		Granted: func(*http.Request) (string, error) {
			if granted == "" {
				return "", errors.New("no grant")
			}
			return granted, nil
		},
		Peer: func(addr string, grant []byte) *http.Client {
			if string(grant) != "granted" {
				t.Errorf("shown is %q", grant)
			}
			return &http.Client{Transport: to(addr)}
		}})
	for _, f := range change {
		h = f(h)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(pki.WithPrincipal(r.Context(), pki.Principal{Kind: kind, ID: "1"})))
	}))
	t.Cleanup(srv.Close)
	return srv
}

// to sends requests to an address, whatever they say.
type to string

func (a to) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host = string(a)
	return http.DefaultTransport.RoundTrip(r)
}

// fetched has one node copy a volume of another, and returns what it says last.
func fetched(t *testing.T, from *httptest.Server, d *disk) (last bulk.VolumeLine) {
	t.Helper()
	body, err := json.Marshal(bulk.VolumeFetch{ID: "abc", Addr: strings.TrimPrefix(from.URL, "http://"), Grant: []byte("granted")})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(diskOf(t, d, pki.KindController, "").URL+"/v1/volumes/copy/fetch", "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		last = bulk.VolumeLine{}
		if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
			t.Error(err)
		}
	}
	return last
}

func TestAVolumeIsFetched(t *testing.T) {
	all := strings.Repeat("bytes of a volume ", 100_000)
	for what, c := range map[string]struct {
		from    disk
		granted string
		change  func(http.Handler) http.Handler
		err     string // "": none
	}{
		"as it should be":    {disk{has: all}, "volume:abc", nil, ""},
		"empty":              {disk{}, "volume:abc", nil, ""},
		"without a grant":    {disk{has: all}, "", nil, "403 Forbidden"},
		"by another's grant": {disk{has: all}, "volume:abd", nil, "the grant is for something else"},
		"by an image's":      {disk{has: all}, "sha256:abc", nil, "the grant is for something else"},
		"that can't be read": {disk{early: errors.New("a bad disk")}, "volume:abc", nil, "a bad disk"},
		"half of it":         {disk{has: all, fail: errors.New("a bad disk")}, "volume:abc", nil, "unexpected EOF"},
		"with other bytes": {disk{has: all}, "volume:abc", func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(&flipping{ResponseWriter: w}, r) })
		}, errSum.Error()},
		"without a sum": {disk{has: all}, "volume:abc", func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set(bulk.HeaderRoom, "3")
				_, _ = io.WriteString(w, "all")
			})
		}, errSum.Error()},
		"of an odd size": {disk{has: all}, "volume:abc", func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set(bulk.HeaderRoom, "-1") })
		}, "does not say how large the volume is"},
	} {
		var change []func(http.Handler) http.Handler
		if c.change != nil {
			change = append(change, c.change)
		}
		d := &disk{}
		last := fetched(t, diskOf(t, &c.from, pki.KindNode, c.granted, change...), d)
		if c.err == "" {
			if !last.Done || last.Error != "" || d.got != c.from.has || d.room != int64(len(c.from.has)) {
				t.Errorf("%s: %+v; %d bytes came, in %d", what, last, len(d.got), d.room)
			}
			continue
		}
		if last.Done || !strings.Contains(last.Error, c.err) || d.got != "" {
			t.Errorf("%s: %+v, want %q; %d bytes were taken", what, last, c.err, len(d.got))
		}
	}
}

// flipping is a connection that changes a bit of a body.
type flipping struct {
	http.ResponseWriter
	done bool
}

func (f *flipping) Write(p []byte) (int, error) {
	if !f.done && len(p) > 0 {
		f.done = true
		p = append([]byte{p[0] ^ 1}, p[1:]...)
	}
	return f.ResponseWriter.Write(p)
}
