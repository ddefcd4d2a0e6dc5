package fields

import (
	"fmt"
	"regexp"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var deviceRule = regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

// DeviceRule parses a rule of HostConfig.DeviceCgroupRules, "c 1:3 rwm", where * stands
// for any number.
func DeviceRule(s string) (specs.LinuxDeviceCgroup, error) {
	m := deviceRule.FindStringSubmatch(s)
	if m == nil {
		return specs.LinuxDeviceCgroup{}, fmt.Errorf("invalid device cgroup rule format: '%s'", s)
	}
	d := specs.LinuxDeviceCgroup{Allow: true, Type: m[1], Access: m[4]}
	for i, to := range []**int64{&d.Major, &d.Minor} {
		n := int64(-1) // any
		if text := m[2+i]; text != "*" {
			var err error
			if n, err = strconv.ParseInt(text, 10, 64); err != nil {
				return specs.LinuxDeviceCgroup{}, fmt.Errorf("invalid %s value in device cgroup rule format: '%s'", []string{"major", "minor"}[i], s)
			}
		}
		*to = &n
	}
	return d, nil
}
