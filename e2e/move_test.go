package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// The data of a volume moves to another node whole, or stays.
func TestAVolumeMoves(t *testing.T) {
	t.Parallel()
	f := fleet.New(t, "a", "b", "c")
	f.Quorum()
	a, b, c := f.Hosts[0], f.Hosts[1], f.Hosts[2]
	a.Must("pull", "alpine")
	home := func() string {
		return strings.TrimSpace(a.Must("volume", "inspect", "-f", `{{index .Labels "io.drover.node"}}`, "data"))
	}
	data := func(h *fleet.Host) []string {
		dirs, _ := filepath.Glob(filepath.Join(h.Dir, "data", "volumes", "*"))
		return dirs
	}
	run := func(h *fleet.Host, args ...string) fleet.Result {
		return h.Drover(append([]string{"run", "--rm", "-v", "data:/x", "alpine", "/bin/sh", "-c"}, args...)...)
	}
	const state = `cd /x && ls -lanR . | sed 's/^total.*//' && cat f d/g && readlink l && md5sum big && stat -c '%h %u:%g %a %Y' f d d/g hard`

	want(t, a.Drover("volume", "mv", "data", "c"), 1, "get data: no such volume")
	want(t, a.Drover("run", "--name", "user", "--on", "node==b", "-v", "data:/x", "alpine", "/bin/sh", "-c",
		`cd /x && echo one > f && ln f hard && mkdir d && echo two > d/g && chown 7:8 d d/g && chmod 4750 d/g && ln -s /nowhere l && mkfifo p && head -c 30000000 /dev/urandom > big && touch -d '2020-01-02 03:04:05' f d`), 0)
	want(t, a.Drover("volume", "mv", "data", "c"), 1, "move data: volume is in use - [[][0-9a-f]{64}[]]: containers stay on their node")
	a.Must("rm", "user")
	want(t, a.Drover("volume", "mv", "data", "b"), 1, "its data is on b already")
	want(t, a.Drover("volume", "mv", "data", "nowhere"), 1, "No such node: nowhere")
	before := run(a, state)
	want(t, before, 0, "one\ntwo\n/nowhere")

	want(t, a.Drover("volume", "mv", "data", "c"), 0, "^data\n$")
	if got := home(); got != "c" {
		t.Errorf("its home is %q", got)
	}
	if after := run(b, state); after.Out != before.Out || after.Code != 0 {
		t.Errorf("it has\n%s%s\nhad\n%s", after.Out, after.Err, before.Out)
	}
	f.Eventually(45*time.Second, "the data at its former home is removed", func() bool { return len(data(b)) == 0 })

	// Its former home is silent: the volume stays, and what was copied goes.
	b.Must("volume", "mv", "data", "b")
	f.Eventually(45*time.Second, "the data is on b alone", func() bool { return len(data(c)) == 0 && len(data(b)) == 1 })
	big, err := filepath.Glob(filepath.Join(data(b)[0], "_data", "big"))
	if err != nil || len(big) != 1 {
		t.Fatal(big, err)
	}
	if err := os.Truncate(big[0], 4<<30); err != nil { // holes, which take their time
		t.Fatal(err)
	}
	moving := make(chan fleet.Result, 1)
	go func() { moving <- a.Drover("volume", "mv", "data", "c") }()
	f.Eventually(20*time.Second, "it is being copied", func() bool { return len(data(c)) == 1 })
	want(t, run(a, "true"), 125, "volume data is being moved to c")
	want(t, a.Drover("volume", "rm", "data"), 1, "volume is being moved to c")
	b.Link(false)
	want(t, <-moving, 1, "")
	b.Link(true)
	f.Eventually(60*time.Second, "the half copy is removed", func() bool { return len(data(c)) == 0 })
	if got := home(); got != "b" {
		t.Errorf("its home is %q", got)
	}
	f.Eventually(60*time.Second, "it can be used again", func() bool { return run(a, "true").Code == 0 })
}
