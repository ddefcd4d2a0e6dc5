package fields

import (
	"slices"

	"github.com/moby/moby/api/types/container"
)

type create = Row[container.CreateRequest]

// Create lists the fields of POST /containers/create. CheckCreate has the rules about
// values.
var Create = table(createConfig, createHost, createResources, createMounts, createEndpoints)

// createConfig lists the fields that an image can set as well.
var createConfig = []create{
	{Path: "Hostname", Class: Node},
	{Path: "Domainname", Class: Node},
	{Path: "User", Class: Node},
	{Path: "AttachStdin", Class: Inert, Why: "what a client means to do; its attach says it again"},
	{Path: "AttachStdout", Class: Inert, Why: "as AttachStdin"},
	{Path: "AttachStderr", Class: Inert, Why: "as AttachStdin"},
	{Path: "ExposedPorts", Class: Fleet},
	{Path: "Tty", Class: Node},
	{Path: "OpenStdin", Class: Fleet},
	{Path: "StdinOnce", Class: Fleet},
	{Path: "Env", Class: Node},
	{Path: "Cmd", Class: Node},
	{Path: "Healthcheck", Class: Warned, Why: "health checks are", Asks: func(r *container.CreateRequest) bool { return checksHealth(r.Healthcheck) }},
	{Path: "ArgsEscaped", Class: Inert, Why: "Windows"},
	{Path: "Image", Class: Fleet},
	{Path: "Volumes", Class: Fleet},
	{Path: "WorkingDir", Class: Node},
	{Path: "Entrypoint", Class: Node},
	{Path: "NetworkDisabled", Class: Node},
	{Path: "OnBuild", Class: Inert, Why: "for builds from the container's image"},
	{Path: "Labels", Class: Fleet},
	{Path: "StopSignal", Class: Fleet},
	{Path: "StopTimeout", Class: Fleet},
	{Path: "Shell", Class: Inert, Why: "for builds from the container's image"},
}

var createHost = []create{
	{Path: "HostConfig.Binds", Class: Node},
	{Path: "HostConfig.ContainerIDFile", Class: Inert, Why: "the client writes it"},
	{Path: "HostConfig.LogConfig.Type", Class: Fleet},
	{Path: "HostConfig.LogConfig.Config", Class: Refused, Why: "options of a log driver are"},
	{Path: "HostConfig.NetworkMode", Class: Node},
	{Path: "HostConfig.PortBindings.*[].HostIp", Class: Fleet},
	{Path: "HostConfig.PortBindings.*[].HostPort", Class: Fleet},
	{Path: "HostConfig.RestartPolicy.Name", Class: Refused, Why: "restart policies are", But: []string{"no"}},
	{Path: "HostConfig.RestartPolicy.MaximumRetryCount", Class: Inert, Why: "of a policy, which is refused"},
	{Path: "HostConfig.AutoRemove", Class: Fleet},
	{Path: "HostConfig.VolumeDriver", Class: Refused, Why: "volume drivers are", But: []string{"local"}},
	{Path: "HostConfig.VolumesFrom", Class: Fleet},
	{Path: "HostConfig.ConsoleSize", Class: Node},
	{Path: "HostConfig.Annotations", Class: Node},
	{Path: "HostConfig.CapAdd", Class: Node},
	{Path: "HostConfig.CapDrop", Class: Node},
	{Path: "HostConfig.CgroupnsMode", Class: Node},
	{Path: "HostConfig.Dns", Class: Fleet},
	{Path: "HostConfig.DnsOptions", Class: Fleet},
	{Path: "HostConfig.DnsSearch", Class: Fleet},
	{Path: "HostConfig.ExtraHosts", Class: Fleet},
	{Path: "HostConfig.GroupAdd", Class: Node},
	{Path: "HostConfig.IpcMode", Class: Node},
	{Path: "HostConfig.Cgroup", Class: Refused, Why: "sharing another container's control group is"},
	{Path: "HostConfig.Links", Class: Refused, Why: "links in the default network are", Asks: linksByDefault},
	{Path: "HostConfig.OomScoreAdj", Class: Node},
	{Path: "HostConfig.PidMode", Class: Node},
	{Path: "HostConfig.Privileged", Class: Node},
	{Path: "HostConfig.PublishAllPorts", Class: Fleet},
	{Path: "HostConfig.ReadonlyRootfs", Class: Node},
	{Path: "HostConfig.SecurityOpt", Class: Node},
	{Path: "HostConfig.StorageOpt", Class: Refused, Why: "storage options are"},
	{Path: "HostConfig.Tmpfs", Class: Node},
	{Path: "HostConfig.UTSMode", Class: Node},
	{Path: "HostConfig.UsernsMode", Class: Refused, Why: "user namespaces are", But: []string{"host"}},
	{Path: "HostConfig.ShmSize", Class: Node},
	{Path: "HostConfig.Sysctls", Class: Node},
	{Path: "HostConfig.Runtime", Class: Fleet},
	{Path: "HostConfig.Umask", Class: Inert, Why: "docker's daemon does nothing with it"},
	{Path: "HostConfig.Isolation", Class: Fleet},
	{Path: "HostConfig.MaskedPaths", Class: Node},
	{Path: "HostConfig.ReadonlyPaths", Class: Node},
	{Path: "HostConfig.Init", Class: Refused, Why: "an init process is"},
}

