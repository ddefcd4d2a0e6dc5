package registry

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// private is a registry that knows one user and one image.
type private struct {
	*httptest.Server
	mu   sync.Mutex // guards seen
	seen []string   // credentials that came
}

const there = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

func newPrivate(t *testing.T) *private {
	p := &private{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if ok {
			p.mu.Lock()
			p.seen = append(p.seen, user+":"+password)
			p.mu.Unlock()
		}
		switch {
		case user != "me" || password != "right":
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/v2/":
		case strings.HasPrefix(r.URL.Path, "/v2/library/there/manifests/"):
			w.Header().Set("Docker-Content-Digest", there)
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			w.Header().Set("Content-Length", "2")
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *private) addr() string { return strings.TrimPrefix(p.URL, "http://") }

func TestWhatARegistryRefusesIsToldApart(t *testing.T) {
	p, other := newPrivate(t), newPrivate(t)
	r, err := New([]Mirror{{Name: "docker.io", Endpoint: p.addr(), PlainHTTP: true}, {Name: "other.lan", Endpoint: other.addr(), PlainHTTP: true},
		{Name: "gone.lan", Endpoint: "127.0.0.1:1", PlainHTTP: true}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	mine := &Credentials{Username: "me", Password: "right", ServerAddress: "https://index.docker.io/v1/"}
	if d, err := r.Resolve(ctx, "there", mine); err != nil || d.Digest.String() != there {
		t.Errorf("with credentials: %v %v", d, err)
	}
	if _, err := r.Resolve(ctx, "there", nil); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("without: %v", err)
	}
	if _, err := r.Resolve(ctx, "there", &Credentials{Username: "me", Password: "wrong"}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("with wrong ones: %v", err)
	}
	if _, err := r.Resolve(ctx, "absent", mine); !errors.Is(err, ErrNotFound) {
		t.Errorf("what isn't there: %v", err)
	}
	var gone *UnreachableError
	if _, err := r.Resolve(ctx, "gone.lan/x", nil); !errors.As(err, &gone) {
		t.Errorf("a registry that is down: %v", err)
	}
	if _, err := r.Resolve(ctx, "UPPER case", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("no reference: %v", err)
	}
	// One registry's credentials never reach another.
	if _, err := r.Resolve(ctx, "other.lan/there", mine); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("another registry: %v", err)
	}
	if len(other.seen) > 0 {
		t.Errorf("another registry was shown %v", other.seen)
	}
	if err := r.Login(ctx, "https://index.docker.io/v1/", mine); err != nil {
		t.Errorf("login: %v", err)
	}
	if err := r.Login(ctx, "other.lan", &Credentials{Username: "me", Password: "wrong"}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("login with a wrong password: %v", err)
	}
	if err := r.Login(ctx, "gone.lan", mine); !errors.As(err, &gone) {
		t.Errorf("login at a registry that is down: %v", err)
	}
}

// An image is public if nobody's credential was needed: who has one and didn't need
// it makes nothing private.
func TestWhatAnybodyMayPullIsPublic(t *testing.T) {
	closed := newPrivate(t)
	open := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, shown := r.BasicAuth(); shown {
			t.Error("a credential was shown")
		}
		w.Header().Set("Docker-Content-Digest", there)
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		w.Header().Set("Content-Length", "2")
	}))
	t.Cleanup(open.Close)
	at := strings.TrimPrefix(open.URL, "http://")
	r, err := New([]Mirror{{Name: "closed.lan", Endpoint: closed.addr(), PlainHTTP: true}, {Name: "ours.lan", Endpoint: closed.addr(), PlainHTTP: true, Username: "me", Password: "right"},
		{Name: "open.lan", Endpoint: at, PlainHTTP: true}, {Name: "logged.lan", Endpoint: at, PlainHTTP: true, Username: "me", Password: "right"}})
	if err != nil {
		t.Fatal(err)
	}
	mine := &Credentials{Username: "me", Password: "right"}
	for _, c := range []struct {
		name string
		with *Credentials
		want bool
	}{
		{"closed.lan", mine, false}, {"ours.lan", nil, false}, {"open.lan", nil, true}, {"open.lan", mine, true}, {"logged.lan", nil, true},
		{"closed.lan", &Credentials{Username: "me", Password: "right", ServerAddress: "elsewhere.lan"}, true}, // it resolved: nothing was shown
	} {
		if got := r.Public(t.Context(), c.name+"/library/there@"+there, c.with); got != c.want {
			t.Errorf("%s, pulled with %+v, is public: %v", c.name, c.with, got)
		}
	}
}

func TestMirrorsAreChecked(t *testing.T) {
	for _, m := range [][]Mirror{{{}}, {{Name: "a", Endpoint: "ftp://x"}}, {{Name: "a", Endpoint: "user@x"}}, {{Name: "a", CAFile: "/nowhere"}}, {{Name: "docker.io"}, {Name: "index.docker.io"}}} {
		if _, err := New(m); err == nil {
			t.Errorf("%+v was taken", m)
		}
	}
}
