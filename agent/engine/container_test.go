package engine_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/deploy/images"
	"github.com/drover/drover/pkg/bulk"
)

// layered pulls busybox with one more layer of these files into w's engine.
func (w *world) layered(e task.Engine, tag string, files ...tar.Header) (ref, digest string) {
	w.t.Helper()
	fatal := func(err error) {
		if err != nil {
			w.t.Helper()
			w.t.Fatal(err)
		}
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range files {
		body := h.PAXRecords["body"]
		h.PAXRecords, h.Size, h.Mode = nil, int64(len(body)), 0o644
		fatal(tw.WriteHeader(&h))
		_, err := tw.Write([]byte(body))
		fatal(err)
	}
	fatal(tw.Close())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	fatal(err)
	var img v1.Image
	img, err = images.Busybox(w.t.Context())
	fatal(err)
	img, err = mutate.AppendLayers(img, layer)
	fatal(err)
	host, _, _ := strings.Cut(w.ref, "/")
	r, err := name.ParseReference(host + "/" + tag)
	fatal(err)
	fatal(remote.Write(r, img))
	h, err := img.Digest()
	fatal(err)
	_, err = e.Pull(w.t.Context(), r.String(), h.String(), nil, func(task.Progress) {})
	fatal(err)
	return r.String(), h.String()
}

// text is a regular file for layered.
func text(name, body string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, PAXRecords: map[string]string{"body": body}}
}

// made prepares a container, removed with the test.
func (w *world) made(ctx context.Context, e task.Engine, ref, digest string, change func(*container.CreateRequest), cmd ...string) (string, error) {
	w.t.Helper()
	var raw [32]byte
	for i := range raw {
		raw[i] = byte(rand.Uint32())
	}
	id := hex.EncodeToString(raw[:])
	c := container.CreateRequest{Config: &container.Config{Image: ref, Cmd: cmd}, HostConfig: &container.HostConfig{}}
	if change != nil {
		change(&c)
	}
	w.t.Cleanup(func() {
		_ = e.Signal(context.Background(), id, "SIGKILL")
		if err := e.Remove(context.Background(), id); err != nil && !errors.Is(err, task.ErrNotFound) {
			w.t.Errorf("cleaning up: %v", err)
		}
	})
	return id, e.Prepare(ctx, task.Spec{ID: id, Name: "t" + id[:8], Image: ref, Digest: digest, SpecHash: "spec", Create: c})
}

// said runs a container to its end and gives its output.
func (w *world) said(e task.Engine, ref, digest string, change func(*container.CreateRequest), cmd ...string) (string, error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	id, err := w.made(ctx, e, ref, digest, change, cmd...)
	if err != nil {
		return "", err
	}
	if _, err := e.Start(ctx, id, 1, nil); err != nil {
		return "", err
	}
	if _, err := e.Wait(ctx, id, 1); err != nil {
		return "", err
	}
	return w.output(ctx, e, id)
}

func (w *world) output(ctx context.Context, e task.Engine, id string) (string, error) {
	st, err := e.Logs(ctx, id, task.LogOptions{Stdout: true, Stderr: true, Tail: -1})
	if err != nil {
		return "", err
	}
	defer st.Close()
	return frames(st)
}

func frames(r io.Reader) (string, error) {
	var out strings.Builder
	for fr := bulk.NewFrameReader(r); ; {
		kind, p, err := fr.Next()
		if errors.Is(err, io.EOF) || kind == bulk.FrameExit {
			return out.String(), nil
		}
		if err != nil {
			return out.String(), err
		}
		out.Write(p)
	}
}

// An image whose /etc/passwd is a FIFO holds up neither its start nor anything after.
func TestAFIFOForUsersHoldsNothingUp(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	ref, digest := w.layered(e, "fifo:1", tar.Header{Name: "etc/passwd", Typeflag: tar.TypeFifo}, text("etc/group", "web:x:7:\n"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	within := func(what string, f func() error) error {
		t.Helper()
		done := make(chan error, 1)
		go func() { done <- f() }()
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			t.Fatalf("%s hangs", what)
			return nil
		}
	}
	for _, user := range []string{"", "12:web", "nobody"} {
		err := within("a start", func() error {
			_, err := w.made(ctx, e, ref, digest, func(c *container.CreateRequest) { c.User = user }, "true")
			return err
		})
		var se *task.StartError
		if !errors.As(err, &se) || se.Code != 125 || !strings.Contains(se.Message, "its /etc/passwd is a FIFO") {
			t.Errorf("as %q: %v", user, err)
		}
	}
	// A container can make one for itself.
	ref, digest = w.layered(e, "users:1", text("etc/passwd", "web:x:12:7::/:/bin/sh\n"), text("etc/group", "web:x:7:\n"))
	id, err := w.made(ctx, e, ref, digest, nil, "sleep", "300")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(ctx, id, 1, nil); err != nil {
		t.Fatal(err)
	}
	run := func(exec, user string, cmd ...string) (out string, err error) {
		err = within("an exec", func() error {
			if err := e.ExecCreate(ctx, id, exec, container.ExecCreateRequest{Cmd: cmd, User: user, AttachStdout: true}); err != nil {
				return err
			}
			st, err := e.ExecStart(ctx, id, exec, true, 0, 0)
			if err != nil {
				return err
			}
			defer st.Close()
			out, err = frames(st)
			return err
		})
		return out, err
	}
	if out, err := run(strings.Repeat("a", 64), "web", "id"); err != nil || !strings.Contains(out, "uid=12(web) gid=7(web)") {
		t.Errorf("exec as web: %q, %v", out, err)
	}
	if out, err := run(strings.Repeat("b", 64), "", "sh", "-c", "rm /etc/passwd; mkfifo /etc/passwd"); err != nil || out != "" {
		t.Fatalf("making a FIFO: %q, %v", out, err)
	}
	for i, user := range []string{"web", ""} {
		if _, err := run(strings.Repeat(string(rune('c'+i)), 64), user, "id"); err == nil || !strings.Contains(err.Error(), "its /etc/passwd is a FIFO") {
			t.Errorf("exec as %q: %v", user, err)
		}
	}
}
