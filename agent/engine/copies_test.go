package engine_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/mountinfo"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/life"
)

func archiveOf(t *testing.T, name, text string) io.ReadCloser {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))})
	_, werr := w.Write([]byte(text))
	if err := errors.Join(err, werr, w.Close()); err != nil {
		t.Fatal(err)
	}
	return io.NopCloser(&out)
}

// fileAt reads one file of a container.
func fileAt(ctx context.Context, e *node, id, path string) string {
	all, _, err := e.ReadPath(ctx, id, path)
	if err != nil {
		return err.Error()
	}
	defer all.Close()
	r := tar.NewReader(all)
	if _, err := r.Next(); err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(r)
	return string(b) + strings.TrimPrefix(fmt.Sprint(err), "<nil>")
}

func changed(t *testing.T, ctx context.Context, e *node, id string) string {
	t.Helper()
	all, err := e.Changes(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	var list []container.FilesystemChange
	if err := json.NewDecoder(all).Decode(&list); err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, c := range list {
		out = append(out, c.Kind.String()+" "+c.Path)
	}
	return strings.Join(out, ", ")
}

// Files are copied from and to a container before its start, while it runs and after its
// end, with what is mounted in it.
func TestFilesInEachState(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ref, digest := w.layered(e, "files:1", text("data/greeting", "from the image"))
	host := t.TempDir()
	data := &task.Volume{ID: volumeID("files"), Name: "files"}
	memory := &task.Volume{ID: volumeID("inmemory"), Name: "inmemory", Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=64k"}}
	id, err := w.mounted(ctx, e, ref, digest, []task.Mount{{Volume: data, Target: "/data"}, {Source: host, Target: "/host", ReadOnly: true}, {Volume: memory, Target: "/memory"}, {Volume: data, Target: "/part", Subpath: "greeting"}},
		"sh", "-c", "while ! test -e /go; do sleep 0.1; done; cat /go /data/new; echo own > /data/own; rm /bin/vi")
	if err != nil {
		t.Fatal(err)
	}
	if got := fileAt(ctx, e, id, "/data/greeting"); got != "from the image" {
		t.Errorf("before its start: %q", got)
	}
	if got := changed(t, ctx, e, id); got != "A /data, A /host, A /memory, A /part" && got != "A /host, A /memory, A /part" {
		t.Errorf("before its start: %s", got)
	}
	if err := e.WritePath(ctx, id, "/data", task.WriteOptions{}, archiveOf(t, "new", "new\n")); err != nil {
		t.Fatal(err)
	}
	var no *task.FileError
	if err := e.WritePath(ctx, id, "/host", task.WriteOptions{}, archiveOf(t, "x", "")); !errors.As(err, &no) || no.Missing || no.Message != "mounted volume is marked read-only" {
		t.Errorf("to a mount that is read-only: %v", err)
	}
	if _, err := e.StatPath(ctx, id, "/none"); !errors.As(err, &no) || !no.Missing {
		t.Errorf("a path that is missing: %v", err)
	}
	if _, err := e.StatPath(ctx, volumeID("nobody"), "/"); !errors.Is(err, task.ErrNotFound) {
		t.Errorf("a task that is missing: %v", err)
	}
	if _, err := e.Start(ctx, id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	if err := e.WritePath(ctx, id, "/", task.WriteOptions{}, archiveOf(t, "go", "went\n")); err != nil {
		t.Fatal(err)
	}
	if x, err := e.Wait(ctx, id, life.First(1)); err != nil || x.Code != 0 {
		t.Fatalf("%v, %v", x, err)
	}
	if out, err := w.output(ctx, e, id); err != nil || out != "went\nnew\n" {
		t.Errorf("%q, %v", out, err)
	}
	for _, released := range []bool{false, true} {
		if released {
			if err := e.Release(ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		if got := fileAt(ctx, e, id, "/data/own"); got != "own\n" {
			t.Errorf("after its end, released %v: %q", released, got)
		}
		got := changed(t, ctx, e, id)
		if !strings.Contains(got, "C /bin, D /bin/vi, ") || !strings.Contains(got, "A /go") || strings.Contains(got, "own") || strings.Contains(got, "proc") {
			t.Errorf("after its end: %s", got)
		}
	}
	all, err := e.Export(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for r := tar.NewReader(all); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		names[h.Name] = true
	}
	if err := all.Close(); err != nil || !names["go"] || !names["bin/sh"] || names["bin/vi"] || names["data/own"] {
		t.Errorf("exported: %v, %v", names, err)
	}
	for _, dir := range []string{w.o.RunDir + "/files", w.dir + "/volumes", w.o.RunDir + "/volumes"} {
		if left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir)); err != nil || len(left) > 0 {
			t.Errorf("mounted at %s: %v, %v", dir, left, err)
		}
	}
}

// A container that is removed while its files are read ends the reading, not the removal.
func TestRemovedWhileItsFilesAreCopied(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ref, digest := w.layered(e, "files:2", text("big", strings.Repeat("x", 4<<20)))
	id, err := w.mounted(ctx, e, ref, digest, nil, "sleep", "100")
	if err == nil {
		_, err = e.Start(ctx, id, life.First(1), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	all, _, err := e.ReadPath(ctx, id, "/big")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(all, make([]byte, 1<<10)); err != nil {
		t.Fatal(err)
	}
	err = e.Signal(ctx, id, "SIGKILL")
	if err == nil {
		_, err = e.Wait(ctx, id, life.First(1))
	}
	if err = errors.Join(err, e.Release(ctx, id), e.Remove(ctx, id)); err != nil { // while nobody reads
		t.Errorf("removing: %v", err)
	}
	if _, err := io.Copy(io.Discard, all); !errors.Is(err, task.ErrNotFound) {
		t.Errorf("reading: %v", err)
	}
	if err := all.Close(); err != nil {
		t.Error(err)
	}
}
