package peers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/drover/drover/e2e/fleet"
)

// busybox is a container that stays.
func busybox() client.ContainerCreateOptions {
	return client.ContainerCreateOptions{Config: &container.Config{Image: "busybox", Cmd: []string{"sleep", "100000"}}}
}

// Ctr is the distribution's own containerd on a host, with its client ctr. Its containers
// have docker's default seccomp profile, and no network.
type Ctr struct {
	Group *Group
	Ref   string
	dir   string
	cmd   *exec.Cmd
}

// StartCtr starts containerd, and pulls busybox.
func StartCtr(t testing.TB, f *fleet.Fleet, h *fleet.Host, g *Group) (*Ctr, error) {
	t.Helper()
	for _, p := range []string{"ctr", "containerd", "runc"} {
		if _, err := find(p); err != nil {
			return nil, err
		}
	}
	c := &Ctr{Group: g, Ref: f.Registry + "/library/busybox:latest", dir: filepath.Join(h.Dir, "ctr")}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return nil, fmt.Errorf("preparing containerd: %w", err)
	}
	conf := filepath.Join(c.dir, "config.toml")
	toml := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n address = %q\n", c.dir+"/root", c.dir+"/state", c.socket())
	if err := os.WriteFile(conf, []byte(toml), 0o644); err != nil {
		return nil, fmt.Errorf("preparing containerd: %w", err)
	}
	c.cmd = exec.Command("nsenter", "--net=/var/run/netns/"+h.Netns, "containerd", "--config", conf)
	if err := g.Start(c.cmd); err != nil {
		return nil, err
	}
	t.Cleanup(c.stop)
	f.Eventually(20*time.Second, "containerd answers", func() bool {
		_, err := c.Ctr("version")
		return err == nil
	})
	_, err := c.Ctr("images", "pull", "--plain-http", "--snapshotter", "overlayfs", c.Ref)
	return c, err
}

func (c *Ctr) socket() string { return filepath.Join(c.dir, "s") }

// Ctr runs ctr, and returns its standard output.
func (c *Ctr) Ctr(args ...string) (string, error) {
	return c.Group.Run(exec.Command("ctr", append([]string{"-a", c.socket()}, args...)...))
}

// Start runs a container. Flags are ctr's own, such as --rm and -d.
func (c *Ctr) Start(id string, flags []string, command ...string) error {
	args := append([]string{"run", "--snapshotter", "overlayfs", "--seccomp", "--runc-root", c.dir + "/runc", "--cgroup", c.Group.Containers() + "/" + id}, flags...)
	_, err := c.Ctr(append(append(args, c.Ref, id), command...)...)
	return err
}

// Remove kills containers and removes them.
func (c *Ctr) Remove(ids ...string) error {
	for _, id := range ids {
		if _, err := c.Ctr("task", "rm", "-f", id); err != nil {
			return err
		}
	}
	_, err := c.Ctr(append([]string{"containers", "rm"}, ids...)...)
	return err
}

func (c *Ctr) stop() {
	if ids, err := c.Ctr("containers", "ls", "-q"); err == nil && ids != "" {
		_ = c.Remove(strings.Fields(ids)...)
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	_ = c.cmd.Wait()
}
