package command

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// free are a create's fields that make nobody root on a host.
var free = strings.Fields(`ContainerIDFile LogConfig PortBindings RestartPolicy AutoRemove ConsoleSize CapDrop DNS DNSOptions DNSSearch ExtraHosts GroupAdd Links
	PublishAllPorts ReadonlyRootfs StorageOpt Tmpfs ShmSize Sysctls Umask Isolation Init
	CPUShares Memory NanoCPUs BlkioWeight BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps CPUPeriod CPUQuota
	CPURealtimePeriod CPURealtimeRuntime CpusetCpus CpusetMems MemoryReservation MemorySwap MemorySwappiness OomKillDisable PidsLimit Ulimits
	CPUCount CPUPercent IOMaximumIOps IOMaximumBandwidth`)

// A field that docker adds is guarded or free before a role may use it.
func TestEveryFieldOfACreateIsGuardedOrFree(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range reflect.VisibleFields(reflect.TypeFor[container.HostConfig]()) {
		if f.Anonymous {
			continue
		}
		seen[f.Name] = true
		if (guarded[f.Name] != nil) == slices.Contains(free, f.Name) {
			t.Errorf("field %s is to be guarded or free", f.Name)
		}
	}
	for name := range guarded {
		if !seen[name] {
			t.Errorf("docker has no field %s", name)
		}
	}
}

func TestARoleThatMayNotBeRootIsNotRootByACreate(t *testing.T) {
	f := current(t, "a")
	f.ok(&dv1.Command{Of: &dv1.Command_PutIdentity{PutIdentity: &dv1.PutIdentity{Identity: &dv1.Identity{Uri: "spiffe://fleet/user/u", Roles: []string{"user"}}}}})
	f.ok(&dv1.Command{Of: &dv1.Command_UpdateNode{UpdateNode: &dv1.UpdateNode{NodeId: "a", Roles: map[string]string{"0": "user", "7": "admin"}}}})
	n := 0
	try := func(who, host string) *dv1.Error {
		n++
		c := create(fmt.Sprint("c", n), `{"Image":"alpine","HostConfig":{`+host+`}}`)
		c.Principal = who
		return f.do(c).Error
	}
	users := []string{"spiffe://fleet/user/u", "spiffe://fleet/node/n0/uid/0"}
	admins := []string{"spiffe://fleet/user/admin", "spiffe://fleet/node/n0/uid/7", "spiffe://fleet/controller/c1/uid/0"}
	for field, uses := range map[string][]string{
		"Binds": {`"Binds":["/:/host"]`, `"Binds":["v:/v","/run/drover:/s:ro"]`}, "Mounts": {`"Mounts":[{"Type":"bind","Source":"/","Target":"/x"}]`,
			`"Mounts":[{"Type":"volume","Target":"/x","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"o":"bind","device":"/"}}}}]`, `"Mounts":[{"Type":"npipe"}]`},
		"VolumesFrom": {`"VolumesFrom":["x"]`}, "VolumeDriver": {`"VolumeDriver":"nfs"`}, "Privileged": {`"Privileged":true`}, "CapAdd": {`"CapAdd":["NET_ADMIN"]`},
		"Devices": {`"Devices":[{"PathOnHost":"/dev/sda"}]`}, "DeviceCgroupRules": {`"DeviceCgroupRules":["a *:* rwm"]`}, "DeviceRequests": {`"DeviceRequests":[{"Count":-1}]`},
		"NetworkMode": {`"NetworkMode":"host"`, `"NetworkMode":"container:x"`}, "PidMode": {`"PidMode":"host"`, `"PidMode":"container:x"`}, "IpcMode": {`"IpcMode":"host"`},
		"UTSMode": {`"UTSMode":"host"`}, "UsernsMode": {`"UsernsMode":"host"`}, "CgroupnsMode": {`"CgroupnsMode":"host"`}, "Cgroup": {`"Cgroup":"x"`}, "CgroupParent": {`"CgroupParent":"/x"`},
		"OomScoreAdj": {`"OomScoreAdj":-1`}, "Runtime": {`"Runtime":"kata"`, `"Runtime":"/bin/kata"`}, "Annotations": {`"Annotations":{"io.containerd.runc.v2.group":"x"}`}, "MaskedPaths": {`"MaskedPaths":[]`}, "ReadonlyPaths": {`"ReadonlyPaths":[]`},
		"SecurityOpt": {`"SecurityOpt":["seccomp=unconfined"]`, `"SecurityOpt":["no-new-privileges","apparmor=unconfined"]`, `"SecurityOpt":["no-new-privileges=false"]`},
	} {
		if guarded[field] == nil {
			t.Errorf("%s is not guarded", field)
		}
		for _, use := range uses {
			for _, who := range users {
				if e := try(who, use); e.GetKind() != dv1.Error_FORBIDDEN || !strings.Contains(e.GetMessage(), "HostConfig."+field) || !strings.Contains(e.GetMessage(), "the role user") {
					t.Errorf("%s with %s: %v", who, use, e)
				}
			}
			for _, who := range admins {
				if e := try(who, use); e.GetKind() == dv1.Error_FORBIDDEN {
					t.Errorf("%s with %s: %v", who, use, e)
				}
			}
		}
	}
	for _, use := range []string{``, `"Binds":["vol:/v"]`, `"Mounts":[{"Type":"tmpfs","Target":"/x"},{"Type":"volume","Source":"vol","Target":"/y"}]`, `"SecurityOpt":["no-new-privileges"]`,
		`"NetworkMode":"bridge","PidMode":"","IpcMode":"private","CapDrop":["ALL"],"Memory":10000000,"PortBindings":{"80/tcp":[{"HostPort":"8080"}]},"Runtime":"runc"`, `"Runtime":"drover"`} {
		for _, who := range users {
			if e := try(who, use); e != nil {
				t.Errorf("%s with %s: %v", who, use, e)
			}
		}
	}
	if e := try(users[0], `"Binds":["/:/host"]`); !strings.Contains(e.GetMessage(), "is refused: the role user may not be root on a host, as") {
		t.Errorf("it says %q", e.GetMessage())
	}
	if d := guarded["Mounts"]; d(&container.HostConfig{}) {
		t.Error("no mounts are refused")
	}
}
