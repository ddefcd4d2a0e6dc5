//go:build cgo

package native

import (
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// update changes resources as `runc update --resources` does: what is not named stays,
// except for limits that the runtime has always taken as a whole (cpusets, pids).
func update(to *cgroups.Resources, r *specs.LinuxResources) {
	if b := r.BlockIO; b != nil {
		updateBlockIO(to, b)
	}
	if c := r.CPU; c != nil {
		updateCPU(to, c)
	}
	if m := r.Memory; m != nil {
		if m.Limit != nil {
			to.Memory = *m.Limit
			if *m.Limit == -1 && m.Swap == nil {
				to.MemorySwap = 0 // no swap limit without a limit
			}
		}
		set(&to.MemoryReservation, m.Reservation)
		set(&to.MemorySwap, m.Swap)
		set(&to.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
	}
	if p := r.Pids; p != nil {
		to.PidsLimit = p.Limit
	}
	if r.Unified != nil {
		to.Unified = r.Unified
	}
}

func updateCPU(to *cgroups.Resources, c *specs.LinuxCPU) {
	var period uint64
	var quota int64
	set(&period, c.Period)
	set(&quota, c.Quota)
	if (period == 0) == (quota == 0) {
		to.CpuPeriod, to.CpuQuota = period, quota
	} else if period != 0 { // the other one stays
		to.CpuPeriod = period
	} else {
		to.CpuQuota = quota
	}
	to.CpuBurst = c.Burst
	shares := c.Shares
	if c.Idle != nil && shares == nil {
		shares = new(uint64) // else the kernel refuses the weight
	}
	if shares != nil {
		to.CpuShares = *shares
		to.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*shares)
	}
	set(&to.CpuRtPeriod, c.RealtimePeriod)
	set(&to.CpuRtRuntime, c.RealtimeRuntime)
	to.CpusetCpus, to.CpusetMems, to.CPUIdle = c.Cpus, c.Mems, c.Idle
}

func updateBlockIO(to *cgroups.Resources, b *specs.LinuxBlockIO) {
	set(&to.BlkioWeight, b.Weight)
	set(&to.BlkioLeafWeight, b.LeafWeight)
	for _, d := range b.WeightDevice {
		var weight, leaf uint16
		set(&weight, d.Weight)
		set(&leaf, d.LeafWeight)
		w := cgroups.NewWeightDevice(d.Major, d.Minor, weight, leaf)
		to.BlkioWeightDevice = put(to.BlkioWeightDevice, w, w.BlockIODevice, func(x *cgroups.WeightDevice) cgroups.BlockIODevice { return x.BlockIODevice })
	}
	for _, l := range []struct {
		to   *[]*cgroups.ThrottleDevice
		from []specs.LinuxThrottleDevice
	}{
		{&to.BlkioThrottleReadBpsDevice, b.ThrottleReadBpsDevice}, {&to.BlkioThrottleWriteBpsDevice, b.ThrottleWriteBpsDevice},
		{&to.BlkioThrottleReadIOPSDevice, b.ThrottleReadIOPSDevice}, {&to.BlkioThrottleWriteIOPSDevice, b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range l.from {
			t := cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate)
			*l.to = put(*l.to, t, t.BlockIODevice, func(x *cgroups.ThrottleDevice) cgroups.BlockIODevice { return x.BlockIODevice })
		}
	}
}

// put replaces the element of the same device, or appends one, in a new list.
func put[T any](in []*T, x *T, device cgroups.BlockIODevice, of func(*T) cgroups.BlockIODevice) []*T {
	out := append([]*T(nil), in...)
	for i, y := range out {
		if of(y) == device {
			out[i] = x
			return out
		}
	}
	return append(out, x)
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}
