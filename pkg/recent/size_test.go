package recent

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// Sizes are about what the heap grows by, of requests that are made to take much as
// well.
func TestSizeIsWhatTheHeapGrowsBy(t *testing.T) {
	list := func(field, element string) string {
		return `{"HostConfig":{"` + field + `":[` + element + strings.Repeat(","+element, 20_000) + `]}}`
	}
	object := func(form string) string {
		var b strings.Builder
		for n := range 5_000 {
			_, _ = fmt.Fprintf(&b, `,"%d":%s`, n+1, form)
		}
		return "{" + b.String()[1:] + "}"
	}
	for what, encoded := range map[string]string{
		"mounts":    list("Mounts", `{}`),
		"no mounts": list("Mounts", `null`),
		"ulimits":   list("Ulimits", `{}`),
		"binds":     list("Binds", `""`),
		"options":   list("Mounts", `{"BindOptions":{},"VolumeOptions":{},"TmpfsOptions":{"Options":[[""]]}}`),
		"labels":    `{"Labels":` + object(`"0123456789abcdef"`) + `}`,
		"volumes":   `{"Volumes":` + object(`{}`) + `}`,
		"ports":     `{"HostConfig":{"PortBindings":` + object(`[{}]`) + `}}`,
		"networks":  `{"NetworkingConfig":{"EndpointsConfig":` + object(`{}`) + `}}`,
		"text":      `{"Image":"` + strings.Repeat("x", 100_000) + `"}`,
	} {
		const times = 4
		var before, after runtime.MemStats
		var all [times]*container.CreateRequest
		runtime.GC()
		runtime.ReadMemStats(&before)
		for n := range all {
			if err := json.Unmarshal([]byte(encoded), &all[n]); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		grown, size := int(after.HeapAlloc-before.HeapAlloc)/times, Size(all[0])
		if size < grown/2 || size > grown*2 {
			t.Errorf("%s: size %d of what takes %d", what, size, grown)
		}
		runtime.KeepAlive(all)
	}
}

func TestSizeOfNothing(t *testing.T) {
	var p *container.Config
	if Size(nil) != 0 || Size(p) != 8 || Size("abc") != 16+3 {
		t.Errorf("nil is %d, a nil pointer %d, a string of 3 %d", Size(nil), Size(p), Size("abc"))
	}
}
