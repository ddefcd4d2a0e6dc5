package engine

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/containers"
	hostapparmor "github.com/containerd/containerd/v2/pkg/apparmor"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/profiles/apparmor"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/containerd"
	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/securityopt"
)

// readNode collects the facts about this node that a spec depends on.
func readNode(ctx context.Context, o Options) (spec.Node, error) {
	caps, err := cap.Current()
	if err != nil {
		return spec.Node{}, fmt.Errorf("reading this node's capabilities: %w", err)
	}
	// Which paths are masked depends on the node's CPUs.
	usual, err := oci.GenerateSpec(namespaces.WithNamespace(ctx, containerd.Namespace), nil, &containers.Container{})
	if err != nil {
		return spec.Node{}, fmt.Errorf("reading which paths are masked: %w", err)
	}
	_, err = os.Stat("/sys/fs/selinux/enforce")
	return spec.Node{
		Name: o.HostName, CgroupParent: o.cgroup(), CgroupV2: unified(), RecursiveReadOnly: kernelHasSetattr(),
		AppArmor: hostapparmor.HostSupports(), SELinux: err == nil, Seccomp: kernelHasSeccomp(),
		Capabilities: caps, MaskedPaths: usual.Linux.MaskedPaths,
	}, nil
}

// facts collects the facts that a container's spec depends on now; user looks up a user
// in the container's files. It refuses what the host can't provide.
func (e *Engine) facts(ctx context.Context, p *prepared, user func(name string, groups []string) (specs.User, error)) (spec.Facts, error) {
	f := spec.Facts{ID: p.ID, Dir: e.o.dir(p.ID)}
	var err error
	if f.Node, err = e.node(); err != nil {
		return f, err
	}
	if h := p.Create.HostConfig; h != nil {
		binary, err := runtimeBinary(h.Runtime)
		if err != nil {
			return f, err
		}
		f.Node.RecursiveReadOnly = f.Node.RecursiveReadOnly && (binary == "" || mountsWith(ctx, binary, "rro"))
		if err := readyBinds(h); err != nil {
			return f, err
		}
		if f.Devices, err = devicesOf(ctx, h); err != nil {
			return f, err
		}
	}
	if f.Mounts, err = e.mountsOf(p); err != nil {
		return f, err
	}
	if spec.NetworkOf(p.Create) == spec.OwnNetwork {
		f.Netns = e.o.Network.NetnsPath(p.ID)
	}
	f.User, err = user(spec.User(p.Create, p.ImageConfig))
	return f, err
}

// devicesOf finds the devices of a request, as in spec.Facts.
func devicesOf(ctx context.Context, h *container.HostConfig) (map[string][]specs.LinuxDevice, error) {
	found := map[string][]specs.LinuxDevice{}
	if h.Privileged {
		all, err := oci.HostDevices()
		if err != nil {
			return nil, fmt.Errorf("listing the host's devices: %w", err)
		}
		found[""] = all
	}
	for _, d := range h.Devices {
		if h.Privileged && d.PathInContainer == d.PathOnHost { // it is one of them
			continue
		}
		s := &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
		if err := oci.WithDevices(d.PathOnHost, "", "")(ctx, nil, nil, s); err != nil {
			return nil, task.Refuse("error gathering device information while adding custom device %q: %v", d.PathOnHost, err)
		}
		found[d.PathOnHost] = s.Linux.Devices
	}
	return found, nil
}

// kernelHasSeccomp reports whether the kernel supports seccomp filters.
func kernelHasSeccomp() bool {
	return unix.Prctl(unix.PR_GET_SECCOMP, 0, 0, 0, 0) != unix.EINVAL &&
		unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0) != unix.EINVAL
}

// kernelHasSetattr reports whether the kernel has mount_setattr (Linux 5.12).
func kernelHasSetattr() bool {
	err := unix.MountSetattr(-1, "/proc/self/missing", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	return !errors.Is(err, unix.ENOSYS)
}

// loadProfile ensures that AppArmor's default profile is loaded: it does not survive a
// reboot, and updates of the host may unload it.
func loadProfile(n spec.Node) error {
	if !n.AppArmor {
		return nil
	}
	loaded, err := apparmor.IsLoaded(securityopt.DefaultAppArmor)
	if err == nil && !loaded {
		err = apparmor.InstallDefault(securityopt.DefaultAppArmor)
	}
	if err != nil {
		return fmt.Errorf("loading the AppArmor profile %s: %w", securityopt.DefaultAppArmor, err)
	}
	return nil
}
