// Package payload holds the daemons embedded in an agent, compressed, and extracts them
// by digest. Starting them, and knowing which are still in use, is up to the callers.
package payload

import (
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/drover/drover/pkg/durable"
)

// bin is filled by `make payload`; README keeps the directory in git.
//
//go:embed bin
var bin embed.FS

// Paths of the extracted daemons. Each is in a directory named by its digest, and stays
// there: running shims, and bundles that name them, outlive upgrades.
type Paths struct {
	Containerd string
	Resolver   string
	Shim       string
}

// ErrMissing reports that this binary was built without its payloads.
var ErrMissing = errors.New("this drover was built without its payloads: run `make payload` before building it")

// Extract extracts the payloads below dir, except those that are there already.
func Extract(dir string) (p Paths, err error) {
	if p.Containerd, err = extract(dir, "drover-containerd"); err != nil {
		return Paths{}, err
	}
	if p.Resolver, err = extract(dir, "drover-resolver"); err != nil {
		return Paths{}, err
	}
	if p.Shim, err = extract(dir, "drover-shim"); err != nil {
		return Paths{}, err
	}
	return p, nil
}

// Supervisor extracts the program that keeps controller and agent running, and returns
// its path.
func Supervisor(dir string) (string, error) { return extract(dir, "drover-supervisor") }

// Archive extracts the program that reads and writes containers' files, and returns its
// path. It is called when somebody wants to: most nodes never need it.
func Archive(dir string) (string, error) { return extract(dir, "drover-archive") }

// extract streams: what it would read whole stays on an idle agent's heap for long.
func extract(dir, name string) (path string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("extracting %s: %w", name, err)
		}
	}()
	gz, err := bin.Open("bin/" + name + ".gz")
	if errors.Is(err, fs.ErrNotExist) {
		return "", ErrMissing
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = gz.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, gz); err != nil {
		return "", err
	}
	path = filepath.Join(dir, hex.EncodeToString(sum.Sum(nil)[:8]), name)
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
		return path, nil // it is complete, see durable.CopyFile
	}
	if _, err := gz.(io.Seeker).Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	r, err := gzip.NewReader(gz)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, durable.CopyFile(path, r, 0o755)
}