var createResources = []create{
	{Path: "HostConfig.CpuShares", Class: Node},
	{Path: "HostConfig.Memory", Class: Node},
	{Path: "HostConfig.NanoCpus", Class: Node},
	{Path: "HostConfig.CgroupParent", Class: Refused, Why: "a parent control group is"},
	{Path: "HostConfig.BlkioWeight", Class: Refused, Why: "a weight of block I/O is"},
	{Path: "HostConfig.BlkioWeightDevice", Class: Refused, Why: "a weight of block I/O is"},
	{Path: "HostConfig.BlkioDeviceReadBps", Class: Refused, Why: "a limit of block I/O is"},
	{Path: "HostConfig.BlkioDeviceWriteBps", Class: Refused, Why: "a limit of block I/O is"},
	{Path: "HostConfig.BlkioDeviceReadIOps", Class: Refused, Why: "a limit of block I/O is"},
	{Path: "HostConfig.BlkioDeviceWriteIOps", Class: Refused, Why: "a limit of block I/O is"},
	{Path: "HostConfig.CpuPeriod", Class: Node},
	{Path: "HostConfig.CpuQuota", Class: Node},
	{Path: "HostConfig.CpuRealtimePeriod", Class: Refused, Why: "real-time scheduling is"},
	{Path: "HostConfig.CpuRealtimeRuntime", Class: Refused, Why: "real-time scheduling is"},
	{Path: "HostConfig.CpusetCpus", Class: Node},
	{Path: "HostConfig.CpusetMems", Class: Node},
	{Path: "HostConfig.Devices[].PathOnHost", Class: Node},
	{Path: "HostConfig.Devices[].PathInContainer", Class: Node},
	{Path: "HostConfig.Devices[].CgroupPermissions", Class: Node},
	{Path: "HostConfig.DeviceCgroupRules", Class: Node},
	{Path: "HostConfig.DeviceRequests", Class: Refused, Why: "requests for devices are"},
	{Path: "HostConfig.MemoryReservation", Class: Node},
	{Path: "HostConfig.MemorySwap", Class: Node},
	{Path: "HostConfig.MemorySwappiness", Class: Node},
	{Path: "HostConfig.OomKillDisable", Class: Node},
	{Path: "HostConfig.PidsLimit", Class: Node},
	{Path: "HostConfig.Ulimits[].Name", Class: Node},
	{Path: "HostConfig.Ulimits[].Hard", Class: Node},
	{Path: "HostConfig.Ulimits[].Soft", Class: Node},
	{Path: "HostConfig.CpuCount", Class: Inert, Why: "Windows"},
	{Path: "HostConfig.CpuPercent", Class: Inert, Why: "Windows; docker on Linux warns"},
	{Path: "HostConfig.IOMaximumIOps", Class: Refused, Why: "a maximum of I/O on Windows' system drive is"},
	{Path: "HostConfig.IOMaximumBandwidth", Class: Refused, Why: "a maximum of I/O on Windows' system drive is"},
}

var createMounts = []create{
	{Path: "HostConfig.Mounts[].Type", Class: Node},
	{Path: "HostConfig.Mounts[].Source", Class: Node},
	{Path: "HostConfig.Mounts[].Target", Class: Node},
	{Path: "HostConfig.Mounts[].ReadOnly", Class: Node},
	{Path: "HostConfig.Mounts[].Consistency", Class: Inert, Why: "for Docker Desktop; docker's daemon does nothing with it"},
	{Path: "HostConfig.Mounts[].BindOptions.Propagation", Class: Node},
	{Path: "HostConfig.Mounts[].BindOptions.NonRecursive", Class: Node},
	{Path: "HostConfig.Mounts[].BindOptions.CreateMountpoint", Class: Node},
	{Path: "HostConfig.Mounts[].BindOptions.ReadOnlyNonRecursive", Class: Node},
	{Path: "HostConfig.Mounts[].BindOptions.ReadOnlyForceRecursive", Class: Node},
	{Path: "HostConfig.Mounts[].VolumeOptions.NoCopy", Class: Fleet},
	{Path: "HostConfig.Mounts[].VolumeOptions.Labels", Class: Fleet},
	{Path: "HostConfig.Mounts[].VolumeOptions.Subpath", Class: Fleet},
	{Path: "HostConfig.Mounts[].VolumeOptions.DriverConfig.Name", Class: Refused, Why: "volume drivers are", But: []string{"local"}},
	{Path: "HostConfig.Mounts[].VolumeOptions.DriverConfig.Options", Class: Fleet},
	{Path: "HostConfig.Mounts[].ImageOptions", Class: Refused, Why: "mounts of images are"},
	{Path: "HostConfig.Mounts[].TmpfsOptions.SizeBytes", Class: Node},
	{Path: "HostConfig.Mounts[].TmpfsOptions.Mode", Class: Node},
	{Path: "HostConfig.Mounts[].TmpfsOptions.Options", Class: Node},
	{Path: "HostConfig.Mounts[].ClusterOptions", Class: Refused, Why: "volumes of Swarm are"},
}

var createEndpoints = endpoint[container.CreateRequest]("NetworkingConfig.EndpointsConfig.*")

func checksHealth(h *container.HealthConfig) bool {
	return h != nil && len(h.Test) > 0 && !slices.Equal(h.Test, []string{"NONE"})
}
