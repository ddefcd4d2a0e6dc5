// Package securityopt parses docker's --security-opt. Whether a node supports the
// options is up to the node.
package securityopt

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// Values of Options.Seccomp and AppArmor with a meaning of their own.
const (
	Unconfined      = "unconfined"
	BuiltinSeccomp  = "builtin"        // the default profile, by name
	DefaultAppArmor = "docker-default" // the default profile
)

// Options are the options of one container.
type Options struct {
	NoNewPrivileges bool
	Seccomp         string // "", Unconfined, BuiltinSeccomp, or a profile in JSON
	AppArmor        string // "", Unconfined, or a profile's name
	WritableCgroups *bool  // nil: writable if privileged
	Labels          []string
}

// Parse parses options as docker does, with docker's error messages, and refuses unknown
// ones. Of options that exclude each other, the last one wins.
func Parse(opts []string) (Options, error) {
	var o Options
	for _, opt := range opts {
		switch opt {
		case "no-new-privileges":
			o.NoNewPrivileges = true
			continue
		case "writable-cgroups":
			yes := true
			o.WritableCgroups = &yes
			continue
		case "disable":
			o.Labels = append(o.Labels, opt)
			continue
		}
		k, v, ok := strings.Cut(opt, "=")
		if !ok {
			if k, v, ok = strings.Cut(opt, ":"); !ok {
				return o, fmt.Errorf("invalid --security-opt 1: %q", opt)
			}
		}
		if err := o.set(k, v); err != nil {
			return o, err
		}
	}
	return o, nil
}

func (o *Options) set(k, v string) error {
	unknown := fmt.Errorf("invalid --security-opt 2: %q", k+"="+v)
	switch k {
	case "label":
		o.Labels = append(o.Labels, v)
	case "apparmor":
		o.AppArmor = v
	case "seccomp":
		if v != "" && v != Unconfined && v != BuiltinSeccomp {
			if err := json.Unmarshal([]byte(v), &map[string]any{}); err != nil {
				return fmt.Errorf("invalid --security-opt seccomp: decoding the profile: %w", err)
			}
		}
		o.Seccomp = v
	case "no-new-privileges":
		b, err := strconv.ParseBool(v)
		if err != nil {
			return unknown
		}
		o.NoNewPrivileges = b
	case "writable-cgroups":
		b, err := strconv.ParseBool(v)
		if err != nil {
			return unknown
		}
		o.WritableCgroups = &b
	default:
		return unknown
	}
	return nil
}
