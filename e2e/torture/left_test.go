package torture

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/drover/drover/e2e/fleet"
)

// spare begins the names of what was made ahead for the next container: one shim.
const spare = "spare-"

// left returns an error that names what is left of removed containers on the host. kept
// excuses auto-removed ones.
func (h *host) left(ctx context.Context, f *fleet.Fleet, kept bool) error {
	excused := []string{h.bystander, spare}
	if kept {
		excused = append(excused, h.removed...)
	}
	var found []string
	add := func(kind string, names ...string) {
		for _, n := range names {
			if !slices.ContainsFunc(excused, func(id string) bool { return strings.Contains(n, id[:min(12, len(id))]) }) {
				found = append(found, kind+" "+n)
			}
		}
	}
	for _, dir := range []string{"run/netns", "run/shims", "data/tasks", "data/network", "run/t"} {
		entries, _ := os.ReadDir(filepath.Join(h.Dir, dir))
		for _, e := range entries {
			inside, _ := filepath.Glob(filepath.Join(h.Dir, dir, e.Name(), "*"))
			add(dir, fmt.Sprint(e.Name(), inside))
		}
	}
	for _, pid := range h.Pids(shim) {
		of := bundleOf(pid)
		if of == "" {
			continue // it has ended
		}
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		add("process", fmt.Sprintf("%d in %s: %q", pid, of, line))
		if strings.HasSuffix(of, " (deleted)") {
			found = append(found, fmt.Sprintf("process %d, whose bundle is gone", pid))
		}
	}
	if n := len(h.waiting()); n > 1 {
		found = append(found, fmt.Sprintf("%d shims that wait for a container", n))
	}
	for _, m := range f.Mounts() {
		if strings.HasPrefix(m, h.Dir+"/") {
			add("mount", m)
		}
	}
	add("cgroup", h.Cgroups()...)
	if spares, _ := filepath.Glob(filepath.Join(h.Dir, "run/shims", spare+"*")); len(spares) > 1 {
		found = append(found, spares...)
	}
	if len(found) > 0 {
		return fmt.Errorf("left on %s: %q", h.Name, found)
	}
	links, err := h.nsenter("ip", "-o", "link")
	if err != nil {
		return err
	}
	for line := range strings.Lines(links) {
		if w := strings.Fields(line); len(w) > 1 && strings.HasPrefix(w[1], "dvr") {
			add("link", w[1])
		}
	}
	rules, err := h.nsenter("nft", "list", "map", "inet", "drover_drover0", "any_tcp")
	if err != nil {
		return err
	}
	if strings.Contains(rules, "elements") {
		add("published ports in", rules)
	}
	if err := h.leftInContainerd(ctx, add); err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("left on %s: %q", h.Name, found)
	}
	return nil
}

// waiting returns the shims that wait for a container.
func (h *host) waiting() []int {
	return slices.DeleteFunc(h.Pids(shim), func(pid int) bool { return !strings.HasPrefix(bundleOf(pid), spare) })
}

func (h *host) nsenter(args ...string) (string, error) {
	out, err := exec.Command("nsenter", append([]string{"--net=/var/run/netns/" + h.Netns}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return string(out), nil
}

func (h *host) leftInContainerd(ctx context.Context, add func(string, ...string)) error {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, "drover"), 5*time.Second)
	defer cancel()
	c, err := client.New(h.Dir+"/run/containerd.sock", client.WithDefaultNamespace("drover"), client.WithTimeout(2*time.Second))
	if err != nil {
		return err
	}
	defer c.Close()
	cs, err := c.ContainerService().List(ctx)
	if err != nil {
		return err
	}
	for _, x := range cs {
		add("container", x.ID)
	}
	ls, err := c.LeasesService().List(ctx)
	if err != nil {
		return err
	}
	for _, l := range ls {
		add("lease", l.ID)
	}
	return c.SnapshotService("overlayfs").Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind != snapshots.KindCommitted {
			add("snapshot", i.Name)
		}
		return nil
	})
}
