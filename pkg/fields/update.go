package fields

import (
	"strings"

	"github.com/moby/moby/api/types/container"
)

// Update lists the fields of POST /containers/{id}/update, which is not carried out yet.
// Its rows apply once containers can be updated.
var Update = table(updates())

func updates() []Row[container.UpdateConfig] {
	rows := []Row[container.UpdateConfig]{
		{Path: "RestartPolicy.Name", Class: Refused, Why: "restart policies are", But: []string{"no"}},
		{Path: "RestartPolicy.MaximumRetryCount", Class: Inert, Why: "of a policy, which is refused"},
	}
	for _, r := range createResources {
		path := strings.TrimPrefix(r.Path, "HostConfig.")
		switch {
		case r.Class == Inert:
			rows = append(rows, Row[container.UpdateConfig]{Path: path, Class: Inert, Why: r.Why})
		case strings.HasPrefix(path, "Devices"), strings.HasPrefix(path, "DeviceCgroupRules"), strings.HasPrefix(path, "DeviceRequests"), strings.HasPrefix(path, "Ulimits"):
			rows = append(rows, Row[container.UpdateConfig]{Path: path, Class: Inert, Why: "docker sets it at create only, and ignores it in an update"})
		default:
			rows = append(rows, Row[container.UpdateConfig]{Path: path, Class: Refused, Why: "changing it after the create is"})
		}
	}
	return rows
}
