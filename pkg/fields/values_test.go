package fields

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

func decode(t *testing.T, body string) *container.CreateRequest {
	t.Helper()
	r := &container.CreateRequest{}
	if err := json.Unmarshal([]byte(body), r); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return r
}

func TestValues(t *testing.T) {
	for _, c := range []struct {
		body  string
		field string // "": it passes
		words string // docker's, or whether it is not available yet
	}{
		{body: `{}`},
		{body: `{"WorkingDir":"/a","StopSignal":"SIGTERM","Env":["A","A=b","A="],"Hostname":"h"}`},
		{`{"WorkingDir":"a"}`, "WorkingDir", "the working directory 'a' is invalid, it needs to be an absolute path"},
		{`{"Hostname":"` + strings.Repeat("h", 65) + `"}`, "Hostname", `is too long (maximum 64 bytes)`},
		{`{"StopSignal":"SIGNOTHING"}`, "StopSignal", "invalid signal: SIGNOTHING"},
		{`{"Env":["A=b","=c"]}`, "Env", "invalid environment variable: =c"},
		{`{"Env":[""]}`, "Env", "invalid environment variable: "},

		{body: `{"Volumes":{"/data":{},"/t/":{},"/b":{}},"HostConfig":{"Binds":["/x:/b:ro"],"Tmpfs":{"/t":""},"Mounts":[{"Type":"bind","Source":"/x","Target":"/data"}]}}`},
		{body: `{"Volumes":{"/data":{}},"HostConfig":{"Binds":["/a","data:/b:ro,nocopy"],"VolumesFrom":["web:ro"]}}`},

		{body: `{"HostConfig":{"RestartPolicy":{"Name":"no"}}}`},
		{body: `{"HostConfig":{"RestartPolicy":{"MaximumRetryCount":3}}}`},
		{`{"HostConfig":{"RestartPolicy":{"Name":"always"}}}`, "HostConfig.RestartPolicy.Name", "restart policies are not available"},
		{`{"HostConfig":{"RestartPolicy":{"Name":"sometimes"}}}`, "HostConfig.RestartPolicy", "invalid restart policy: unknown policy 'sometimes'"},
		{`{"HostConfig":{"RestartPolicy":{"Name":"no","MaximumRetryCount":3}}}`, "HostConfig.RestartPolicy", "maximum retry count can only be used with 'on-failure'"},
		{body: `{"HostConfig":{"LogConfig":{"Type":"json-file","Config":{}}}}`},
		{body: `{"HostConfig":{"LogConfig":{"Type":"local"}}}`},
		{`{"HostConfig":{"LogConfig":{"Type":"none"}}}`, "HostConfig.LogConfig.Type", "a container without a log is not available"},
		{`{"HostConfig":{"LogConfig":{"Type":"fluentd"}}}`, "HostConfig.LogConfig.Type", "logger: no log driver named 'fluentd' is registered"},
		{`{"HostConfig":{"LogConfig":{"Config":{"max-size":"1m"}}}}`, "HostConfig.LogConfig.Config", "options of a log driver are not available"},
		{body: `{"HostConfig":{"Runtime":"runc"}}`},
		{body: `{"HostConfig":{"Runtime":"drover"}}`},
		{body: `{"HostConfig":{"Runtime":"crun"}}`},
		{body: `{"HostConfig":{"Runtime":"/usr/local/bin/kata"}}`},
		{`{"HostConfig":{"Runtime":"bin/kata"}}`, "HostConfig.Runtime", "unknown or invalid runtime name: bin/kata"},
		{`{"HostConfig":{"Runtime":"kata"}}`, "HostConfig.Runtime", "unknown or invalid runtime name: kata"},
		{body: `{"HostConfig":{"Isolation":"default"}}`},
		{`{"HostConfig":{"Isolation":"hyperv"}}`, "HostConfig.Isolation", "invalid isolation 'hyperv' on linux"},
		{body: `{"HostConfig":{"SecurityOpt":["no-new-privileges","seccomp=unconfined","apparmor=docker-default"]}}`},
		{`{"HostConfig":{"SecurityOpt":["nonsense=1"]}}`, "HostConfig.SecurityOpt", `invalid --security-opt 2: "nonsense=1"`},
		{body: `{"HostConfig":{"CapAdd":["ALL","net_admin","CAP_SYS_PTRACE"],"CapDrop":["all","CHOWN"]}}`},
		{`{"HostConfig":{"CapAdd":["FLY"]}}`, "HostConfig.CapAdd", `invalid CapAdd: unknown capability: "CAP_FLY"`},
		{`{"HostConfig":{"CapDrop":["cap_fly"]}}`, "HostConfig.CapDrop", `invalid CapDrop: unknown capability: "CAP_FLY"`},
		{body: `{"HostConfig":{"Annotations":{"com.example.a":"b"}}}`},
		{`{"HostConfig":{"Annotations":{"":"b"}}}`, "HostConfig.Annotations", "the empty string is not permitted"},
		{`{"HostConfig":{"Annotations":{"io.containerd.runc.v2.group":"x"}}}`, "HostConfig.Annotations", "io.containerd.runc.v2.group"},
		{`{"HostConfig":{"Annotations":{"io.kubernetes.cri.sandbox-id":"x"}}}`, "HostConfig.Annotations", "io.kubernetes.cri.sandbox-id"},
		{`{"HostConfig":{"Annotations":{"io.drover.task":"x"}}}`, "HostConfig.Annotations", "io.drover.task"},
		{body: `{"HostConfig":{"ExtraHosts":["a:192.0.2.1","b:::1","c:host-gateway"]}}`},
		{`{"HostConfig":{"ExtraHosts":["a"]}}`, "HostConfig.ExtraHosts", `bad format for add-host: "a"`},
		{`{"HostConfig":{"ExtraHosts":["a:b"]}}`, "HostConfig.ExtraHosts", `invalid IP address in add-host: "b"`},
		{`{"HostConfig":{"OomScoreAdj":1001}}`, "HostConfig.OomScoreAdj", "Invalid value 1001, range for oom score adj is [-1000, 1000]"},
		{`{"HostConfig":{"ShmSize":-1}}`, "HostConfig.ShmSize", "SHM size can not be less than 0"},

		{body: `{"HostConfig":{"IpcMode":"none","PidMode":"host","UTSMode":"host","CgroupnsMode":"private","UsernsMode":"host"}}`},
		{body: `{"HostConfig":{"IpcMode":"shareable","CgroupnsMode":"host"}}`},
		{`{"HostConfig":{"IpcMode":"container:c"}}`, "HostConfig.IpcMode", "sharing another container's IPC namespace is not available"},
		{`{"HostConfig":{"IpcMode":"x"}}`, "HostConfig.IpcMode", "invalid IPC mode: x"},
		{`{"HostConfig":{"PidMode":"container:c"}}`, "HostConfig.PidMode", "sharing another container's PID namespace is not available"},
		{`{"HostConfig":{"PidMode":"x"}}`, "HostConfig.PidMode", "invalid PID mode: x"},
		{`{"HostConfig":{"UTSMode":"x"}}`, "HostConfig.UTSMode", "invalid UTS mode: x"},
		{`{"HostConfig":{"CgroupnsMode":"x"}}`, "HostConfig.CgroupnsMode", "invalid cgroup namespace mode: x"},
		{`{"HostConfig":{"UsernsMode":"private"}}`, "HostConfig.UsernsMode", "user namespaces are not available"},
		{`{"HostConfig":{"Cgroup":"container:c"}}`, "HostConfig.Cgroup", "is not available"},

		{body: `{"NetworkingConfig":{"EndpointsConfig":{"bridge":null}}}`},
		{body: `{"HostConfig":{"NetworkMode":"bridge"},"NetworkingConfig":{"EndpointsConfig":{"default":{"NetworkID":"x","IPAMConfig":{}}}}}`},
		{body: `{"HostConfig":{"NetworkMode":"none"},"NetworkingConfig":{"EndpointsConfig":{"none":{}}}}`},
		{body: `{"HostConfig":{"NetworkMode":"container:c"}}`},
		{body: `{"HostConfig":{"NetworkMode":"container:c"},"NetworkingConfig":{"EndpointsConfig":{"container:c":{}}}}`},
		{`{"HostConfig":{"NetworkMode":"container:"}}`, "HostConfig.NetworkMode", "invalid network mode: invalid container format container:<name|id>"},
		{`{"HostConfig":{"NetworkMode":"container"}}`, "HostConfig.NetworkMode", "invalid network mode: invalid container format container:<name|id>"},
		{`{"Hostname":"h","HostConfig":{"NetworkMode":"container:c"}}`, "Hostname", "conflicting options: hostname and the network mode"},
		{`{"HostConfig":{"NetworkMode":"container:c","Links":["db"]}}`, "HostConfig.Links", "conflicting options: container type network can't be used with links"},
		{`{"HostConfig":{"NetworkMode":"container:c","Dns":["192.0.2.1"]}}`, "HostConfig.Dns", "conflicting options: dns and the network mode"},
		{`{"HostConfig":{"NetworkMode":"container:c","ExtraHosts":["a:192.0.2.1"]}}`, "HostConfig.ExtraHosts", "conflicting options: custom host-to-IP mapping and the network mode"},
		{`{"HostConfig":{"NetworkMode":"container:c","PortBindings":{"80/tcp":[{}]}}}`, "HostConfig.PortBindings", "conflicting options: port publishing and the container type network mode"},
		{`{"HostConfig":{"NetworkMode":"container:c","PublishAllPorts":true}}`, "HostConfig.PortBindings", "conflicting options: port publishing and the container type network mode"},
		{`{"ExposedPorts":{"80/tcp":{}},"HostConfig":{"NetworkMode":"container:c"}}`, "ExposedPorts", "conflicting options: port exposing and the container type network mode"},
		{`{"HostConfig":{"NetworkMode":"container:c"},"NetworkingConfig":{"EndpointsConfig":{"mine":{}}}}`, "NetworkingConfig.EndpointsConfig.mine", "conflicting options: cannot attach both user-defined and non-user-defined network-modes"},
		{`{"HostConfig":{"NetworkMode":"container:c"},"NetworkingConfig":{"EndpointsConfig":{"container:c":{"MacAddress":"02:00:00:00:00:01"}}}}`, "NetworkingConfig.EndpointsConfig.container:c.MacAddress", "conflicting options: mac-address and the network mode"},
		{`{"HostConfig":{"NetworkMode":"container:c"},"NetworkingConfig":{"EndpointsConfig":{"container:c":{"IPAMConfig":{"IPv4Address":"10.0.0.9"}}}}}`, "NetworkingConfig.EndpointsConfig.container:c.IPAMConfig", "user-specified IP address is supported on user-defined networks only"},
		{body: `{"HostConfig":{"NetworkMode":"mine"}}`},
		{body: `{"HostConfig":{"NetworkMode":"mine"},"NetworkingConfig":{"EndpointsConfig":{"mine":{"Aliases":["a"],"MacAddress":"02:42:ac:11:00:02","IPAMConfig":{"IPv4Address":"10.0.0.9"}},"other":null}}}`},
		{body: `{"NetworkingConfig":{"EndpointsConfig":{"bridge":{},"mine":{}}}}`},
		{`{"HostConfig":{"NetworkMode":"mine"},"NetworkingConfig":{"EndpointsConfig":{"bridge":{},"mine":{}}}}`, "NetworkingConfig.EndpointsConfig.bridge", "a network of docker's own beside"},
		{`{"HostConfig":{"NetworkMode":"host"},"NetworkingConfig":{"EndpointsConfig":{"bridge":{}}}}`, "NetworkingConfig.EndpointsConfig.bridge", "a network of docker's own beside"},
		{`{"HostConfig":{"NetworkMode":"host"},"NetworkingConfig":{"EndpointsConfig":{"mine":{}}}}`, "NetworkingConfig.EndpointsConfig.mine", "conflicting options: cannot attach both user-defined"},
		{`{"NetworkingConfig":{"EndpointsConfig":{"bridge":{"MacAddress":"02:42:ac:11:00:02"}}}}`, "NetworkingConfig.EndpointsConfig.bridge.MacAddress", "chosen MAC addresses in the default network are"},
		{`{"NetworkingConfig":{"EndpointsConfig":{"bridge":{"Aliases":["a"]}}}}`, "NetworkingConfig.EndpointsConfig.bridge.Aliases", "network-scoped aliases are only supported for user-defined networks"},
		{`{"NetworkingConfig":{"EndpointsConfig":{"default":{"IPAMConfig":{"IPv4Address":"10.0.0.9"}}}}}`, "NetworkingConfig.EndpointsConfig.default.IPAMConfig", "user-specified IP address is supported on user-defined networks only"},
		{`{"NetworkingConfig":{"EndpointsConfig":{"bridge":{"IPAMConfig":{"LinkLocalIPs":["169.254.1.1"]}}}}}`, "NetworkingConfig.EndpointsConfig.bridge.IPAMConfig.LinkLocalIPs", "chosen addresses in the default network are"},
		{`{"NetworkingConfig":{"EndpointsConfig":{"bridge":{"Links":["a"]}}}}`, "NetworkingConfig.EndpointsConfig.bridge.Links", "links in the default network are"},
		{`{"NetworkingConfig":{"EndpointsConfig":{"bridge":{"DriverOpts":{"a":"b"}}}}}`, "NetworkingConfig.EndpointsConfig.bridge.DriverOpts", "options of an endpoint in the default network are"},
		{body: `{"HostConfig":{"NetworkMode":"mine","Links":["db:database"]},"NetworkingConfig":{"EndpointsConfig":{"mine":{"Links":["db:database"]}}}}`},
		{`{"HostConfig":{"Links":["db"]}}`, "HostConfig.Links", "links in the default network are not available"},
		{`{"HostConfig":{"NetworkMode":"bridge","Links":["db"]}}`, "HostConfig.Links", "links in the default network are not available"},
		{`{"HostConfig":{"NetworkMode":"host","Links":["db"]}}`, "HostConfig.Links", "conflicting options: host type networking can't be used with links"},
		{body: `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080-8090"},{}],"53/udp":null}}}`},
		{`{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"eighty"}]}}}`, "HostConfig.PortBindings", `invalid port specification: "eighty"`},
		{`{"HostConfig":{"PortBindings":{"0/tcp":[{"HostPort":"80"}]}}}`, "HostConfig.PortBindings", `invalid port specification: "0/tcp"`},

		{body: `{"HostConfig":{"Memory":6291456,"MemorySwap":6291456,"MemoryReservation":6291456,"MemorySwappiness":0}}`},
		{body: `{"HostConfig":{"MemorySwap":-1,"MemorySwappiness":-1,"MemoryReservation":6291456}}`},
		{`{"HostConfig":{"Memory":1048576}}`, "HostConfig.Memory", "Minimum memory limit allowed is 6MB"},
		{`{"HostConfig":{"Memory":-1}}`, "HostConfig.Memory", "Minimum memory limit allowed is 6MB"},
		{`{"HostConfig":{"Memory":8388608,"MemorySwap":7340032}}`, "HostConfig.MemorySwap", "Minimum memoryswap limit should be larger than memory limit, see usage"},
		{`{"HostConfig":{"MemorySwap":8388608}}`, "HostConfig.MemorySwap", "You should always set the Memory limit when using Memoryswap limit, see usage"},
		{`{"HostConfig":{"MemorySwappiness":101}}`, "HostConfig.MemorySwappiness", "Invalid value: 101, valid memory swappiness range is 0-100"},
		{`{"HostConfig":{"MemorySwappiness":-2}}`, "HostConfig.MemorySwappiness", "Invalid value: -2"},
		{`{"HostConfig":{"MemoryReservation":1}}`, "HostConfig.MemoryReservation", "Minimum memory reservation allowed is 6MB"},
		{`{"HostConfig":{"Memory":8388608,"MemoryReservation":9437184}}`, "HostConfig.MemoryReservation", "Minimum memory limit can not be less than memory reservation limit, see usage"},
		{`{"HostConfig":{"NanoCpus":1,"CpuPeriod":1000}}`, "HostConfig.CpuPeriod", "Nano CPUs and CPU Period cannot both be set"},
		{`{"HostConfig":{"NanoCpus":1,"CpuQuota":1000}}`, "HostConfig.CpuQuota", "Nano CPUs and CPU Quota cannot both be set"},
		{`{"HostConfig":{"NanoCpus":-1}}`, "HostConfig.NanoCpus", "range of CPUs is from 0.01"},
		{`{"HostConfig":{"CpuShares":-1}}`, "HostConfig.CpuShares", "invalid CPU shares (-1): value must be a positive integer"},
		{`{"HostConfig":{"CpuPeriod":999}}`, "HostConfig.CpuPeriod", "CPU cfs period can not be less than 1ms"},
		{`{"HostConfig":{"CpuPeriod":1000001}}`, "HostConfig.CpuPeriod", "or larger than 1s"},
		{`{"HostConfig":{"CpuQuota":999}}`, "HostConfig.CpuQuota", "CPU cfs quota can not be less than 1ms"},
		{body: `{"HostConfig":{"CpuQuota":-1}}`},
		{`{"HostConfig":{"IOMaximumBandwidth":1}}`, "HostConfig.IOMaximumIOps", "Invalid QoS settings: linux does not support"},
		{body: `{"HostConfig":{"DeviceCgroupRules":["c 1:3 rwm","b *:* r","a 8:* m"]}}`},
		{`{"HostConfig":{"DeviceCgroupRules":["c 1:3 rwm","c 1:3"]}}`, "HostConfig.DeviceCgroupRules", "invalid device cgroup rule format: 'c 1:3'"},
		{`{"HostConfig":{"DeviceCgroupRules":["c 99999999999999999999:3 r"]}}`, "HostConfig.DeviceCgroupRules", "invalid major value in device cgroup rule format"},
		{`{"HostConfig":{"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}]}}`, "HostConfig.DeviceRequests", "requests for devices are not available"},
		{body: `{"HostConfig":{"Init":false,"OomKillDisable":false}}`},
		{`{"HostConfig":{"Init":true}}`, "HostConfig.Init", "an init process is not available"},

		{body: `{"HostConfig":{"Binds":["/a:/b","/a:/c:ro"],"Tmpfs":{"/t":"size=1m"}}}`},
		{`{"HostConfig":{"Binds":["/a:ro"]}}`, "HostConfig.Binds", "invalid volume specification: '/a:ro'"},
		{`{"HostConfig":{"Binds":[":/a"]}}`, "HostConfig.Binds", "invalid volume specification: ':/a'"},
		{`{"HostConfig":{"Binds":["data:/a:shared"]}}`, "HostConfig.Binds", "field BindOptions must not be specified"},
		{`{"HostConfig":{"Binds":["data:/a","/x:/a"]}}`, "HostConfig.Mounts[].Target", "Duplicate mount point: /a"},
		{`{"HostConfig":{"Tmpfs":{"/":""}}}`, "HostConfig.Tmpfs", "destination can't be '/'"},
		{`{"HostConfig":{"Tmpfs":{"t":""}}}`, "HostConfig.Tmpfs", "invalid mount path: 't' mount path must be absolute"},
		{body: `{"HostConfig":{"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","ReadOnly":true,"Consistency":"cached","BindOptions":{"Propagation":"rslave","NonRecursive":true}},{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"Mode":511}}]}}`},
		{`{"HostConfig":{"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","TmpfsOptions":{}}]}}`, "HostConfig.Mounts[].TmpfsOptions", `invalid mount config for type "bind": field TmpfsOptions must not be specified`},
		{`{"HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/b","BindOptions":{}}]}}`, "HostConfig.Mounts[].BindOptions", "field BindOptions must not be specified"},
		{`{"HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/b","ClusterOptions":{}}]}}`, "HostConfig.Mounts[].ClusterOptions", "field ClusterOptions must not be specified"},
		{`{"HostConfig":{"Mounts":[{"Type":"bind","Source":"/a"}]}}`, "HostConfig.Mounts[].Target", "field Target must not be empty"},
		{`{"HostConfig":{"Mounts":[{"Type":"bind","Source":"/a","Target":"/"}]}}`, "HostConfig.Mounts[].Target", "destination can't be '/'"},
		{`{"HostConfig":{"Mounts":[{"Type":"bind","Source":"/a","Target":"b"}]}}`, "HostConfig.Mounts[].Target", "mount path must be absolute"},
		{`{"HostConfig":{"Mounts":[{"Type":"bind","Target":"/b"}]}}`, "HostConfig.Mounts[].Source", "field Source must not be empty"},
		{`{"HostConfig":{"Mounts":[{"Type":"bind","Source":"a","Target":"/b"}]}}`, "HostConfig.Mounts[].Source", "invalid mount path: 'a' mount path must be absolute"},
		{`{"HostConfig":{"Mounts":[{"Type":"tmpfs","Source":"/a","Target":"/b"}]}}`, "HostConfig.Mounts[].Source", "field Source must not be specified"},
		{`{"HostConfig":{"Mounts":[{"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"Propagation":"x"}}]}}`, "HostConfig.Mounts[].BindOptions.Propagation", "invalid propagation mode: x"},
		{`{"HostConfig":{"Mounts":[{"Type":"npipe","Source":"/a","Target":"/b"}]}}`, "HostConfig.Mounts[].Type", "mount type unknown"},
		{body: `{"HostConfig":{"Mounts":[{"Type":"volume","Source":"v","Target":"/b","VolumeOptions":{"NoCopy":true,"Subpath":"a/b","Labels":{"x":"y"},"DriverConfig":{"Name":"local","Options":{"type":"tmpfs"}}}}]}}`},
		{`{"HostConfig":{"Mounts":[{"Type":"volume","Source":"v","Target":"/b","VolumeOptions":{"DriverConfig":{"Name":"rexray"}}}]}}`, "HostConfig.Mounts[].VolumeOptions.DriverConfig.Name", "volume drivers are not available"},
		{`{"HostConfig":{"Mounts":[{"Type":"volume","Source":"v","Target":"/b","VolumeOptions":{"Subpath":"../x"}}]}}`, "HostConfig.Mounts[].VolumeOptions.Subpath", "subpath must be a relative path within the volume"},
		{`{"HostConfig":{"VolumesFrom":["web:nocopy"]}}`, "HostConfig.VolumesFrom", "invalid mode: nocopy"},
		{`{"HostConfig":{"Mounts":[{"Type":"image","Source":"v","Target":"/b"}]}}`, "HostConfig.Mounts[].Type", "mounts of images are not available"},
		{`{"HostConfig":{"Mounts":[{"Type":"cluster","Source":"v","Target":"/b"}]}}`, "HostConfig.Mounts[].Type", "volumes of Swarm are not available"},
	} {
		_, err := CheckCreate(decode(t, c.body))
		var e *Error
		switch errors.As(err, &e); {
		case c.field == "" && err != nil:
			t.Errorf("%s: %v", c.body, err)
		case c.field != "" && (e == nil || e.Field != c.field || !strings.Contains(e.Message, c.words) || e.Unavailable != strings.HasSuffix(e.Message, "not available on this fleet yet")):
			t.Errorf("%s: %+v, want %s: %s", c.body, e, c.field, c.words)
		}
	}
}

