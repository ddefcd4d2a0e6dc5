package root

import (
	"net/http"
	"path"
	"strings"
	"testing"

	"github.com/drover/drover/cli/clitest"
)

// What is printed of networks is of what the API answers in its own test.
func TestWhatIsPrintedOfNetworks(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		file, ok := map[string]string{"networks": "networks.json", "web": "network-web.json", "bridge": "network-bridge.json"}[path.Base(r.URL.Path)]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		http.ServeFile(w, r, "../../controller/engineapi/testdata/"+file)
	})
	for name, args := range map[string]string{
		"network-ls.txt":             "network ls",
		"network-ls-quiet.txt":       "network ls -q",
		"network-ls-format.txt":      "network ls --format {{.Name}}:{{.Driver}}:{{.Internal}}:{{.IPv6}}",
		"network-inspect.json":       "network inspect web bridge",
		"network-inspect-format.txt": "network inspect -f {{.Name}}:{{range.IPAM.Config}}{{.Subnet}},{{.Gateway}};{{end}} web bridge",
	} {
		clitest.Golden(t, name, printed(t, h, strings.Fields(args)...))
	}
}
