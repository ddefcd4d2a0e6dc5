package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/drover/drover/agent/task"
)

// What -v names is made; what --mount names must be there, unless it may be made.
func TestBindsAreMadeReadyOrRefused(t *testing.T) {
	dir := t.TempDir()
	may := &mount.BindOptions{CreateMountpoint: true}
	for _, c := range []struct {
		what    string
		h       container.HostConfig
		made    string
		refused string
	}{
		{"nothing", container.HostConfig{}, "", ""},
		{"-v of a folder", container.HostConfig{Binds: []string{dir + ":/mnt"}}, "", ""},
		{"-v of none", container.HostConfig{Binds: []string{dir + "/v/a:/mnt:ro"}}, dir + "/v/a", ""},
		{"--mount of a folder", container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeBind, Source: dir, Target: "/m"}}}, "", ""},
		{"--mount of none", container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeBind, Source: dir + "/m", Target: "/m"}}}, "",
			"bind source path does not exist: " + dir + "/m"},
		{"--mount of one to be made", container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeBind, Source: dir + "/c", Target: "/m", BindOptions: may}}}, dir + "/c", ""},
		{"a tmpfs has no source", container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeTmpfs, Target: "/m"}}}, "", ""},
		{"below a file", container.HostConfig{Binds: []string{dir + "/file/x:/mnt"}}, "", "error while creating mount source path"},
		{"nonsense", container.HostConfig{Binds: []string{"x"}}, "", "invalid volume specification"},
	} {
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		err := readyBinds(&c.h)
		if c.refused != "" {
			var se *task.StartError
			if !errors.As(err, &se) || se.Code != 125 || !strings.Contains(se.Message, c.refused) {
				t.Errorf("%s: %v, want 125: %q", c.what, err, c.refused)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if c.made != "" {
			if i, err := os.Stat(c.made); err != nil || !i.IsDir() {
				t.Errorf("%s: %v", c.what, err)
			}
		}
	}
}

// Devices are found on the host; what is none is refused in docker's words.
func TestDevicesAreFoundOnTheHost(t *testing.T) {
	got, err := devicesOf(t.Context(), &container.HostConfig{Resources: container.Resources{Devices: []container.DeviceMapping{{PathOnHost: "/dev/null"}}}})
	if d := got["/dev/null"]; err != nil || len(d) != 1 || d[0].Type != "c" || d[0].Major != 1 || d[0].Minor != 3 {
		t.Errorf("found %v, %v", got, err)
	}
	got, err = devicesOf(t.Context(), &container.HostConfig{Privileged: true})
	if err != nil || len(got[""]) == 0 {
		t.Errorf("of a privileged container: %v, %v", got, err)
	}
	var se *task.StartError
	for _, path := range []string{"/dev/no-such-device", "/etc/passwd"} {
		_, err := devicesOf(t.Context(), &container.HostConfig{Resources: container.Resources{Devices: []container.DeviceMapping{{PathOnHost: path}}}})
		if !errors.As(err, &se) || !strings.Contains(se.Message, "error gathering device information while adding custom device \""+path+"\"") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
