package peer

import (
	"bytes"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/drover/drover/controller/engineapi"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/pki"
)

// An admin's container may be root on its host: the role user comes into none, and
// makes no other one so by an exec.
func TestARoleThatMayNotBeRootComesIntoNoContainerThatIs(t *testing.T) {
	const user = "spiffe://fleet/user/u"
	m := newMember()
	m.leads("me")
	m.apply(web()...)
	m.apply(&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: user, Roles: []string{pki.KindUser}}}},
		&dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: bytes.Repeat([]byte{8}, 32), Body: []byte(`{"Image":"x","HostConfig":{"Binds":["/:/host"]}}`)}}},
		&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: bytes.Repeat([]byte{9}, 32), SpecId: bytes.Repeat([]byte{8}, 32), NodeId: "n1", Name: "root", Attempt: 1, Started: 1}}})
	f := follower(t, m)
	h := f.API(engineapi.New(engineapi.Options{Fleet: f.fleet}))
	for _, c := range []struct{ path, body, field string }{
		{"/containers/root/exec", `{"Cmd":["sh"]}`, "HostConfig.Binds"},
		{"/containers/web/exec", `{"Cmd":["sh"],"Privileged":true}`, "HostConfig.Privileged"},
		{"/containers/root/attach?stdin=1&stream=1", ``, "HostConfig.Binds"},
		{"/containers/web/exec", `{"Cmd":["sh"]}`, ""},
		{"/containers/root/kill", ``, ""},
	} {
		for who, refused := range map[string]bool{user: c.field != "", caller: false} {
			w := httptest.NewRecorder()
			as(who, h).ServeHTTP(w, httptest.NewRequest("POST", c.path, strings.NewReader(c.body)))
			if (w.Code == 403) != refused || refused && !strings.Contains(w.Body.String(), c.field) {
				t.Errorf("%s %s by %s: %d %s", c.path, c.body, who, w.Code, w.Body)
			}
		}
	}
}
