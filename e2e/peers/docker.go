package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/drover/drover/e2e/fleet"
)

// ErrMissing is wrapped by errors that say which program a peer needs.
var ErrMissing = errors.New("is not on this machine (deploy/bench-peers.sh installs it)")

// find returns the path of the first program that there is.
func find(names ...string) (string, error) {
	for _, n := range names {
		if p, err := exec.LookPath(n); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s %w", names[0], ErrMissing)
}

// Docker is a Docker Engine on a host, with a containerd of its own.
type Docker struct {
	Host  *fleet.Host
	Group *Group
	t     testing.TB
	f     *fleet.Fleet
	cli   string
	cmd   *exec.Cmd // nil: killed
}

// StartDocker starts an engine that has the image busybox. Several engines may share a
// group.
func StartDocker(t testing.TB, f *fleet.Fleet, h *fleet.Host, g *Group) (*Docker, error) {
	t.Helper()
	if _, err := find("dockerd"); err != nil {
		return nil, err
	}
	cli, err := find("/usr/bin/docker", "docker") // the engine's own, where another one comes first
	if err != nil {
		return nil, err
	}
	d := &Docker{Host: h, Group: g, t: t, f: f, cli: cli}
	if err := os.MkdirAll(d.dir(), 0o755); err != nil {
		return nil, fmt.Errorf("preparing dockerd: %w", err)
	}
	const key = "/etc/docker/key.json" // made by engines of old, wherever their files are
	if _, err := os.Stat(key); err != nil {
		t.Cleanup(func() { _ = os.Remove(key) })
	}
	t.Cleanup(d.stop)
	d.Start()
	ref := f.Registry + "/library/busybox:latest"
	for _, args := range [][]string{{"pull", "-q", ref}, {"tag", ref, "busybox"}} {
		if _, err := d.Run(args...); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *Docker) dir() string { return filepath.Join(d.Host.Dir, "docker") }

// Socket is where the engine listens.
func (d *Docker) Socket() string { return filepath.Join(d.dir(), "s") }

// Start starts the engine's daemons, and waits until it answers.
func (d *Docker) Start() {
	d.t.Helper()
	dir := d.dir()
	_ = os.Remove(filepath.Join(dir, "pid")) // of one that was killed
	log, err := os.OpenFile(filepath.Join(dir, "dockerd.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	d.cmd = exec.Command("nsenter", "--net=/var/run/netns/"+d.Host.Netns, "dockerd", "-H", "unix://"+d.Socket(), "--data-root", dir+"/data", "--exec-root", dir+"/exec",
		"--pidfile", dir+"/pid", "--storage-driver", "overlay2", "--cgroup-parent", d.Group.Containers(), "--insecure-registry", d.f.Registry, "--bip", "10.211.0.1/24")
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.Group.Start(d.cmd); err != nil {
		d.t.Fatal(err)
	}
	d.f.Eventually(60*time.Second, "dockerd answers", func() bool {
		_, err := d.Run("version")
		return err == nil
	})
}

// Kill kills the engine's daemon.
func (d *Docker) Kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
	d.cmd = nil
}

// Command returns a command of docker's own client.
func (d *Docker) Command(args ...string) *exec.Cmd {
	c := exec.Command(d.cli, append([]string{"-H", "unix://" + d.Socket()}, args...)...)
	c.Env = d.Host.Env()
	return c
}

// Run runs docker's own client, and returns its standard output.
func (d *Docker) Run(args ...string) (string, error) { return d.Group.Run(d.Command(args...)) }

// stop ends containers, then the daemons.
func (d *Docker) stop() {
	if d.cmd == nil {
		return
	}
	if _, err := d.Run("info", "-f", "{{.ID}}"); err == nil {
		_, _ = d.Run("swarm", "leave", "-f")
		if ids, _ := d.Run("ps", "-aq"); ids != "" {
			_, _ = d.Run(append([]string{"rm", "-f"}, strings.Fields(ids)...)...)
		}
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
}

// API returns a client of docker's API at a socket, of Docker Engine or of drover.
func API(socket string) (*client.Client, error) {
	return client.New(client.WithHost("unix://" + socket))
}

// StartBusybox starts a container through docker's API.
func StartBusybox(ctx context.Context, c *client.Client) error {
	made, err := c.ContainerCreate(ctx, busybox())
	if err == nil {
		_, err = c.ContainerStart(ctx, made.ID, client.ContainerStartOptions{})
	}
	return err
}
