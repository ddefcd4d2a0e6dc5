package engineapi

import (
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"github.com/drover/drover/controller/fleet/fleettest"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/wire"
)

// stored has volumes with and without a home, with and without users.
func stored(t *testing.T) *api {
	t.Helper()
	a := newAPI(t)
	for _, body := range []string{
		`{"Name":"data","Labels":{"com.docker.compose.project":"shop","io.drover.on":"node==web-2"}}`,
		`{"Name":"unused"}`,
		`{"Name":"cache","DriverOpts":{"type":"tmpfs","device":"tmpfs","o":"size=1m"}}`,
		`{"Name":"nas","DriverOpts":{"type":"nfs","device":":/srv","o":"addr=10.0.0.9"},"Labels":{"kind":"slow"}}`,
	} {
		a.is(a.do("POST", "/volumes/create", body), body, 201, `"Driver":"local"`)
	}
	a.is(a.do("POST", "/containers/create?name=db", `{"Image":"busybox","Volumes":{"/logs":{}},"HostConfig":{"Binds":["data:/var/lib/db","cache:/c:ro"]}}`), "db", 201, "")
	a.is(a.do("POST", "/containers/create?name=web", `{"Image":"busybox","Labels":{"io.drover.on":"node==web-1"},"HostConfig":{"Mounts":[{"Type":"volume","Source":"pages","Target":"/www","ReadOnly":true},{"Type":"tmpfs","Target":"/t"}]}}`), "web", 201, "")
	return a
}

