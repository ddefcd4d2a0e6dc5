// Package spec plans containers: from docker's create request, the image's configuration
// and facts about the node it computes the spec for the OCI runtime, as docker would. It
// does no I/O. Collecting the facts, and refusing what they rule out, is up to the
// engine.
package spec

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/fields"
)

// Node is what a spec depends on of its node.
type Node struct {
	Name              string
	CgroupParent      string   // a cgroup for this node's containers, without a trailing slash
	CgroupV2          bool     // cgroup v2 only
	RecursiveReadOnly bool     // read-only binds can be recursive
	AppArmor, SELinux bool     // the kernel has them
	Seccomp           bool     // the kernel supports filters
	Capabilities      []string // the agent's own: those of privileged containers
	MaskedPaths       []string // hidden from containers that aren't privileged
}

// Facts are what a spec depends on besides the request and the image.
type Facts struct {
	Node  Node
	ID    string     // of the container, 64 hex characters
	Dir   string     // directory of HostsFile, HostnameFile and ResolvFile
	Netns string     // of the container's sandbox, if it has networks
	User  specs.User // User, looked up in the container's files
	// Devices are those that the request names, by their path on the host; for a
	// privileged container also all of the host's, under "".
	Devices map[string][]specs.LinuxDevice
	// Mounts are binds beside the request's own: its volumes, and what other containers
	// mount.
	Mounts []mount.Mount
}

// Files that are mounted into each container.
const (
	HostsFile    = "hosts"
	HostnameFile = "hostname"
	ResolvFile   = "resolv.conf"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Plan returns the spec of a container. Equal arguments give equal specs, except for
// docker's seccomp profile, which depends on the running kernel. The request and the
// facts are not modified, and may share memory with the spec. What can't be done is a
// *task.StartError.
func Plan(c container.CreateRequest, img *ocispec.ImageConfig, f Facts) (*specs.Spec, error) {
	c = whole(c)
	args, err := args(c.Config, img)
	if err != nil {
		return nil, err
	}
	s := base(f.Node)
	s.Linux.CgroupsPath = f.Node.CgroupParent + "/" + f.ID
	s.Hostname = Hostname(c, f.ID, f.Node.Name)
	s.Root.Readonly = c.HostConfig.ReadonlyRootfs
	p := s.Process
	p.Args, p.User = args, f.User
	p.Cwd = cmp.Or(c.WorkingDir, img.WorkingDir, "/")
	p.Env = env(c, s.Hostname, f.Node.Name, img)
	if p.Terminal = c.Tty; c.Tty {
		p.ConsoleSize = &specs.Box{Height: c.HostConfig.ConsoleSize[0], Width: c.HostConfig.ConsoleSize[1]}
	}
	if err := allMounts(s, c.HostConfig, f); err != nil {
		return nil, err
	}
	namespaces(s, c, f.Netns)
	sysctls(s, c)
	if err := security(s, c.HostConfig, f); err != nil {
		return nil, err
	}
	resources(s, c.HostConfig)
	annotations(s, c.HostConfig.Annotations)
	return s, nil
}

// annotations returns the user's, except those that would control what runs the
// container.
func annotations(s *specs.Spec, all map[string]string) {
	users := maps.Clone(all)
	maps.DeleteFunc(users, func(k, _ string) bool { return fields.Reserved(k) })
	if len(users) > 0 {
		s.Annotations = users
	}
}

// whole returns a request with no nil parts.
func whole(c container.CreateRequest) container.CreateRequest {
	if c.Config == nil {
		c.Config = &container.Config{}
	}
	if c.HostConfig == nil {
		c.HostConfig = &container.HostConfig{}
	}
	return c
}

// User returns the user that a container runs as, in docker's syntax ("web", "0:0"; ""
// is root), and the groups requested in addition to the user's own.
func User(c container.CreateRequest, img *ocispec.ImageConfig) (name string, groups []string) {
	c = whole(c)
	return cmp.Or(c.User, img.User), c.HostConfig.GroupAdd
}

// Hostname returns a container's hostname.
func Hostname(c container.CreateRequest, id, node string) string {
	if c.Config != nil && c.Hostname != "" {
		return c.Hostname
	}
	if NetworkOf(c) == HostNetwork {
		return node
	}
	return id[:min(12, len(id))]
}

// args returns the entrypoint and command, by default the image's.
func args(c *container.Config, img *ocispec.ImageConfig) ([]string, error) {
	entry, cmd := []string(c.Entrypoint), []string(c.Cmd)
	if len(entry) == 0 {
		if len(cmd) == 0 {
			cmd = img.Cmd
		}
		if c.Entrypoint == nil {
			entry = img.Entrypoint
		}
	}
	if len(entry) == 1 && entry[0] == "" { // --entrypoint "" removes the image's
		entry = nil
	}
	all := slices.Concat(entry, cmd)
	if len(all) == 0 {
		return nil, task.Refuse("no command specified")
	}
	return all, nil
}

func env(c container.CreateRequest, host, node string, img *ocispec.ImageConfig) []string {
	env := []string{defaultPath, "HOSTNAME=" + host, "DROVER_NODE=" + node}
	if c.Tty {
		env = append(env, "TERM=xterm")
	}
	return MergeEnv(MergeEnv(env, img.Env), c.Env)
}

// MergeEnv lets later variables replace earlier ones; a bare name removes one.
func MergeEnv(env, more []string) []string {
	env = slices.Clone(env)
	for _, v := range more {
		k, _, set := strings.Cut(v, "=")
		i := slices.IndexFunc(env, func(have string) bool { return strings.HasPrefix(have, k+"=") })
		switch {
		case i >= 0 && set:
			env[i] = v
		case i >= 0:
			env = slices.Delete(env, i, i+1)
		case set:
			env = append(env, v)
		}
	}
	return env
}

// ownFiles returns docker's own mounts of each container.
func ownFiles(dir string) (out []specs.Mount) {
	for _, name := range []string{HostnameFile, HostsFile, ResolvFile} {
		out = append(out, specs.Mount{Destination: "/etc/" + name, Type: "bind", Source: filepath.Join(dir, name), Options: []string{"rbind", "rprivate"}})
	}
	return out
}
