package cgroup

import (
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
)

// tick is the unit of cpuacct.stat: USER_HZ is 100 on all platforms that Linux runs
// containers on.
const tick = uint64(10 * time.Millisecond)

// legacyMemory are the names of memory.stat that docker reports of version 1, each also
// with "total_" before it, of which the CLI needs one.
var legacyMemory = []string{"cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault",
	"inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"}

// legacy reads a cgroup of version 1, as in the kernel's admin-guide/cgroup-v1.
func (r *reader) legacy(s *container.StatsResponse) {
	for each := range strings.FieldsSeq(r.text("cpuacct", "cpuacct.usage_percpu")) {
		n := r.parse(each)
		s.CPUStats.CPUUsage.PercpuUsage = append(s.CPUStats.CPUUsage.PercpuUsage, n)
		s.CPUStats.CPUUsage.TotalUsage += n
	}
	spent := r.pairs("cpuacct", "cpuacct.stat")
	s.CPUStats.CPUUsage.UsageInUsermode, s.CPUStats.CPUUsage.UsageInKernelmode = spent["user"]*tick, spent["system"]*tick
	throttled := r.pairs("cpu", "cpu.stat")
	s.CPUStats.ThrottlingData = container.ThrottlingData{Periods: throttled["nr_periods"], ThrottledPeriods: throttled["nr_throttled"], ThrottledTime: throttled["throttled_time"]}

	if all := r.pairs("memory", "memory.stat"); len(all) > 0 {
		kept := map[string]uint64{"hierarchical_memory_limit": all["hierarchical_memory_limit"], "hierarchical_memsw_limit": all["hierarchical_memsw_limit"]}
		for _, name := range legacyMemory {
			kept[name], kept["total_"+name] = all[name], all["total_"+name]
		}
		s.MemoryStats = container.MemoryStats{Stats: kept, Usage: r.number("memory", "memory.usage_in_bytes", 0), MaxUsage: r.number("memory", "memory.max_usage_in_bytes", 0),
			Failcnt: r.number("memory", "memory.failcnt", 0), Limit: r.number("memory", "memory.limit_in_bytes", 0)}
	}
	s.PidsStats = container.PidsStats{Current: r.number("pids", "pids.current", 0), Limit: r.number("pids", "pids.max", 0)}
	s.BlkioStats.IoServiceBytesRecursive = r.operations("blkio.throttle.io_service_bytes_recursive")
	s.BlkioStats.IoServicedRecursive = r.operations("blkio.throttle.io_serviced_recursive")
}

// operations reads lines of "8:0 Read 4096"; the last one is a total.
func (r *reader) operations(name string) []container.BlkioStatEntry {
	out := []container.BlkioStatEntry{}
	for line := range strings.Lines(r.text("blkio", name)) {
		if f := strings.Fields(line); len(f) == 3 {
			e := r.device(f[0])
			e.Op, e.Value = f[1], r.parse(f[2])
			out = append(out, e)
		}
	}
	return out
}
