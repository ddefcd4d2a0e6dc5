package engineapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/drover/drover/controller/fleet/fleettest"
	"github.com/drover/drover/pkg/api/wire"
	"github.com/drover/drover/pkg/bulk"
)

// user asks as somebody with the role user.
func (a *api) user(method, path, body string) reply {
	h := a.f.As(fleettest.User, New(Options{Fleet: a.f}))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return reply{w.Code, w.Header(), w.Body.String()}
}

// Who may not be root on a host is let into no container that is, and makes none.
func TestTheRoleUserIsNotRoot(t *testing.T) {
	a := newAPI(t)
	a.f.Run(a.created("plain", `{"Image":"busybox"}`).Id)
	a.f.Run(a.created("host", `{"Image":"busybox","HostConfig":{"PidMode":"host"}}`).Id)
	a.is(a.do("POST", "/volumes/create", `{"Name":"srv","DriverOpts":{"type":"none","device":"/srv","o":"bind"}}`), "an admin's volume of the host", 201, "")
	a.f.Run(a.created("mounts", `{"Image":"busybox","HostConfig":{"Binds":["srv:/srv"]}}`).Id)
	id := a.exec("host", `{"Cmd":["x"]}`)
	privileged := a.exec("plain", `{"Cmd":["x"],"Privileged":true}`)
	for _, c := range []struct {
		method, path, body string
		code               int
		words              string
	}{
		{"POST", "/containers/create?name=own", `{"Image":"busybox"}`, 201, ""},
		{"POST", "/containers/create", `{"Image":"busybox","HostConfig":{"Privileged":true}}`, 403, "HostConfig.Privileged is refused: the role user may not be root on a host"},
		{"POST", "/containers/create", `{"Image":"busybox","HostConfig":{"Annotations":{"a":"b"}}}`, 403, "HostConfig.Annotations"},
		{"POST", "/containers/plain/exec", `{"Cmd":["x"]}`, 201, ""},
		{"POST", "/containers/plain/exec", `{"Cmd":["x"],"Privileged":true}`, 403, "HostConfig.Privileged"},
		{"POST", "/containers/host/exec", `{"Cmd":["x"]}`, 403, "HostConfig.PidMode"},
		{"POST", "/containers/mounts/exec", `{"Cmd":["x"]}`, 403, "volume srv is refused: the role user may not be root on a host"},
		{"POST", "/containers/create", `{"Image":"busybox","HostConfig":{"Binds":["srv:/srv"]}}`, 403, "volume srv is refused"},
		{"POST", "/volumes/create", `{"Name":"own","DriverOpts":{"type":"none","device":"/","o":"bind"}}`, 403, "may not be root on a host"},
		{"POST", "/volumes/create", `{"Name":"own"}`, 201, ""},
		{"POST", "/exec/" + id + "/start", `{"Detach":true}`, 403, "HostConfig.PidMode"},
		{"POST", "/exec/" + privileged + "/start", `{"Detach":true}`, 403, "HostConfig.Privileged"},
		{"POST", "/containers/host/attach?stdin=1&stream=1", "", 403, "HostConfig.PidMode"},
		{"GET", "/containers/host/logs?stdout=1", "", 200, "out"},
		{"GET", "/containers/plain/archive?path=/etc", "", 200, "tar"},
		{"GET", "/containers/mounts/archive?path=/srv", "", 403, "volume srv is refused"},
		{"PUT", "/containers/host/archive?path=/", "tar", 403, "HostConfig.PidMode"},
		{"GET", "/containers/json", "", 200, `"/host"`},
	} {
		a.is(a.user(c.method, c.path, c.body), c.method+" "+c.path+" "+c.body, c.code, c.words)
	}
	w := httptest.NewRecorder()
	New(Options{Fleet: a.f}).ServeHTTP(w, httptest.NewRequest("GET", "/info", nil))
	if w.Code != http.StatusUnauthorized {
		t.Errorf("nobody is answered with %d %s", w.Code, w.Body)
	}
	h := a.f.As("spiffe://"+fleettest.Cluster+"/user/nobody", New(Options{Fleet: a.f}))
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/info", nil))
	if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "has no role that allows this") {
		t.Errorf("somebody without a role is answered with %d %s", w.Code, w.Body)
	}
}

// Our own client reads logs in frames, with their begin and end.
func TestLogsInFrames(t *testing.T) {
	a := newAPI(t)
	a.run("web")
	a.f.Run(a.created("tty", `{"Image":"busybox","Tty":true}`).Id)
	out := framed(bulk.FrameStdout, "out\n") + framed(bulk.FrameStderr, "err\n")
	for name, begin := range map[string]byte{"web": bulk.BeginWhole, "tty": bulk.BeginWhole | bulk.BeginRaw} {
		r := a.do("GET", "/containers/"+name+"/logs?stdout=1&stderr=1", "", wire.HeaderFrames, "1")
		if want := framed(bulk.FrameBegin, string([]byte{begin})) + out; !strings.HasPrefix(r.body, want) {
			t.Errorf("%s: %q, want %q", name, r.body, want)
		}
	}
	if r := a.do("GET", "/containers/tty/logs?stdout=1&stderr=1", ""); r.body != "out\nerr\n" {
		t.Errorf("a terminal's log for docker's client: %q", r.body)
	}
}