// volumesOf are the names that a list has, those of anonymous ones in short.
func (a *api) volumesOf(query string) string {
	a.t.Helper()
	r := a.do("GET", "/volumes?filters="+url.QueryEscape(query), "")
	var list volume.ListResponse
	if err := json.Unmarshal([]byte(r.body), &list); err != nil || r.code != 200 {
		a.t.Fatalf("%s: %d %s %v", query, r.code, r.body, err)
	}
	var names []string
	for _, v := range list.Volumes {
		if len(v.Name) == 64 {
			v.Name = "anonymous"
		}
		names = append(names, v.Name)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func TestFiltersOfVolumes(t *testing.T) {
	a := stored(t)
	for _, c := range []struct{ filter, want string }{
		{`{}`, "anonymous cache data nas pages unused"},
		{`{"dangling":["true"]}`, "nas unused"}, {`{"dangling":{"1":true}}`, "nas unused"}, {`{"dangling":["false"]}`, "anonymous cache data pages"},
		{`{"name":["a"],"driver":["local"],"dangling":["true"]}`, "nas"}, {`{"name":["^data$","unus"]}`, "data unused"}, {`{"name":["["]}`, ""},
		{`{"driver":["rexray"]}`, ""},
		{`{"label":["kind"]}`, "nas"}, {`{"label":["kind=fast"]}`, ""}, {`{"label":["com.docker.compose.project=shop"]}`, "data"},
		{`{"label":["io.drover.node=web-2"]}`, "anonymous data"}, {`{"node":["web-1"]}`, "pages"}, {`{"node":["n0"]}`, "pages"}, {`{"node":["web-9"]}`, ""},
	} {
		if got := a.volumesOf(c.filter); got != c.want {
			t.Errorf("%s: %q, want %q", c.filter, got, c.want)
		}
	}
	for filter, want := range map[string]string{`{"volume":["data"]}`: "db", `{"volume":["/www"]}`: "web", `{"volume":["/logs"]}`: "db", `{"volume":["dat"]}`: "", `{"volume":["cache","pages"]}`: "web db"} {
		if got := a.names("all=1&filters=" + url.QueryEscape(filter)); got != want {
			t.Errorf("ps %s: %q, want %q", filter, got, want)
		}
	}
}

func TestGoldensOfVolumes(t *testing.T) {
	a := stored(t)
	db := a.f.Snapshot().TaskByName("db")
	var anonymous string
	for _, m := range db.Mounts {
		if m.Anonymous {
			anonymous = hex.EncodeToString(m.VolumeId)
		}
	}
	fixed := func(r reply) reply {
		for _, name := range []string{"data", "cache", "unused", "nas", "pages"} {
			r.body = strings.ReplaceAll(r.body, hex.EncodeToString(a.f.Snapshot().VolumeByName(name).Id), "ID-OF-"+name)
		}
		r.body = strings.ReplaceAll(r.body, anonymous, "ANONYMOUS")
		return r
	}
	var list volume.ListResponse
	if err := json.Unmarshal([]byte(a.do("GET", "/volumes", "").body), &list); err != nil {
		t.Fatal(err)
	}
	list.Volumes = slices.DeleteFunc(list.Volumes, func(v volume.Volume) bool { return v.Name == anonymous })
	b, _ := json.Marshal(list)
	golden(t, "volumes", fixed(reply{code: 200, body: string(b)}))
	golden(t, "volume", fixed(a.do("GET", "/volumes/data", "")))
	golden(t, "volume-anonymous", fixed(a.do("GET", "/volumes/"+anonymous, "")))
	var c container.InspectResponse
	if err := json.Unmarshal([]byte(a.do("GET", "/containers/db/json", "").body), &c); err != nil {
		t.Fatal(err)
	}
	b, _ = json.Marshal(c.Mounts)
	golden(t, "mounts", fixed(reply{code: 200, body: string(b)}))
}

func TestAVolumeIsCreatedAndRemovedAsInDocker(t *testing.T) {
	a := newAPI(t)
	first := a.do("POST", "/volumes/create", `{"Name":"data","Labels":{"a":"b","io.drover.node":"web-9"}}`)
	again := a.do("POST", "/volumes/create", `{"Name":"data","Labels":{"c":"d"}}`)
	if first.code != 201 || again.body != first.body || strings.Contains(first.body, "web-9") {
		t.Errorf("%d %s\nagain: %d %s", first.code, first.body, again.code, again.body)
	}
	var v volume.Volume
	r := a.do("POST", "/volumes/create", `{}`, wire.HeaderKey, "k1")
	if err := json.Unmarshal([]byte(r.body), &v); err != nil || len(v.Name) != 64 {
		t.Fatalf("%s", r.body)
	}
	if _, is := v.Labels["com.docker.volume.anonymous"]; !is {
		t.Errorf("%v", v.Labels)
	}
	if r2 := a.do("POST", "/volumes/create", `{}`, wire.HeaderKey, "k1"); r2.body != r.body {
		t.Errorf("a repeated request made another one: %s", r2.body)
	}
	a.is(a.do("POST", "/containers/create?name=web", `{"Image":"busybox","HostConfig":{"Binds":["data:/x"]}}`), "web", 201, "")
	id := hexID(a.f.Snapshot().TaskByName("web"))
	a.is(a.do("DELETE", "/volumes/data", ""), "in use", 409, "remove data: volume is in use - ["+id+"]")
	a.is(a.do("DELETE", "/volumes/data?force=1", ""), "in use, by force", 409, "volume is in use")
	a.is(a.do("DELETE", "/containers/web?v=1", ""), "rm -v", 204, "")
	a.is(a.do("DELETE", "/volumes/data", "", wire.HeaderKey, "k2"), "it", 204, "")
	a.is(a.do("DELETE", "/volumes/data", "", wire.HeaderKey, "k2"), "it, repeated", 204, "")
	a.is(a.do("DELETE", "/volumes/data", ""), "gone", 404, "get data: no such volume")
	a.is(a.do("DELETE", "/volumes/data?force=1", ""), "gone, by force", 204, "")
}

func TestPrune(t *testing.T) {
	for _, c := range []struct {
		path, filters string
		left          string
		freed         string
	}{
		{"/volumes/prune", ``, "data nas pages tmp", "VolumesDeleted"},
		{"/volumes/prune", `{"all":["true"]}`, "nas tmp", `"SpaceReclaimed":7}`},
		{"/volumes/prune", `{"all":["1"],"label":["keep=no"]}`, "anonymous data nas tmp", ""},
		{"/volumes/prune", `{"all":["1"],"label!":["keep=no"]}`, "nas pages tmp", ""},
		{"/v1.41/volumes/prune", ``, "nas tmp", ""},
	} {
		a := newAPI(t)
		a.odd["n0"] = func(w http.ResponseWriter, r *http.Request) {
			var ids []string
			_ = json.NewDecoder(r.Body).Decode(&ids)
			out := map[string]int64{}
			for _, id := range ids {
				out[id] = 7
			}
			_ = answer(w, 200, out)
		}
		for _, body := range []string{`{}`, `{"Name":"data","Labels":{"io.drover.on":"node==web-1"}}`, `{"Name":"pages","Labels":{"keep":"no"}}`,
			`{"Name":"nas","DriverOpts":{"type":"nfs","device":":/x"}}`, `{"Name":"tmp","DriverOpts":{"type":"tmpfs","device":"tmpfs"}}`} {
			a.is(a.do("POST", "/volumes/create", body), body, 201, "")
		}
		r := a.do("POST", c.path+"?filters="+url.QueryEscape(c.filters), "")
		events := a.do("GET", "/events?since=1&until="+url.QueryEscape(time.Now().Add(time.Millisecond).Format(time.RFC3339Nano))+"&filters="+url.QueryEscape(`{"event":["prune"]}`), "")
		if _, freed, _ := strings.Cut(r.body, `"SpaceReclaimed":`); !strings.Contains(events.body, `{"reclaimed":"`+strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(freed), "}"))+`"}`) {
			t.Errorf("%s %s: %s, and the event is %s", c.path, c.filters, r.body, events.body)
		}
		if got := a.volumesOf(`{}`); r.code != 200 || got != c.left || !strings.Contains(r.body, c.freed) {
			t.Errorf("%s %s: %d %s, left is %q, want %q", c.path, c.filters, r.code, r.body, got, c.left)
		}
	}
}