func TestWarnings(t *testing.T) {
	for body, want := range map[string][]string{
		`{"Healthcheck":{"Test":["CMD","true"]}}`:                                {"health checks are not available on this fleet yet"},
		`{"Healthcheck":{"Test":["NONE"]}}`:                                      nil,
		`{"Healthcheck":{"Interval":1000000000}}`:                                nil, // of the image's check
		`{"HostConfig":{"OomKillDisable":true}}`:                                 {"OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."},
		`{"HostConfig":{"OomKillDisable":true,"Memory":8388608}}`:                nil,
		`{"HostConfig":{"CpuPercent":5,"CpuCount":1}}`:                           {"linux does not support CPU percent. Percent discarded."},
		`{"HostConfig":{"NetworkMode":"none","PortBindings":{"80/tcp":[{}]}}}`:   {"Published ports are discarded when using none network mode"},
		`{"NetworkDisabled":true,"HostConfig":{"PortBindings":{"80/tcp":[{}]}}}`: {"Published ports are discarded when using none network mode"},
		`{"HostConfig":{"NetworkMode":"host","PortBindings":{"80/tcp":[{}]}}}`:   {"Published ports are discarded when using host network mode"},
		`{"HostConfig":{"NetworkMode":"bridge","PortBindings":{"80/tcp":[{}]}}}`: nil,
	} {
		if got, err := CheckCreate(decode(t, body)); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", body, got, err, want)
		}
	}
}

