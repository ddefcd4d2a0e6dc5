package mounts

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// What -v means, and docker's words for what it can't mean.
func TestParseBind(t *testing.T) {
	for raw, want := range map[string]string{ // JSON of the mount and the mode, or the error
		"/data":                 `{"Type":"volume","Target":"/data"} `,
		"data:/data/":           `{"Type":"volume","Source":"data","Target":"/data"} `,
		"data:/data:ro":         `{"Type":"volume","Source":"data","Target":"/data","ReadOnly":true} ro`,
		"data:/data:z,nocopy":   `{"Type":"volume","Source":"data","Target":"/data","VolumeOptions":{"NoCopy":true}} z,nocopy`,
		"/a//b:/c":              `{"Type":"bind","Source":"/a/b","Target":"/c","BindOptions":{"CreateMountpoint":true}} `,
		"/a:/c:rw,rslave,Z":     `{"Type":"bind","Source":"/a","Target":"/c","BindOptions":{"Propagation":"rslave","CreateMountpoint":true}} rw,rslave,Z`,
		"/a:/c:ro,cached":       `{"Type":"bind","Source":"/a","Target":"/c","ReadOnly":true,"BindOptions":{"CreateMountpoint":true}} ro,cached`,
		"":                      "invalid volume specification: ''",
		":/data":                "invalid volume specification: ':/data'",
		"data:":                 "invalid volume specification: 'data:'",
		"/data:ro":              "invalid volume specification: '/data:ro'",
		"data:/data:ro:rw":      "invalid volume specification",
		"data:/data:ro,rw":      "invalid mode: ro,rw",
		"data:/data:z,Z":        "invalid mode: z,Z",
		"/a:/b:shared,slave":    "invalid mode: shared,slave",
		"data:/data:loud":       "invalid mode: loud",
		"data:/data:ro,":        "invalid mode: ro,",
		"data:data":             "mount path must be absolute",
		"data:/":                "destination can't be '/'",
		"data:/x/..":            "destination can't be '/'",
		"data:/data:rshared":    `field BindOptions must not be specified`,
		"/a:b":                  "invalid mount path: 'b' mount path must be absolute",
		"../up:/data":           `{"Type":"volume","Source":"../up","Target":"/data"} `, // no valid name of a volume
		"data:/data:consistent": `{"Type":"volume","Source":"data","Target":"/data"} consistent`,
	} {
		p, err := ParseBind(raw)
		if err != nil {
			if strings.HasPrefix(want, "{") || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want %s", raw, err, want)
			}
			continue
		}
		b, _ := json.Marshal(p.Mount)
		if got := string(b) + " " + p.Mode; got != want {
			t.Errorf("%q is %s, want %s", raw, got, want)
		}
	}
}

func TestOf(t *testing.T) {
	of := func(body string) ([]Point, error) {
		var h container.HostConfig
		if err := json.Unmarshal([]byte(body), &h); err != nil {
			t.Fatal(err)
		}
		return Of(&h)
	}
	got, err := of(`{"Binds":["a:/a","/x:/b:ro"],"VolumeDriver":"local","Mounts":[{"Type":"volume","Source":"c","Target":"/c/"},{"Type":"tmpfs","Target":"/d"}]}`)
	var targets []string
	for _, p := range got {
		targets = append(targets, string(p.Type)+" "+p.Source+" "+p.Target)
	}
	if want := []string{"volume a /a", "bind /x /b", "volume c /c", "tmpfs  /d"}; err != nil || !slices.Equal(targets, want) {
		t.Errorf("%q, %v", targets, err)
	}
	if d := got[0].VolumeOptions.DriverConfig; d == nil || d.Name != "local" || got[1].VolumeOptions != nil {
		t.Errorf("the driver of -v: %+v", got)
	}
	for body, words := range map[string]string{
		`{"Binds":["a:/a","b:/a/"]}`:                                                  "Duplicate mount point: /a",
		`{"Binds":["a:/a"],"Mounts":[{"Type":"volume","Target":"/a"}]}`:               "Duplicate mount point: /a",
		`{"Binds":["a:/a"],"Tmpfs":{"/a/":""}}`:                                       "Duplicate mount point: /a",
		`{"Mounts":[{"Type":"volume","Target":"/a"},{"Type":"tmpfs","Target":"/a"}]}`: "Duplicate mount point: /a",
		`{"Binds":["a"]}`: "invalid volume specification: 'a'",
		`{"Mounts":[{"Type":"volume","Source":"a"}]}`: "field Target must not be empty",
	} {
		if _, err := of(body); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", body, err, words)
		}
	}
	if _, err := of(`{"Mounts":[{"Type":"volume","Target":"/a"}],"Tmpfs":{"/a":""}}`); err != nil {
		t.Errorf("docker has the tmpfs hide what --mount has there: %v", err)
	}
}