func TestSystemDf(t *testing.T) {
	a := stored(t)
	a.odd["n1"] = func(w http.ResponseWriter, r *http.Request) {
		var ids []string
		_ = json.NewDecoder(r.Body).Decode(&ids)
		_ = answer(w, 200, map[string]int64{hex.EncodeToString(a.f.Snapshot().VolumeByName("data").Id): 4096, ids[0]: 4096, ids[1]: 4096})
	}
	a.f.Silence("n0", time.Now().Add(-time.Minute))
	r := a.do("GET", "/system/df?verbose=1", "")
	var now system.DiskUsage
	if err := json.Unmarshal([]byte(r.body), &now); err != nil || r.code != 200 || strings.Contains(r.body, "LayersSize") {
		t.Fatalf("%d %s", r.code, r.body)
	}
	got := map[string]volume.UsageData{}
	for _, v := range now.VolumeUsage.Items {
		got[v.Name] = *v.UsageData
	}
	if got["data"] != (volume.UsageData{Size: 4096, RefCount: 1}) || got["pages"] != (volume.UsageData{Size: -1, RefCount: 1}) || got["unused"] != (volume.UsageData{}) || len(got) != 4 {
		t.Errorf("%v", got)
	}
	if u := now.VolumeUsage; u.TotalSize != 8192 || u.TotalCount != 4 || u.ActiveCount != 3 || u.Reclaimable != 0 {
		t.Errorf("%+v", u)
	}
	if u := now.ImageUsage; u.TotalSize != 4_000_000 || u.ActiveCount != 1 {
		t.Errorf("%+v", u)
	}
	if u := now.ContainerUsage; u.TotalCount != 2 || u.ActiveCount != 0 {
		t.Errorf("%+v", u)
	}
	var old oldUsage
	r = a.do("GET", "/v1.41/system/df", "")
	if err := json.Unmarshal([]byte(r.body), &old); err != nil || old.LayersSize != 4_000_000 || len(old.Volumes) != 4 || len(old.Containers) != 2 || old.BuildCache == nil {
		t.Errorf("%s %v", r.body, err)
	}
	if r := a.do("GET", "/v1.44/system/df?type=volume", ""); strings.Contains(r.body, `"Images":[{`) || !strings.Contains(r.body, `"Volumes":[{`) {
		t.Errorf("%s", r.body)
	}
	for _, want := range []string{"LayersSize", "VolumeUsage"} {
		if r := a.do("GET", "/system/df", ""); !strings.Contains(r.body, want) {
			t.Errorf("both shapes are for clients that name no version: %s", r.body)
		}
	}
}

