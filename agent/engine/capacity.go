package engine

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/version"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/agent/images"
	"github.com/drover/drover/agent/shim/shimapi"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// Host describes this host as far as that needs no containerd; drover is the version of
// this build.
func Host(ctx context.Context, drover string) *dv1.Capacity {
	c := &dv1.Capacity{
		NanoCpus: int64(runtime.NumCPU()) * 1e9, Memory: memTotal(), Arch: runtime.GOARCH, Os: runtime.GOOS,
		OsName: osName(), CgroupDriver: "cgroupfs", CgroupVersion: "1", Drover: drover, Runc: shimapi.RuncVersion, Runtimes: runtimesHere(ctx), Storage: images.Snapshotter,
		Containerd: version.Version,
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		c.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if unified() {
		c.CgroupVersion = "2"
	}
	return c
}

// unified reports whether this host has cgroup v2 only.
func unified() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

func memTotal() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) >= 2 && f[0] == "MemTotal:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

func osName() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return "Linux"
}
