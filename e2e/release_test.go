package e2e

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/drover/drover/pkg/failpoint"
	"github.com/drover/drover/pkg/testenv"
)

// What is shipped has none of the failpoints that tests build in.
func TestWhatIsShippedHasNoFailpoints(t *testing.T) {
	testenv.Root(t)
	list, err := os.ReadFile("../pkg/failpoint/names.txt")
	if err != nil {
		t.Fatal(err)
	}
	words := []string{failpoint.Env}
	for line := range strings.Lines(string(list)) {
		words = append(words, strings.Fields(line)[0])
	}
	for path, packed := range map[string]bool{"../bin/drover": false, "../agent/payload/bin/drover-shim.gz": true} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatalf("build drover first (make build): %v", err)
		}
		var r io.Reader = f
		if packed {
			if r, err = gzip.NewReader(f); err != nil {
				t.Fatal(err)
			}
		}
		b, err := io.ReadAll(r)
		_ = f.Close()
		if err != nil || len(b) < 1<<20 {
			t.Fatalf("%s: %d bytes, %v", path, len(b), err)
		}
		for _, w := range words {
			if bytes.Contains(b, []byte(w)) {
				t.Errorf("%s has %q", path, w)
			}
		}
	}
}
