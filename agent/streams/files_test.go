package streams

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/agent/task/faketask"
	"github.com/drover/drover/pkg/bulk"
	"github.com/drover/drover/pkg/pki"
)

// someFiles are of the task x, and all end with the same error.
type someFiles struct {
	end     error
	written string
	closed  atomic.Int32
}

func (f *someFiles) of(id, path string) error {
	switch {
	case id != "x":
		return fmt.Errorf("%s: %w", id, task.ErrNotFound)
	case path == "/none":
		return &task.FileError{Missing: true, Message: "no such file"}
	case path == "/readonly":
		return &task.FileError{Message: "it is read-only"}
	case path == "/broken":
		return errors.New("the disk is broken")
	}
	return nil
}

type sent struct {
	io.Reader
	f *someFiles
}

func (s sent) Close() error { s.f.closed.Add(1); return nil }

type ends struct{ err error }

func (e ends) Read([]byte) (int, error) { return 0, e.err }

func (f *someFiles) stream(text string) io.ReadCloser {
	if f.end != nil {
		return sent{io.MultiReader(strings.NewReader(text), ends{f.end}), f}
	}
	return sent{strings.NewReader(text), f}
}

func (f *someFiles) StatPath(_ context.Context, id, path string) (*container.PathStat, error) {
	return &container.PathStat{Name: path}, f.of(id, path)
}

func (f *someFiles) ReadPath(_ context.Context, id, path string) (io.ReadCloser, *container.PathStat, error) {
	if err := f.of(id, path); err != nil {
		return nil, nil, err
	}
	return f.stream("tar of " + path), &container.PathStat{Name: path}, nil
}

func (f *someFiles) WritePath(_ context.Context, id, path string, o task.WriteOptions, tar io.ReadCloser) error {
	b, err := io.ReadAll(tar)
	f.written = fmt.Sprintf("%s to %s, %+v", b, path, o)
	_ = tar.Close()
	return errors.Join(err, f.of(id, path))
}

func (f *someFiles) Export(_ context.Context, id string) (io.ReadCloser, error) {
	if err := f.of(id, ""); err != nil {
		return nil, err
	}
	return f.stream("all"), nil
}

func (f *someFiles) Changes(_ context.Context, id string) (io.ReadCloser, error) {
	if err := f.of(id, ""); err != nil {
		return nil, err
	}
	return f.stream("[]"), nil
}

func TestFilesOfATask(t *testing.T) {
	f := &someFiles{}
	e := faketask.New()
	h := Handler(e, e.Images, Options{Log: slog.New(slog.DiscardHandler), Files: f})
	var handling sync.WaitGroup // answers end before their handlers
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handling.Add(1)
		defer handling.Done()
		h.ServeHTTP(w, r.WithContext(pki.WithPrincipal(r.Context(), pki.Principal{Kind: pki.KindController, ID: "1"})))
	}))
	defer srv.Close()
	do := func(method, path, body string) (int, string, error) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+"/v1/tasks/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		stat, _ := base64.StdEncoding.DecodeString(resp.Header.Get(bulk.HeaderPathStat))
		return resp.StatusCode, strings.TrimSpace(string(b) + string(stat)), err
	}
	const stat = `{"name":"/a","size":0,"mode":0,"mtime":"0001-01-01T00:00:00Z","linkTarget":""}`
	for _, c := range []struct {
		method, path string
		code         int
		want         string
	}{
		{"GET", "x/archive?path=/a", 200, "tar of /a" + stat},
		{"HEAD", "x/archive?path=/a", 200, stat},
		{"HEAD", "x/archive?path=/none", 404, ""},
		{"GET", "x/archive?path=/none", 404, `{"message":"no such file"}`},
		{"GET", "y/archive?path=/a", 410, `{"message":"y: not found"}`},
		{"GET", "x/archive?path=/broken", 500, `{"message":"the disk is broken"}`},
		{"PUT", "x/archive?path=/a&chown=1", 204, ""},
		{"PUT", "x/archive?path=/readonly", 400, `{"message":"it is read-only"}`},
		{"PUT", "y/archive?path=/a", 410, `{"message":"y: not found"}`},
		{"GET", "x/export", 200, "all"},
		{"GET", "y/export", 410, `{"message":"y: not found"}`},
		{"GET", "x/changes", 200, "[]"},
	} {
		if code, got, err := do(c.method, c.path, "an archive"); code != c.code || got != c.want || err != nil {
			t.Errorf("%s %s: %d %s %v", c.method, c.path, code, got, err)
		}
	}
	if handling.Wait(); f.closed.Load() != 3 {
		t.Errorf("%d streams of 3 were closed", f.closed.Load())
	}
	if _, _, _ = do("PUT", "x/archive?path=/a&chown=1&nooverwrite=1", "an archive"); f.written != "an archive to /a, {NoOverwriteDir:true Chown:true}" {
		t.Error(f.written)
	}
	f.end = errors.New("the process died")
	for _, path := range []string{"x/archive?path=/a", "x/export"} {
		if code, got, err := do("GET", path, ""); code == 200 && err == nil {
			t.Errorf("%s broke off, and ended well: %s", path, got)
		}
	}
	if handling.Wait(); f.closed.Load() < 5 { // a request that ended before its answer is made again
		t.Errorf("%d streams of 5 were closed", f.closed.Load())
	}
	h = Handler(e, e.Images, Options{Log: slog.New(slog.DiscardHandler)})
	if code, got, _ := do("GET", "x/export", ""); code != http.StatusNotImplemented {
		t.Errorf("without files: %d %s", code, got)
	}
}
