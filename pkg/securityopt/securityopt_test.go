package securityopt

import (
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		opts []string
		want Options
	}{
		{},
		{[]string{"no-new-privileges"}, Options{NoNewPrivileges: true}},
		{[]string{"no-new-privileges:true"}, Options{NoNewPrivileges: true}},
		{[]string{"no-new-privileges", "no-new-privileges=0"}, Options{}},
		{[]string{"seccomp=unconfined"}, Options{Seccomp: Unconfined}},
		{[]string{"seccomp:unconfined"}, Options{Seccomp: Unconfined}},
		{[]string{"seccomp=builtin", "apparmor=docker-default"}, Options{Seccomp: BuiltinSeccomp, AppArmor: DefaultAppArmor}},
		{[]string{`seccomp={"defaultAction":"SCMP_ACT_ALLOW","x":"a=b:c"}`}, Options{Seccomp: `{"defaultAction":"SCMP_ACT_ALLOW","x":"a=b:c"}`}},
		{[]string{"label=type:x", "label:disable", "disable"}, Options{Labels: []string{"type:x", "disable", "disable"}}},
		{[]string{"writable-cgroups"}, Options{WritableCgroups: &yes}},
		{[]string{"writable-cgroups=false"}, Options{WritableCgroups: &no}},
	} {
		if got, err := Parse(c.opts); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %+v, %v; want %+v", c.opts, got, err, c.want)
		}
	}
	for opt, words := range map[string]string{
		"":                    `invalid --security-opt 1: ""`,
		"nonsense":            `invalid --security-opt 1: "nonsense"`,
		"systempaths=x":       `invalid --security-opt 2: "systempaths=x"`,
		"no-new-privileges=2": "invalid --security-opt 2",
		"writable-cgroups=2":  "invalid --security-opt 2",
		"seccomp={":           "decoding the profile",
		"seccomp=/etc/p.json": "decoding the profile",
		"seccomp=[]":          "decoding the profile",
	} {
		if o, err := Parse([]string{opt}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %+v, %v; want %q", opt, o, err, words)
		}
	}
}
