package engine

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/drover/drover/agent/engine/spec"
	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/task"
	"github.com/drover/drover/pkg/fields"
)

// honoured are bodies of two creates that differ in one field. $NEW is a path where
// nothing is.
var honoured = map[string]struct{ without, with string }{
	"Hostname":        {with: `"Hostname":"h"`},
	"Domainname":      {with: `"Domainname":"d"`},
	"User":            {with: `"User":"7"`},
	"Tty":             {with: `"Tty":true`},
	"Env":             {with: `"Env":["A=b"]`},
	"Cmd":             {with: `"Cmd":["false"]`},
	"WorkingDir":      {with: `"WorkingDir":"/w"`},
	"Entrypoint":      {with: `"Entrypoint":["sh"]`},
	"NetworkDisabled": {with: `"NetworkDisabled":true`},

	"HostConfig.Binds":          host(`"Binds":["/tmp:/b"]`),
	"HostConfig.NetworkMode":    host(`"NetworkMode":"host"`),
	"HostConfig.ConsoleSize":    {`"Tty":true`, `"Tty":true,"HostConfig":{"ConsoleSize":[24,80]}`},
	"HostConfig.Annotations":    host(`"Annotations":{"com.example":"x"}`),
	"HostConfig.CapAdd":         host(`"CapAdd":["NET_ADMIN"]`),
	"HostConfig.CapDrop":        host(`"CapDrop":["CHOWN"]`),
	"HostConfig.CgroupnsMode":   hosts(`"CgroupnsMode":"private"`, `"CgroupnsMode":"host"`),
	"HostConfig.GroupAdd":       host(`"GroupAdd":["77"]`),
	"HostConfig.IpcMode":        host(`"IpcMode":"none"`),
	"HostConfig.OomScoreAdj":    host(`"OomScoreAdj":5`),
	"HostConfig.PidMode":        host(`"PidMode":"host"`),
	"HostConfig.Privileged":     host(`"Privileged":true`),
	"HostConfig.ReadonlyRootfs": host(`"ReadonlyRootfs":true`),
	"HostConfig.SecurityOpt":    host(`"SecurityOpt":["no-new-privileges"]`),
	"HostConfig.Tmpfs":          host(`"Tmpfs":{"/t":"size=1m"}`),
	"HostConfig.UTSMode":        host(`"UTSMode":"host"`),
	"HostConfig.ShmSize":        host(`"ShmSize":1048576`),
	"HostConfig.Sysctls":        host(`"Sysctls":{"net.core.somaxconn":"9"}`),
	"HostConfig.MaskedPaths":    host(`"MaskedPaths":[]`),
	"HostConfig.ReadonlyPaths":  host(`"ReadonlyPaths":[]`),

	"HostConfig.CpuShares":                   host(`"CpuShares":5`),
	"HostConfig.Memory":                      host(`"Memory":8388608`),
	"HostConfig.NanoCpus":                    host(`"NanoCpus":500000000`),
	"HostConfig.CpuPeriod":                   host(`"CpuPeriod":5000`),
	"HostConfig.CpuQuota":                    host(`"CpuQuota":5000`),
	"HostConfig.CpusetCpus":                  host(`"CpusetCpus":"0"`),
	"HostConfig.CpusetMems":                  host(`"CpusetMems":"0"`),
	"HostConfig.Devices[].PathOnHost":        hosts(`"Devices":[{"PathOnHost":"/dev/null","PathInContainer":"/dev/x"}]`, `"Devices":[{"PathOnHost":"/dev/zero","PathInContainer":"/dev/x"}]`),
	"HostConfig.Devices[].PathInContainer":   hosts(`"Devices":[{"PathOnHost":"/dev/null","PathInContainer":"/dev/x"}]`, `"Devices":[{"PathOnHost":"/dev/null","PathInContainer":"/dev/y"}]`),
	"HostConfig.Devices[].CgroupPermissions": hosts(`"Devices":[{"PathOnHost":"/dev/null","PathInContainer":"/dev/x","CgroupPermissions":"r"}]`, `"Devices":[{"PathOnHost":"/dev/null","PathInContainer":"/dev/x","CgroupPermissions":"rw"}]`),
	"HostConfig.DeviceCgroupRules":           host(`"DeviceCgroupRules":["c 7:* rw"]`),
	"HostConfig.MemoryReservation":           host(`"MemoryReservation":8388608`),
	"HostConfig.MemorySwap":                  hosts(`"Memory":8388608`, `"Memory":8388608,"MemorySwap":9388608`),
	"HostConfig.MemorySwappiness":            host(`"MemorySwappiness":0`),
	"HostConfig.OomKillDisable":              host(`"OomKillDisable":true`),
	"HostConfig.PidsLimit":                   host(`"PidsLimit":5`),
	"HostConfig.Ulimits[].Name":              hosts(`"Ulimits":[{"Name":"core","Soft":1,"Hard":2}]`, `"Ulimits":[{"Name":"nofile","Soft":1,"Hard":2}]`),
	"HostConfig.Ulimits[].Soft":              hosts(`"Ulimits":[{"Name":"core","Soft":1,"Hard":3}]`, `"Ulimits":[{"Name":"core","Soft":2,"Hard":3}]`),
	"HostConfig.Ulimits[].Hard":              hosts(`"Ulimits":[{"Name":"core","Soft":1,"Hard":3}]`, `"Ulimits":[{"Name":"core","Soft":1,"Hard":4}]`),

	"HostConfig.Mounts[].Type":                               mounts(`"Type":"tmpfs","Target":"/m"`, `"Type":"bind","Source":"/tmp","Target":"/m"`),
	"HostConfig.Mounts[].Source":                             mounts(`"Type":"bind","Source":"/tmp","Target":"/m"`, `"Type":"bind","Source":"/dev","Target":"/m"`),
	"HostConfig.Mounts[].Target":                             mounts(`"Type":"tmpfs","Target":"/m"`, `"Type":"tmpfs","Target":"/n"`),
	"HostConfig.Mounts[].ReadOnly":                           mounts(`"Type":"tmpfs","Target":"/m"`, `"Type":"tmpfs","Target":"/m","ReadOnly":true`),
	"HostConfig.Mounts[].BindOptions.Propagation":            bound("", `"Propagation":"private"`),
	"HostConfig.Mounts[].BindOptions.NonRecursive":           bound("", `"NonRecursive":true`),
	"HostConfig.Mounts[].BindOptions.CreateMountpoint":       mounts(`"Type":"bind","Source":"$NEW","Target":"/m"`, `"Type":"bind","Source":"$NEW","Target":"/m","BindOptions":{"CreateMountpoint":true}`),
	"HostConfig.Mounts[].BindOptions.ReadOnlyNonRecursive":   bound("", `"ReadOnlyNonRecursive":true`),
	"HostConfig.Mounts[].BindOptions.ReadOnlyForceRecursive": bound(`"ReadOnlyNonRecursive":true`, `"ReadOnlyForceRecursive":true`),
	"HostConfig.Mounts[].TmpfsOptions.SizeBytes":             mounts(`"Type":"tmpfs","Target":"/m"`, `"Type":"tmpfs","Target":"/m","TmpfsOptions":{"SizeBytes":4096}`),
	"HostConfig.Mounts[].TmpfsOptions.Mode":                  mounts(`"Type":"tmpfs","Target":"/m"`, `"Type":"tmpfs","Target":"/m","TmpfsOptions":{"Mode":511}`),
	"HostConfig.Mounts[].TmpfsOptions.Options":               mounts(`"Type":"tmpfs","Target":"/m"`, `"Type":"tmpfs","Target":"/m","TmpfsOptions":{"Options":[["exec"]]}`),
}

