// Package images builds the container images of the demo and the tests from this
// repository's own sources and a static busybox, and pushes them to a registry. Where
// the registry is, and what is run from it, is up to the caller.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Module is the import path of the Go programs in this directory.
const module = "github.com/drover/drover/deploy/images/"

// Set is all images by their references, which are below library/ as on docker.io.
type Set map[string]v1.Image

// Build builds all images. It needs a Go toolchain.
func Build(ctx context.Context) (Set, error) {
	dir, err := os.MkdirTemp("", "drover-images-")
	if err != nil {
		return nil, fmt.Errorf("building images: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	return build(ctx, dir)
}

// Push pushes the images to registry (host:port, plain HTTP). It is safe for concurrent
// use.
func (s Set) Push(ctx context.Context, registry string) error {
	for _, ref := range slices.Sorted(maps.Keys(s)) {
		tag, err := name.NewTag(registry+"/library/"+ref, name.Insecure)
		if err != nil {
			return fmt.Errorf("pushing %s: %w", ref, err)
		}
		if err := remote.Write(tag, s[ref], remote.WithContext(ctx)); err != nil {
			return fmt.Errorf("pushing %s to %s: %w", ref, registry, err)
		}
	}
	return nil
}

func build(ctx context.Context, dir string) (Set, error) {
	hello, err := program(ctx, dir, "hello")
	if err != nil {
		return nil, err
	}
	web, err := program(ctx, dir, "web")
	if err != nil {
		return nil, err
	}
	box, names, err := busybox(ctx)
	if err != nil {
		return nil, err
	}
	system := func(os, version string) files { return userland(box, names, os, version) }
	shell := v1.Config{Cmd: []string{"/bin/sh"}, Env: env}
	images := Set{}
	for _, m := range []struct {
		refs  []string
		files []files
		cfg   v1.Config
	}{
		{[]string{"hello-world:latest"}, []files{{"hello": exe(hello)}}, v1.Config{Cmd: []string{"/hello"}, Env: env}},
		{[]string{"busybox:latest"}, []files{system("busybox", "1")}, shell},
		{[]string{"alpine:latest", "alpine:3.20"}, []files{system("alpine", "3.20")}, shell},
		{[]string{"ubuntu:latest", "ubuntu:24.04"}, []files{system("ubuntu", "24.04")}, shell},
		{[]string{"web:latest"}, []files{system("web", "1"), {"web": exe(web)}}, v1.Config{
			Cmd: []string{"/web"}, Env: env, ExposedPorts: map[string]struct{}{"80/tcp": {}},
		}},
	} {
		img, err := image(m.files, m.cfg)
		if err != nil {
			return nil, fmt.Errorf("building %s: %w", m.refs[0], err)
		}
		for _, r := range m.refs {
			images[r] = img
		}
	}
	return images, nil
}

func busybox(ctx context.Context) (program []byte, applets []string, err error) {
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, nil, fmt.Errorf("reading a static busybox (package busybox-static): %w", err)
	}
	out, err := exec.CommandContext(ctx, "/bin/busybox", "--list").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("listing busybox's applets: %w", err)
	}
	return box, strings.Fields(string(out)), nil
}

// Busybox builds only the image of that name; it needs no compiler.
func Busybox(ctx context.Context) (v1.Image, error) {
	box, names, err := busybox(ctx)
	if err != nil {
		return nil, err
	}
	return image([]files{userland(box, names, "busybox", "1")}, v1.Config{Cmd: []string{"/bin/sh"}, Env: env})
}

var env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// file is one entry of a layer.
type file struct {
	mode int64
	data []byte
	link string // a symbolic link, if set
	dir  bool
}
type files map[string]file

func exe(b []byte) file  { return file{mode: 0o755, data: b} }
func text(s string) file { return file{mode: 0o644, data: []byte(s)} }

func userland(box []byte, applets []string, os, version string) files {
	f := files{
		"bin/busybox": exe(box),
		"tmp":         {mode: 0o1777, dir: true}, "root": {mode: 0o700, dir: true}, "var": {mode: 0o755, dir: true},
		"proc": {mode: 0o555, dir: true}, "sys": {mode: 0o555, dir: true}, "dev": {mode: 0o755, dir: true},
		"etc/passwd":     text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
		"etc/group":      text("root:x:0:\nnogroup:x:65534:\n"),
		"etc/os-release": text(fmt.Sprintf("NAME=%q\nID=%s\nVERSION_ID=%q\nPRETTY_NAME=\"%s %s (stand-in)\"\n", os, os, version, os, version)),
	}
	for _, a := range applets {
		if a != "busybox" {
			f["bin/"+a] = file{link: "/bin/busybox"}
		}
	}
	return f
}

// image creates a reproducible image with one layer per set of files.
func image(sets []files, cfg v1.Config) (v1.Image, error) {
	img := v1.Image(empty.Image)
	for _, s := range sets {
		b, err := layer(s)
		if err != nil {
			return nil, err
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, tarball.WithCompressedCaching)
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			return nil, err
		}
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.Architecture, cf.OS, cf.Config = runtime.GOARCH, "linux", cfg
	cf.Created = v1.Time{Time: time.Unix(1_760_000_000, 0).UTC()}
	return mutate.ConfigFile(img, cf)
}

func layer(f files) ([]byte, error) {
	names := make([]string, 0, len(f))
	dirs := map[string]bool{}
	for n, x := range f {
		for d := path.Dir(n); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
		if x.dir {
			dirs[n] = true
		}
		names = append(names, n)
	}
	for d := range dirs {
		if _, ok := f[d]; !ok {
			f[d] = file{mode: 0o755, dir: true}
			names = append(names, d)
		}
	}
	sort.Strings(names)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		x := f[n]
		h := &tar.Header{Name: n, Mode: x.mode, Size: int64(len(x.data)), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		switch {
		case x.dir:
			h.Typeflag, h.Name = tar.TypeDir, n+"/"
		case x.link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, x.link, 0o777
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(x.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// program builds one of this directory's commands, statically linked.
func program(ctx context.Context, dir, name string) ([]byte, error) {
	out := filepath.Join(dir, name)
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, module+name)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the program %s: %w: %s", name, err, msg)
	}
	return os.ReadFile(out)
}
