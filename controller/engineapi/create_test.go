package engineapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// Security options are refused before anything is committed: one that was left out
// silently would be a container less confined than was asked for.
func TestSecurityOptionsAreKnownOrRefused(t *testing.T) {
	for opt, words := range map[string]string{
		"no-new-privileges": "", "seccomp=unconfined": "", `seccomp={"defaultAction":"SCMP_ACT_ALLOW"}`: "", "apparmor=docker-default": "",
		"nonsense=1": `invalid --security-opt 2: "nonsense=1"`, "nonsense": `invalid --security-opt 1: "nonsense"`, "seccomp=/p.json": "decoding the profile",
	} {
		r := httptest.NewRequest(http.MethodPost, "/containers/create", nil)
		_, err := new(server).feasible(r, &container.CreateRequest{Config: &container.Config{}, HostConfig: &container.HostConfig{SecurityOpt: []string{opt}}})
		if (words == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", opt, err, words)
		}
	}
}
