package root

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover/drover/cli/clitest"
)

// printed runs a command of the whole tree against a fleet, and returns what it prints.
func printed(t *testing.T, h http.Handler, args ...string) string {
	t.Helper()
	t.Setenv("HOME", t.TempDir()) // formats of the user's own docker
	args = append([]string{"-H", clitest.Serve(t, h).Host}, args...)
	file := filepath.Join(t.TempDir(), "out")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	terminal := os.Stdout
	os.Stdout = out // commands print there from when the tree is built
	defer func() { os.Stdout = terminal }()
	root, err := newApp("test").command(t.Context(), args)
	if err == nil {
		root.SetArgs(args)
		err = root.ExecuteContext(t.Context())
	}
	if err != nil {
		t.Fatalf("drover %s: %v", strings.Join(args, " "), err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The table of volumes is of what the API answers in its own test.
func TestTheTableOfVolumes(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/volumes") {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		http.ServeFile(w, r, "../../controller/engineapi/testdata/volumes.json")
	})
	for name, args := range map[string]string{
		"volume-ls.txt":        "volume ls",
		"volume-ls-quiet.txt":  "volume ls -q",
		"volume-ls-format.txt": "volume ls --format {{.Name}}:{{.Mountpoint}}",
	} {
		clitest.Golden(t, name, printed(t, h, strings.Fields(args)...))
	}
}
