package command

import (
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/drover/drover/pkg/runtimes"
)

// guarded are the fields of a create by which a container's root becomes root on its
// host, or reaches what the container isn't given; each function reports whether the
// field is used in that way. All other fields are free: a test lists both.
var guarded = map[string]func(*container.HostConfig) bool{
	"Binds": func(h *container.HostConfig) bool {
		for _, b := range h.Binds {
			if strings.HasPrefix(b, "/") || strings.HasPrefix(b, ".") || strings.HasPrefix(b, "~") {
				return true
			}
		}
		return false
	},
	"Mounts": func(h *container.HostConfig) bool {
		for _, m := range h.Mounts {
			plain := m.Type == mount.TypeTmpfs || m.Type == mount.TypeImage || m.Type == mount.TypeVolume && (m.VolumeOptions == nil || m.VolumeOptions.DriverConfig == nil)
			if !plain {
				return true
			}
		}
		return false
	},
	"VolumesFrom":       func(h *container.HostConfig) bool { return len(h.VolumesFrom) > 0 },
	"VolumeDriver":      func(h *container.HostConfig) bool { return h.VolumeDriver != "" && h.VolumeDriver != "local" },
	"Privileged":        func(h *container.HostConfig) bool { return h.Privileged },
	"CapAdd":            func(h *container.HostConfig) bool { return len(h.CapAdd) > 0 },
	"Devices":           func(h *container.HostConfig) bool { return len(h.Devices) > 0 },
	"DeviceCgroupRules": func(h *container.HostConfig) bool { return len(h.DeviceCgroupRules) > 0 },
	"DeviceRequests":    func(h *container.HostConfig) bool { return len(h.DeviceRequests) > 0 },
	"NetworkMode":       func(h *container.HostConfig) bool { return shared(string(h.NetworkMode)) },
	"PidMode":           func(h *container.HostConfig) bool { return shared(string(h.PidMode)) },
	"IpcMode":           func(h *container.HostConfig) bool { return shared(string(h.IpcMode)) },
	"UTSMode":           func(h *container.HostConfig) bool { return shared(string(h.UTSMode)) },
	"UsernsMode":        func(h *container.HostConfig) bool { return shared(string(h.UsernsMode)) },
	"CgroupnsMode":      func(h *container.HostConfig) bool { return shared(string(h.CgroupnsMode)) },
	"Cgroup":            func(h *container.HostConfig) bool { return h.Cgroup != "" },
	"CgroupParent":      func(h *container.HostConfig) bool { return h.CgroupParent != "" },
	"OomScoreAdj":       func(h *container.HostConfig) bool { return h.OomScoreAdj < 0 },
	"Runtime":           func(h *container.HostConfig) bool { return h.Runtime != "" && !runtimes.Named(h.Runtime) },
	"Annotations":       func(h *container.HostConfig) bool { return len(h.Annotations) > 0 },
	"MaskedPaths":       func(h *container.HostConfig) bool { return h.MaskedPaths != nil },
	"ReadonlyPaths":     func(h *container.HostConfig) bool { return h.ReadonlyPaths != nil },
	"SecurityOpt": func(h *container.HostConfig) bool {
		for _, o := range h.SecurityOpt {
			if o != "no-new-privileges" && o != "no-new-privileges:true" && o != "no-new-privileges=true" {
				return true
			}
		}
		return false
	},
}

// shared reports whether a namespace is the host's, or another container's, which
// may be the host's.
func shared(mode string) bool { return mode == "host" || strings.HasPrefix(mode, "container:") }

// Rootly returns the first field of a create by which its container would be root on
// its host, or "".
func Rootly(h *container.HostConfig) string {
	if h == nil {
		return ""
	}
	first := ""
	for name, used := range guarded {
		if used(h) && (first == "" || name < first) {
			first = name
		}
	}
	return first
}