func TestEventsOfVolumes(t *testing.T) {
	a := newAPI(t)
	since := time.Now()
	a.is(a.do("POST", "/volumes/create", `{"Name":"data"}`), "a volume", 201, "")
	a.is(a.do("DELETE", "/volumes/data", ""), "removed", 204, "")
	a.is(a.do("POST", "/volumes/create", `{"Name":"homed","Labels":{"io.drover.on":"node==web-2"}}`), "with a home", 201, "")
	a.is(a.do("POST", "/containers/create?name=db", `{"Image":"busybox","HostConfig":{"Binds":["homed:/x"]}}`), "db", 201, "")
	db := a.f.Snapshot().TaskByName("db")
	for _, e := range []*dv1.Event{
		{Action: "mount", NodeId: "n1", Attributes: map[string]string{"driver": "local", "container": hexID(db), "io.drover.node": "elsewhere"}},
		{Action: "unmount", NodeId: "n9"}, // of a node that was removed
		{Action: "create", NodeId: "n1"},  // what the log has is not taken from agents
		{Action: "prune", Pruned: "volume"},
	} {
		e.TaskId, e.TimeNano = db.Id, fleettest.Start.UnixNano()
		if e.Pruned == "" {
			e.Volume = "homed"
		}
		a.f.Publish(e)
	}
	a.is(a.do("DELETE", "/containers/db", ""), "db", 204, "")
	a.is(a.do("DELETE", "/volumes/homed", ""), "removed", 204, "")
	a.is(a.do("POST", "/volumes/create", `{}`), "an anonymous one", 201, "")
	told := func(filters string) (got []string) {
		t.Helper()
		until := time.Now().Add(time.Millisecond)
		r := a.do("GET", "/events?since=1&until="+url.QueryEscape(until.Format(time.RFC3339Nano))+"&filters="+url.QueryEscape(filters), "")
		for d := json.NewDecoder(strings.NewReader(r.body)); d.More(); {
			var m struct {
				Type, Action string
				TimeNano     int64
				Actor        struct {
					ID         string
					Attributes map[string]string
				}
			}
			if err := d.Decode(&m); err != nil {
				t.Fatal(err)
			}
			at := m.Actor.Attributes
			if m.Action == "prune" && (m.TimeNano < since.UnixNano() || m.TimeNano > until.UnixNano()) {
				t.Errorf("a prune is told as of %v", time.Unix(0, m.TimeNano))
			}
			if len(m.Actor.ID) == 64 {
				m.Actor.ID = "anonymous"
			}
			got = append(got, strings.Join([]string{m.Type, m.Action, m.Actor.ID, at["driver"], at["io.drover.node"], at["reclaimed"]}, "|"))
		}
		return got
	}
	a.is(a.do("POST", "/volumes/prune", ""), "a prune", 200, "")
	a.is(a.do("POST", "/volumes/prune", ""), "a prune of nothing", 200, "")
	a.is(a.do("POST", "/networks/prune", ""), "a prune of networks", 200, "")
	want := []string{"volume|create|data|local||", "volume|destroy|data|local||", "volume|create|homed|local|web-2|", "volume|mount|homed|local|web-2|", "volume|unmount|homed||n9|",
		"volume|destroy|homed|local|web-2|", "volume|create|anonymous|local||", "volume|destroy|anonymous|local||", "volume|prune||||0", "volume|prune||||0"}
	if got := told(`{"type":["volume"]}`); !slices.Equal(got, want) {
		t.Errorf("the events are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got, want := told(`{"type":["volume"],"node":["web-2"]}`), []string{want[2], want[3], want[5]}; !slices.Equal(got, want) {
		t.Errorf("those of a node are %q, want %q", got, want)
	}
	if got, want := told(`{"event":["prune"]}`), []string{want[8], want[9], "network|prune||||0"}; !slices.Equal(got, want) {
		t.Errorf("prunes are %q, want %q", got, want)
	}
}
