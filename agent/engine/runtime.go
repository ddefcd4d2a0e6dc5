package engine

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/runtimes"
)

// runtimeOptions tells a container's shims what runs it, and where that may keep files
// until the next boot.
func (e *Engine) runtimeOptions(h *container.HostConfig) (*options.Options, error) {
	o := &options.Options{Root: filepath.Join(e.o.RunDir, "runc")}
	if h == nil {
		return o, nil
	}
	var err error
	o.BinaryName, err = runtimeBinary(h.Runtime)
	return o, err
}

// runtimeBinary returns the path of a requested OCI runtime, "" for the shim itself. It
// refuses, in docker's words, what this host does not have.
func runtimeBinary(name string) (string, error) {
	if name == "" || name == runtimes.Default {
		return "", nil
	}
	if runtimes.Named(name) || filepath.IsAbs(name) {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", task.Refuse("unknown or invalid runtime name: %s", name)
}

// runtimesHere returns the versions of the OCI runtimes on this host, by name.
func runtimesHere(ctx context.Context) map[string]string {
	found := map[string]string{}
	for _, name := range runtimes.Others {
		out, err := exec.CommandContext(ctx, name, "--version").Output()
		if err != nil {
			continue
		}
		line, _, _ := strings.Cut(string(out), "\n") // "NAME version VERSION"
		found[name] = line[strings.LastIndexByte(line, ' ')+1:]
	}
	return found
}

// mountsWith reports whether an OCI runtime supports a mount option.
func mountsWith(ctx context.Context, binary, option string) bool {
	var features struct {
		MountOptions []string `json:"mountOptions"`
	}
	b, err := exec.CommandContext(ctx, binary, "features").Output()
	return err == nil && json.Unmarshal(b, &features) == nil && slices.Contains(features.MountOptions, option)
}
