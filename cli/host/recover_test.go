package host

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/drover/drover/pkg/durable"
)

// A recovery refuses to begin unless it is meant, and while the host is up.
func TestARecoveryIsRefused(t *testing.T) {
	data := t.TempDir()
	unlock, err := durable.Lock(filepath.Join(data, "up"))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "drover: this takes all other controllers out of the fleet"},
		{[]string{"--yes"}, "drover: this host is up: stop it first: "},
	} {
		cmd := recoverCommand()
		if os.Geteuid() != 0 {
			c.want = "drover: controller recover needs root: "
		}
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(append([]string{"--data-dir", data}, c.args...))
		if err := cmd.Execute(); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.args, err, c.want)
		}
	}
}