func TestCheckNamesTheField(t *testing.T) {
	for body, want := range map[string]string{ // field, "" for a valid mount
		`{"Type":"volume","Target":"/a"}`:                                                      "",
		`{"Type":"volume","Source":"v","Target":"/a","VolumeOptions":{"Subpath":"x/y"}}`:       "",
		`{"Type":"image","Source":"v","Target":"/a"}`:                                          "",
		`{"Type":"volume","Target":"/a","VolumeOptions":{"Subpath":"x"}}`:                      "VolumeOptions.Subpath",
		`{"Type":"volume","Source":"v","Target":"/a","VolumeOptions":{"Subpath":"/x"}}`:        "VolumeOptions.Subpath",
		`{"Type":"volume","Source":"v","Target":"/a","VolumeOptions":{"Subpath":"a/../../x"}}`: "VolumeOptions.Subpath",
		`{"Type":"volume","Source":"v","Target":"/a","TmpfsOptions":{}}`:                       "TmpfsOptions",
		`{"Type":"bind","Source":"/v","Target":"/a","VolumeOptions":{}}`:                       "VolumeOptions",
		`{"Type":"bind","Source":"v","Target":"/a"}`:                                           "Source",
		`{"Type":"bind","Source":"/v","Target":"/a","BindOptions":{"Propagation":"x"}}`:        "BindOptions.Propagation",
		`{"Type":"tmpfs","Source":"/v","Target":"/a"}`:                                         "Source",
		`{"Type":"ftp","Source":"/v","Target":"/a"}`:                                           "Type",
		`{"Type":"volume","Target":"a"}`:                                                       "Target",
	} {
		var m mount.Mount
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatal(err)
		}
		var e *Error
		if errors.As(Check(&m), &e); (e == nil) != (want == "") || e != nil && e.Field != want {
			t.Errorf("%s: %v, want %s", body, e, want)
		}
	}
}

func TestParseFrom(t *testing.T) {
	for raw, want := range map[string]string{"web": "web rw", "web:ro": "web ro", "web:rw": "web rw", "web:z": "web rw", "web:ro,Z": "web ro",
		"": "empty string", "web:nocopy": "invalid mode: nocopy", "web:rslave": "invalid mode: rslave", "web:x": "invalid mode: x"} {
		ref, ro, err := ParseFrom(raw)
		got := ref + map[bool]string{true: " ro", false: " rw"}[ro]
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%q: %s, want %s", raw, got, want)
		}
	}
}

func TestUncovered(t *testing.T) {
	h := &container.HostConfig{Binds: []string{"/x:/b:ro", "/anon"}, Tmpfs: map[string]string{"/t": ""}, Mounts: []mount.Mount{{Type: mount.TypeBind, Source: "/x", Target: "/m/"}}}
	all := map[string]struct{}{"/z": {}, "/data/": {}, "/data": {}, "/t/": {}, "/b": {}, "/m": {}, "/anon": {}}
	if got := Uncovered(h, all); !slices.Equal(got, []string{"/data", "/z"}) {
		t.Errorf("%q", got)
	}
	if got := Uncovered(nil, nil); got != nil {
		t.Errorf("%q", got)
	}
}

// Whatever -v is sent as, what is read of it is valid, and means the same when it is read
// again.
func FuzzParseBind(f *testing.F) {
	for _, raw := range []string{"/data", "data:/data:ro,z", "/a//b:/c:rslave", "a:b:c:d", "::", "data:/x/../y:nocopy", ",:/"} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		p, err := ParseBind(raw)
		if err != nil {
			return
		}
		if err := Check(&p.Mount); err != nil || !strings.HasPrefix(p.Target, "/") || p.Target == "/" {
			t.Errorf("%q is %+v, %v", raw, p, err)
		}
		again := p.Target
		if p.Source != "" {
			again = p.Source + ":" + again
		}
		if p.Mode != "" {
			again += ":" + p.Mode
		}
		q, err := ParseBind(again)
		if err != nil || q.Target != p.Target || q.Source != p.Source || q.ReadOnly != p.ReadOnly || q.Type != p.Type {
			t.Errorf("%q is %+v, and %q is %+v, %v", raw, p, again, q, err)
		}
	})
}