type pair = struct{ without, with string }

func host(with string) pair { return hosts("", with) }
func hosts(without, with string) pair {
	return pair{`"HostConfig":{` + without + `}`, `"HostConfig":{` + with + `}`}
}
func mounts(without, with string) pair {
	return hosts(`"Mounts":[{`+without+`}]`, `"Mounts":[{`+with+`}]`)
}
func bound(without, with string) pair {
	const m = `"Type":"bind","Source":"/tmp","Target":"/m","ReadOnly":true,"BindOptions":{`
	return mounts(m+without+`}`, m+with+`}`)
}

// able is a node with all that a spec can ask for.
var able = spec.Node{Name: "node", CgroupParent: "/drover/n", RecursiveReadOnly: true, AppArmor: true, SELinux: true, Seccomp: true,
	Capabilities: []string{"CAP_CHOWN"}, MaskedPaths: []string{"/proc/kcore"}}

// planned is the spec that this host, as a node of that kind, makes of a request.
func planned(t *testing.T, n spec.Node, change func(*container.CreateRequest)) (*specs.Spec, error) {
	t.Helper()
	e := &Engine{o: Options{DataDir: t.TempDir(), Network: new(network.Network)}, node: func() (spec.Node, error) { return n, nil }}
	c := container.CreateRequest{Config: &container.Config{Cmd: []string{"true"}}, HostConfig: &container.HostConfig{}}
	change(&c)
	p := &prepared{Spec: task.Spec{ID: strings.Repeat("0", 64), Create: c}, ImageConfig: &ocispec.ImageConfig{}}
	root := rootOf(t, map[string]string{"etc/passwd": passwdText, "etc/group": groupText})
	f, err := e.facts(t.Context(), p, func(name string, groups []string) (specs.User, error) { return lookUser(root, name, groups) })
	if err != nil {
		return nil, err
	}
	return spec.Plan(c, p.ImageConfig, f)
}