func TestDeviceRule(t *testing.T) {
	any, eight := int64(-1), int64(8)
	d, err := DeviceRule("b 8:* rw")
	if err != nil || !d.Allow || d.Type != "b" || *d.Major != eight || *d.Minor != any || d.Access != "rw" {
		t.Errorf("%+v, %v", d, err)
	}
	for _, bad := range []string{"", "c 1:1  rwm", " c 1:1 rwm", "c 1:1 rwm ", "d 1:1 r", "c 1:1 rwmx", "c 1 r", "c 1:99999999999999999999 r"} {
		if d, err := DeviceRule(bad); err == nil {
			t.Errorf("%q is %+v", bad, d)
		}
	}
}

// Who is in the node's own network, by what the request names.
func TestBridged(t *testing.T) {
	for body, want := range map[string]bool{
		`{}`: true, `{"HostConfig":{}}`: true, `{"HostConfig":{"NetworkMode":"default"}}`: true, `{"HostConfig":{"NetworkMode":"bridge"}}`: true,
		`{"HostConfig":{"NetworkMode":"mine"}}`: false, `{"HostConfig":{"NetworkMode":"host"}}`: false, `{"HostConfig":{"NetworkMode":"none"}}`: false, `{"HostConfig":{"NetworkMode":"container:x"}}`: false,
		`{"NetworkDisabled":true}`: false, `{"NetworkingConfig":{"EndpointsConfig":{"mine":{}}}}`: false,
		`{"NetworkingConfig":{"EndpointsConfig":{"mine":{},"bridge":{}}}}`: true, `{"NetworkingConfig":{"EndpointsConfig":{"default":null}}}`: true,
	} {
		var r container.CreateRequest
		if err := json.Unmarshal([]byte(body), &r); err != nil {
			t.Fatal(err)
		}
		if got := Bridged(&r); got != want {
			t.Errorf("%s: %v", body, got)
		}
	}
}
