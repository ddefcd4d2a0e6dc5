package engineapi

import (
	"slices"
	"strings"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// What an image asks for, and its container runs without, is said at the create.
func TestImageWarnings(t *testing.T) {
	img := &dockerspec.DockerOCIImage{}
	img.Config.Volumes = map[string]struct{}{"/data": {}, "/logs": {}}
	img.Config.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD", "true"}}
	volumes := func(paths string) string {
		return "the image's volumes (" + paths + ") are not available on this fleet yet: what is written there goes with the container"
	}
	const health = "health checks are not available on this fleet yet"
	for _, c := range []struct {
		what string
		req  container.CreateRequest
		want []string
	}{
		{"nothing", container.CreateRequest{Config: &container.Config{}}, []string{volumes("/data, /logs"), health}},
		{"a bind at one", container.CreateRequest{Config: &container.Config{}, HostConfig: &container.HostConfig{Binds: []string{"/x:/logs/"}}}, []string{volumes("/data"), health}},
		{"mounts at both, no check", container.CreateRequest{Config: &container.Config{Healthcheck: &container.HealthConfig{Test: []string{"NONE"}}},
			HostConfig: &container.HostConfig{Binds: []string{"/x:/data:ro"}, Tmpfs: map[string]string{"/logs": ""}}}, nil},
	} {
		if got := imageWarnings(&c.req, img); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

// A field that docker knew before is refused too, of the versions that had it.
func TestAFieldOfOlderVersions(t *testing.T) {
	const body = `{"Image":"busybox","MacAddress":"02:42:ac:11:00:02"}`
	if _, _, err := decodeCreate([]byte(body), 44); err == nil || !strings.Contains(err.Error(), "MacAddress") {
		t.Errorf("an address of its own is refused with %v", err)
	}
	if _, _, err := decodeCreate([]byte(body), 52); err != nil {
		t.Errorf("version 1.52, which ignores it: %v", err)
	}
	if _, _, err := decodeCreate([]byte(`{"Image":"busybox","MacAddress":""}`), 44); err != nil {
		t.Errorf("none: %v", err)
	}
}

func TestThePlatformOfACreate(t *testing.T) {
	img := &dv1.Image{Config: []byte(`{"os":"linux","architecture":"amd64"}`)}
	for want, words := range map[string]string{
		"": "", "linux/amd64": "", "linux": "", "linux/x86_64": "",
		"linux/arm64":   "image with reference web was found but its platform (linux/amd64) does not match the specified platform (linux/arm64)",
		"windows/amd64": "does not match", "a/b/c/d/e": "a/b/c/d/e",
	} {
		if err := platformOf(img, "web", want, 41); (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want %q", want, err, words)
		}
	}
	if err := platformOf(img, "web", "linux/arm64", 40); err != nil {
		t.Errorf("a version that has no platforms: %v", err)
	}
	if err := platformOf(&dv1.Image{}, "web", "linux/arm64", 41); err != nil {
		t.Errorf("an image that does not say its platform: %v", err)
	}
}