// temporary are a test's folders.
var temporary = regexp.MustCompile(regexp.QuoteMeta(os.TempDir()) + `/Test[^/"]*/[0-9]+`)

// What the table of fields calls honoured by the node changes what the node runs.
func TestTheNodeHonoursWhatTheTableSays(t *testing.T) {
	made := func(body string) string {
		s, err := planned(t, able, func(r *container.CreateRequest) {
			if err := json.Unmarshal([]byte(`{`+strings.ReplaceAll(body, "$NEW", t.TempDir()+"/new")+`}`), r); err != nil {
				t.Fatalf("%s: %v", body, err)
			}
		})
		if err != nil {
			return temporary.ReplaceAllString(err.Error(), "")
		}
		slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int { return strings.Compare(a.Destination, b.Destination) })
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return temporary.ReplaceAllString(string(b), "")
	}
	left := map[string]bool{}
	for path := range honoured {
		left[path] = true
	}
	for _, row := range fields.Create.Rows {
		if row.Class != fields.Node {
			continue
		}
		bodies, ok := honoured[row.Path]
		once, again := made(bodies.without), made(bodies.without)
		switch delete(left, row.Path); {
		case !ok:
			t.Errorf("%s is called honoured, and nothing here shows it", row.Path)
		case once != again:
			t.Errorf("%s: two containers of %s differ", row.Path, bodies.without)
		case once == made(bodies.with):
			t.Errorf("%s changes nothing: %s", row.Path, bodies.with)
		}
	}
	if len(left) > 0 {
		t.Errorf("the table has nothing that the node honours as %v", left)
	}
}

func TestDevicesOfPrivilegedContainers(t *testing.T) {
	s, err := planned(t, able, func(r *container.CreateRequest) {
		r.HostConfig.Privileged = true
		r.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/null", PathInContainer: "/dev/nil"}, {PathOnHost: "/dev/zero", PathInContainer: "/dev/zero"}}
		r.HostConfig.MaskedPaths = []string{"/proc/kcore"}
	})
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, d := range s.Linux.Devices {
		count[d.Path]++
	}
	if count["/dev/nil"] != 1 || count["/dev/zero"] > 1 {
		t.Errorf("devices are %v", count)
	}
	if got := s.Linux.MaskedPaths; len(got) != 1 || got[0] != "/proc/kcore" {
		t.Errorf("masked is %v", got)
	}
}
