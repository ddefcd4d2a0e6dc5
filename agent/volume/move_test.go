package volume

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/task"
)

// exported returns what a store sends of a volume.
func exported(t *testing.T, s *Store, id string) (stream []byte, room int64) {
	t.Helper()
	var b bytes.Buffer
	ok(t, s.Export(t.Context(), id, func(n int64) io.Writer { room = n; return &b }))
	return b.Bytes(), room
}

func quiet(int64) {}

func TestAVolumeIsTheSameOnAnotherNode(t *testing.T) {
	image := imageDir(t)
	source, to := open(t), open(t)
	v, moved := volumeOf("data"), volumeOf("moved")
	ok(t, source.Seed(t.Context(), "one", v, "", from(image)))
	base := source.Path(v.ID)
	ok(t, errors.Join(unix.Mknod(base+"/socket", unix.S_IFSOCK|0o755, 0), os.WriteFile(base+"/odd\n \xff=name", []byte("odd"), 0o600), unix.Setxattr(base+"/deep", "user.k", []byte("of\x00a dir=ectory"), 0)))
	want := strings.ReplaceAll(listing(t, base), "socket Srwxr-xr-x 0:0\n", "")
	stream, room := exported(t, source, v.ID)
	if room < 4096 || room > 1<<20 { // the hole is none of it
		t.Errorf("it needs %d bytes", room)
	}
	var written int64
	ok(t, to.Import(t.Context(), moved.ID, room, bytes.NewReader(stream), func(n int64) { written = n }))
	if got := listing(t, to.Path(moved.ID)); got != want {
		t.Errorf("it has\n%s\nwant\n%s", got, want)
	}
	if written == 0 || written > 1<<20 {
		t.Errorf("%d bytes were written", written)
	}
	if got := in(t, to.dir(moved.ID)); got != "_data" {
		t.Errorf("there are %q", got)
	}
	ok(t, to.Use(t.Context(), "one", moved))
	if err := to.Import(t.Context(), moved.ID, 0, bytes.NewReader(stream), quiet); err == nil {
		t.Error("it is written over one that is there")
	}
}

func TestAVolumeThatWasNeverUsedMoves(t *testing.T) {
	source, to := open(t), open(t)
	v := volumeOf("data")
	stream, room := exported(t, source, v.ID)
	ok(t, to.Import(t.Context(), v.ID, room, bytes.NewReader(stream), quiet))
	if got := listing(t, to.Path(v.ID)); got != ". drwxr-xr-x 0:0\n" {
		t.Errorf("it has %s", got)
	}
}

// What a container writes to its end comes along.
func TestAVolumeMovesOnceNoTaskHasIt(t *testing.T) {
	s := open(t)
	v := volumeOf("data")
	ok(t, s.Hold("one", []task.Volume{v}))
	over, cancel := context.WithCancel(t.Context())
	cancel()
	begun := func(int64) io.Writer { t.Error("it is read while a task has it"); return io.Discard }
	if err := s.Export(over, v.ID, begun); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	read := make(chan error)
	go func() { read <- s.Export(t.Context(), v.ID, func(int64) io.Writer { return io.Discard }) }()
	write(t, s.Path(v.ID)+"/last", "words")
	s.Drop("one")
	ok(t, <-read)
}

// Wherever the stream is cut, nothing is there.
func TestAMoveThatIsCutShort(t *testing.T) {
	image := imageDir(t)
	s := open(t)
	v, moved := volumeOf("data"), volumeOf("moved")
	ok(t, s.Seed(t.Context(), "one", v, "", from(image)))
	ok(t, os.Remove(s.Path(v.ID)+"/sparse"))
	stream, room := exported(t, s, v.ID)
	broken := errors.New("the connection broke")
	for n := 0; n <= len(stream); n += 256 {
		r := io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(broken))
		if err := s.Import(t.Context(), moved.ID, room, r, quiet); !errors.Is(err, broken) {
			t.Fatalf("after %d of %d bytes: %v", n, len(stream), err)
		}
		if got := in(t, s.o.Dir); got != v.ID {
			t.Fatalf("after %d bytes there are %q", n, got)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	if err := s.Import(over, moved.ID, room, bytes.NewReader(stream), func(int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := s.Import(t.Context(), moved.ID, 1<<60, bytes.NewReader(stream), quiet); !errors.Is(err, ErrNoRoom) {
		t.Errorf("%v", err)
	}
	if got := in(t, s.o.Dir); got != v.ID {
		t.Fatalf("there are %q", got)
	}
	// An agent that was killed leaves a part, and a tombstone of it comes.
	write(t, s.dir(moved.ID)+"/"+arriving+"/plain", "pl")
	ok(t, s.Remove(t.Context(), moved.ID))
	if err := s.Import(t.Context(), moved.ID, room, bytes.NewReader(stream), quiet); !errors.Is(err, ErrRemoved) {
		t.Errorf("%v", err)
	}
}

// A node in foreign hands sends what it likes.
func TestWhatAHostileNodeSends(t *testing.T) {
	outside := t.TempDir()
	write(t, outside+"/secret", "secret")
	before := listing(t, outside)
	dir := &tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}
	file := func(name string) *tar.Header { return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644} }
	for what, sent := range map[string][]*tar.Header{
		"a path that climbs":         {dir, file("../../new")},
		"a path that climbs inside":  {dir, file("a/../../new")},
		"an absolute path":           {dir, file(outside + "/new")},
		"a file through a link":      {dir, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, file("l/new")},
		"a directory through a link": {dir, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/new/", Typeflag: tar.TypeDir, Mode: 0o777}},
		"a directory that is a link": {dir, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/", Typeflag: tar.TypeDir, Mode: 0o777, Uid: 7}},
		"another name of a file":     {dir, {Name: "h", Typeflag: tar.TypeLink, Linkname: outside + "/secret"}},
		"another name by a path":     {dir, {Name: "h", Typeflag: tar.TypeLink, Linkname: "../../../secret"}},
		"another name by a link":     {dir, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/secret"}},
		"a name twice":               {dir, file("a"), file("a")},
		"itself twice":               {dir, file("a"), dir},
		"itself as a file":           {file(".")},
		"what is no file":            {dir, {Name: "x", Typeflag: tar.TypeCont}},
	} {
		s := open(t)
		v := volumeOf("data")
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range sent {
			ok(t, w.WriteHeader(h))
		}
		ok(t, w.Close())
		if err := s.Import(t.Context(), v.ID, 0, &b, quiet); err == nil {
			t.Errorf("%s is taken", what)
		}
		if got := in(t, s.o.Dir); got != "" {
			t.Errorf("%s: there are %q", what, got)
		}
		if got := listing(t, outside); got != before {
			t.Errorf("%s: outside is\n%s\nwas\n%s", what, got, before)
		}
	}
	s := open(t)
	var b bytes.Buffer
	ok(t, tar.NewWriter(&b).Close())
	if err := s.Import(t.Context(), volumeOf("data").ID, 0, io.MultiReader(&b, endless{}), quiet); err == nil || !strings.Contains(err.Error(), "does not end") {
		t.Errorf("%v", err)
	}
	if err := errors.Join(s.Import(t.Context(), "../x", 0, &b, quiet)); err == nil {
		t.Error("an id is a path")
	}
	if err := s.Export(t.Context(), "../x", nil); err == nil {
		t.Error("an id is a path")
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
